"""One forward pass over a text, and everything that the probes of memory take from it.

For the tokens x_1 ... x_n of a text, nll_i = -log p(x_i | x_<i) in nats, i = 2 ... n: the first token is not scored.
The cue is x_1 ... x_c with c = n // 2, the target the rest. Greedy decoding from the cue says the target exactly if
the teacher-forced argmax is right at every place of the target, because up to the first mistake both see the same
tokens; so exact recall needs no generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.hooks.batch import pad_rows
from editlab.hooks.placement import in_float64

if TYPE_CHECKING:
    from editlab.lm import LM

Ids = tuple[int, ...]
LEAST = 8  # tokens of a text: with fewer the target is too short to be recalled
BATCH_TOKENS = 512  # of one forward, padding included; logits are the largest tensor


@dataclass(frozen=True)
class Reading:
    """One text under one state of the model.

    Attributes:
        loss: mean nll of the scored tokens. loss_sum: their sum.
        n_tokens: of the text, n. n_target: of its second half.
        hits: target tokens that are the model's first choice. prefix: how many of them before the first that is not.
        target_nll: mean nll of the target.
        margin: the smallest gap between the two best logits over the target; a tie would make "exact" ambiguous.
    """

    loss: float
    loss_sum: float
    n_tokens: int
    n_target: int
    hits: int
    prefix: int
    target_nll: float
    margin: float

    @property
    def exact(self) -> bool:
        """Greedy decoding from the cue gives the target token for token."""
        return self.hits == self.n_target

    def to_record(self) -> dict[str, float | int]:
        """Plain values."""
        return {
            "loss": self.loss,
            "loss_sum": self.loss_sum,
            "n_tokens": self.n_tokens,
            "hits": self.hits / self.n_target,
            "exact": int(self.exact),
            "prefix": self.prefix / self.n_target,
            "target_nll": self.target_nll,
        }


def cue(ids: Ids) -> int:
    """How many tokens of a text are its cue."""
    return len(ids) // 2


def read(lm: LM, rows: Sequence[Ids], batch_tokens: int = BATCH_TOKENS) -> list[Reading]:
    """Read texts given as token ids, in their order.

    Texts of similar length share a batch, padded on the right; which do is a function of the lengths alone.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    out: dict[int, Reading] = {}
    while order:
        # The last one is the longest: the others are padded to it.
        n = max(1, batch_tokens // len(rows[order[-1]]))
        chunk, order = order[-n:], order[:-n]
        out |= zip(chunk, _read_batch(lm, [rows[i] for i in chunk]), strict=True)
    return [out[i] for i in range(len(rows))]


def _read_batch(lm: LM, rows: Sequence[Ids]) -> list[Reading]:
    batch = pad_rows(rows, pivots="right", device=lm.device)
    lengths = [len(row) for row in rows]
    scored = batch.mask.bool()
    scored[torch.arange(len(rows)), batch.lengths - 1] = False
    logits = lm.forward(batch, read=scored)  # (tokens but the rows' last, V)
    wanted = batch.ids.roll(-1, 1)[scored]
    best, first = logits.topk(2)
    nll = in_float64(torch.logsumexp(logits, -1) - logits.gather(-1, wanted[:, None])[:, 0])
    sizes = [n - 1 for n in lengths]
    parts = zip(
        rows, nll.split(sizes), (first[:, 0] == wanted).split(sizes), (best[:, 0] - best[:, 1]).split(sizes),
        strict=True,
    )  # fmt: skip
    return [_reading(row, losses, right, gaps) for row, losses, right, gaps in parts]


def _reading(row: Ids, losses: Tensor, right: Tensor, gaps: Tensor) -> Reading:
    n_target = len(row) - cue(row)
    hits = right[-n_target:]
    return Reading(
        loss=float(losses.mean()),
        loss_sum=float(losses.sum()),
        n_tokens=len(row),
        n_target=n_target,
        hits=int(hits.sum()),
        prefix=int(hits.long().cumprod(0).sum()),
        target_nll=float(losses[-n_target:].mean()),
        margin=float(gaps[-n_target:].min()),
    )
