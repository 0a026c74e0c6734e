"""JuICE-style dual runs: heads scaled by what they gave in a first, untouched run (arXiv 2503.10996).

Selection, on few items: a head's output is scaled by 1 + alpha, for positive and for negative alphas, on several levels
of conflict (no context, substitution, coherent paragraph). A head is kept if the mean gain in the target's probability
is above 0 on every level, ranked by their sum: the first K to be enlarged, the first K of the negative ones to be
suppressed.

Dual run: run 1 as it is; run 2 adds alpha_h times head h's output of run 1, at all positions. For one head, or heads of
one layer, that is a gain of 1 + alpha; with heads in several layers it is not, since run 2's own outputs have moved.
The single run with gains ("JuNe") is the ablation.

Ours differs from the released code: only the `candidates` heads with the largest path-patching scores are tried, since
trying all costs hours where this costs a minute; and interventions are keyed by head, where the released lists swap
signs if one layer holds both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editlab.hooks.heads import Head, HeadGains
from editlab.hooks.session import Session
from editlab.probes.conflicts.heads import Direction, HeadMap
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.readout import Prompts
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM

POSITIVE, NEGATIVE = (1.0, 3.0, 5.0, 10.0, 30.0), (-1.0, -2.0, -5.0)
SUBJECTS = 4  # as in the released code
SUPPRESS, ENLARGE = (0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class Selection:
    """Heads to enlarge and to suppress, with the sum of their gains over the levels."""

    enlarge: tuple[Head, ...]
    suppress: tuple[Head, ...]
    gains: dict[str, dict[Head, float]]
    levels: tuple[str, ...]
    items: int

    def alphas(self, enlarge: float, suppress: float) -> dict[Head, float]:
        """What each head's output of run 1 is multiplied by before it is added."""
        found = dict.fromkeys(self.suppress, -suppress) | dict.fromkeys(self.enlarge, enlarge)
        return {head: alpha for head, alpha in found.items() if alpha}


def levels_of(items: Sequence[Item], direction: Direction) -> dict[str, list[str]]:
    """Prompts by level of conflict; without a context there is no context's answer to gain."""
    found = {"conflict": [item.prompt for item in items]}
    if direction == "memory":
        found["no context"] = [item.query for item in items]
    if items[0].wording.texts is not None and items[0].wording.format != "paragraph":
        texts = [
            item.wording.__class__(item.wording.stem, "paragraph", item.wording.texts, item.draw) for item in items
        ]
        found["paragraph"] = [t.prompt(i.case.subject, i.answer) for t, i in zip(texts, items, strict=True)]
    return found


def select(
    lm: LM,
    items: Items,
    heads: HeadMap,
    direction: Direction,
    *,
    k: int = 5,
    candidates: int | None = None,
    on_step: OnStep = silent,
) -> Selection:
    """Choose the heads on items of the first `SUBJECTS` subjects.

    Args:
        candidates: how many heads of largest |S| are tried; default a tenth of them.
    """
    some = list({item.case.subject: item for item in items.items}.values())[:SUBJECTS]
    order = np.argsort(-np.abs(heads.mean).ravel(), kind="stable")
    tried = [divmod(int(i), heads.mean.shape[1]) for i in order[: candidates or max(2 * k, order.size // 10)]]
    targets = torch.tensor([item.tok_mem if direction == "memory" else item.tok_ctx for item in some])
    gains: dict[str, dict[Head, list[float]]] = {"enlarge": {}, "suppress": {}}
    levels = levels_of(some, direction)
    for done, (level, texts) in enumerate(levels.items()):
        prompts = Prompts(lm, [lm.tokens(text)[0] for text in texts])
        prompts.freeze(min(layer for layer, _ in tried))

        def p(gains: HeadGains | None, prompts: Prompts = prompts) -> float:
            return float(prompts.every(gains).softmax(-1).gather(1, targets[:, None]).mean())

        base = p(None)
        for n, head in enumerate(tried):
            on_step(StepInfo("trying heads", done * len(tried) + n, len(levels) * len(tried), "heads", level))
            for kind, alphas in (("enlarge", POSITIVE), ("suppress", NEGATIVE)):
                mean = float(np.mean([p(HeadGains({head: 1 + alpha})) - base for alpha in alphas]))
                gains[kind].setdefault(head, []).append(mean)
    on_step(StepInfo("trying heads", len(levels) * len(tried), len(levels) * len(tried), "heads"))
    kept = {kind: {h: sum(v) for h, v in found.items() if min(v) > 0} for kind, found in gains.items()}
    best = {kind: tuple(sorted(found, key=found.__getitem__, reverse=True)[:k]) for kind, found in kept.items()}
    enlarge = best["enlarge"]
    # A head may gain both ways; it is used once, where it gains more.
    suppress = tuple(h for h in best["suppress"] if h not in enlarge or kept["suppress"][h] > kept["enlarge"][h])
    enlarge = tuple(h for h in enlarge if h not in suppress)
    return Selection(enlarge, suppress, kept, tuple(levels), len(some))


class DualRun:
    """Prompts to be read in dual runs: run 1 is kept, so only run 2 is done for each set of alphas."""

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]], heads: Sequence[Head]) -> None:
        self.lm = lm
        self.prompts = Prompts(lm, rows)
        self.lowest = min(layer for layer, _ in heads) if heads else 0
        layers = sorted({layer for layer, _ in heads})
        self.first: list[dict[int, Tensor]] = []
        for _, batch in self.prompts.batches:
            with lm.session() as s, torch.no_grad():
                s.capture("z", layers)
                kept = s.run(batch, read=None).captured if layers else {}
            self.first.append({layer: kept["z", layer] for layer in layers})
        self.cones = [lm.prefix(batch, self.lowest) for _, batch in self.prompts.batches]

    def every(self, alphas: Mapping[Head, float]) -> Tensor:
        """(n, V) float32 logits of run 2."""
        out: Tensor | None = None
        for (index, batch), first, cone in zip(self.prompts.batches, self.first, self.cones, strict=True):
            with self.lm.session() as s, torch.no_grad(), _added(s, first, alphas):
                logits = s.run(cone, read=batch.last).logits
            assert logits is not None
            out = torch.empty(self.prompts.n, logits.shape[-1]) if out is None else out
            out[index] = logits.float().cpu()
        assert out is not None
        return out


@contextmanager
def _added(session: Session, first: Mapping[int, Tensor], alphas: Mapping[Head, float]) -> Iterator[None]:
    with ExitStack() as stack:
        for (layer, head), alpha in alphas.items():
            wish = session.patch("z", layer, _plus(alpha * first[layer][:, :, [head]]), heads=[head])
            stack.callback(session.remove, wish)
        yield


def _plus(more: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda part: part + more
