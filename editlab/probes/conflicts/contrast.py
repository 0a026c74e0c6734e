"""Context-aware decoding: the next token from two readings of a question, with and without its context.

    CAD (arXiv 2305.14739)      l = (1 + a) l_context - a l_closed;  a = 0 is the plain model, a = -1 the closed book
    AdaCAD (arXiv 2409.07394)   the same with a = JSD(p_context || p_closed), in nats, anew for every token

For direction memory a is negative: CAD between 0 and -1, and AdaCAD with -JSD (our mirror of it; the paper has none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from editlab.hooks.kv_cache import as_argument
from editlab.hooks.placement import in_float64

if TYPE_CHECKING:
    from editlab.lm import LM


def cad(context: Tensor, closed: Tensor, a: float | Tensor) -> Tensor:
    """(n, V) contrasted log-probabilities, not normalised, from two sets of logits."""
    a = torch.as_tensor(a, dtype=context.dtype, device=context.device)
    a = a[:, None] if a.dim() else a
    return (1 + a) * context.log_softmax(-1) - a * closed.log_softmax(-1)


def divergence(context: Tensor, closed: Tensor) -> Tensor:
    """(n,) Jensen-Shannon divergence of the two distributions, in nats (at most ln 2)."""
    p, q = in_float64(context).log_softmax(-1), in_float64(closed).log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2).clamp(min=0)


def adacad(context: Tensor, closed: Tensor, sign: float = 1.0) -> Tensor:
    """(n, V) as `cad`, with the divergence for a."""
    return cad(context, closed, sign * divergence(context, closed).to(context))


class Contrast(LogitsProcessor):
    """The contrast at every step of a generation; the closed book has a KV cache of its own.

    Args:
        queries: the prompts without their contexts, row by row of what is generated from.
        a: CAD's; None is AdaCAD.
    """

    def __init__(self, lm: LM, queries: Sequence[str], a: float | None = None, sign: float = 1.0) -> None:
        self.lm, self.a, self.sign = lm, a, sign
        self.batch = lm.encode(list(queries))
        self.cache = DynamicCache()
        self.seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of the next token."""
        ids, mask = self.batch.ids, self.batch.mask
        if self.seen:
            new = input_ids[:, -self.seen :]
            ids, mask = new[:, -1:], torch.cat([mask, torch.ones_like(new)], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        extra = as_argument(self.lm.model, self.cache)
        if self.lm.adapter.takes_position_ids:
            extra["position_ids"] = positions
        with torch.no_grad():
            out = self.lm.model(ids, attention_mask=mask, use_cache=True, **extra)
        self.seen += 1
        closed = out.logits[:, -1].to(scores)
        return adacad(scores, closed, self.sign) if self.a is None else cad(scores, closed, self.a)


def contrast_generate(
    lm: LM,
    prompts: Sequence[str],
    queries: Sequence[str],
    *,
    a: float | None = 1.0,
    sign: float = 1.0,
    max_new_tokens: int = 10,
) -> list[str]:
    """Greedy continuations of prompts under CAD, or AdaCAD with `a=None`; `queries` are they without context."""
    return lm.generate(list(prompts), max_new_tokens, logits_processor=[Contrast(lm, queries, a, sign)])
