"""What a model says at the end of prompts: the next token, and the log-probabilities of both answers.

`Prompts` groups prompts of similar length into left-padded batches. To compare many sets of pruned heads it freezes the
residual stream below the lowest of them once: a head changes no layer below its own, so only those above run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.cone import Cone
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts.items import Item, Items

if TYPE_CHECKING:
    from editlab.lm import LM

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Answers:
    """Of n items under one condition.

    Attributes:
        said: (n,) the most probable next token. closed: (n,) the most probable one among the relation's answers.
        memory, context: (n,) log-probability of each answer's first token.
        tok_mem, tok_ctx: (n,) these tokens. subjects: what intervals resample.
    """

    said: np.ndarray
    closed: np.ndarray
    memory: np.ndarray
    context: np.ndarray
    tok_mem: np.ndarray
    tok_ctx: np.ndarray
    subjects: tuple[str, ...]

    @property
    def is_memory(self) -> np.ndarray:
        """(n,) bool: the model says what it knows."""
        return self.said == self.tok_mem

    @property
    def is_context(self) -> np.ndarray:
        """(n,) bool: it says what the context asserts."""
        return self.said == self.tok_ctx

    @property
    def difference(self) -> np.ndarray:
        """(n,) LD = logit(memory) - logit(context)."""
        return self.memory - self.context


class Prompts:
    """Prompts to be read many times.

    Args:
        rows: token ids of each. batch_tokens: padded tokens of one forward pass, at most (one row always fits).
    """

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]], *, batch_tokens: int = BATCH_TOKENS) -> None:
        self.lm = lm
        self.n = len(rows)
        self.batches: list[tuple[list[int], Batch]] = []
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        start = 0
        while start < len(order):
            width = len(rows[order[start]])
            chunk = order[start : start + max(1, batch_tokens // width)]
            self.batches.append((chunk, pad_rows([rows[i] for i in chunk], device=lm.device)))
            start += len(chunk)
        self._cones: list[Cone] = []
        self._frozen = 0

    def freeze(self, layer: int) -> None:
        """Keep the residual stream that enters `layer`, for gains on heads from there on."""
        if self._cones and self._frozen == layer:
            return
        self._frozen = layer
        self._cones = [self.lm.prefix(batch, layer) for _, batch in self.batches]

    def logits(self, gains: HeadGains | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """For each batch, which prompts it has and their (rows, V) next-token logits."""
        lowest = gains.lowest if gains is not None else None
        for n, (index, batch) in enumerate(self.batches):
            frozen = lowest is not None and self._cones and lowest >= self._frozen
            with self.lm.session() as s, torch.no_grad():
                if gains is None:
                    logits = s.run(batch, read=batch.last).logits
                else:
                    with gains.within(s):
                        logits = s.run(self._cones[n] if frozen else batch, read=batch.last).logits
            assert logits is not None
            yield index, logits

    def every(self, gains: HeadGains | None = None) -> Tensor:
        """(n, V) float32 logits on the CPU, in the order of the prompts."""
        out: Tensor | None = None
        for index, logits in self.logits(gains):
            out = torch.empty(self.n, logits.shape[-1]) if out is None else out
            out[index] = logits.float().cpu()
        assert out is not None
        return out


def judged(logits: Tensor, items: Items | Sequence[Item], candidates: Sequence[int] = ()) -> Answers:
    """Answers of items from (n, V) logits."""
    found = items.items if isinstance(items, Items) else tuple(items)
    among = torch.tensor(items.candidates if isinstance(items, Items) else tuple(candidates), dtype=torch.long)
    tok_mem = torch.tensor([item.tok_mem for item in found])
    tok_ctx = torch.tensor([item.tok_ctx for item in found])
    log_probs = logits.double().log_softmax(-1)
    closed = among[logits[:, among].argmax(-1)]
    return Answers(
        logits.argmax(-1).numpy(),
        closed.numpy(),
        log_probs.gather(1, tok_mem[:, None])[:, 0].numpy(),
        log_probs.gather(1, tok_ctx[:, None])[:, 0].numpy(),
        tok_mem.numpy(),
        tok_ctx.numpy(),
        tuple(item.case.subject for item in found),
    )


def read(lm: LM, items: Items, prompt: Callable[[Item], str] | None = None) -> Answers:
    """Answers under another prompt of each item; default its own."""
    rows = [item.ids if prompt is None else lm.tokens(prompt(item))[0] for item in items.items]
    return judged(Prompts(lm, rows).every(), items)
