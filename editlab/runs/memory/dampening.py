"""Selective synaptic dampening: forgetting without training (Foster et al., arXiv 2308.07707).

1. I_f and I_D, mean squared gradients of the loss over texts to forget and over reference texts. One
   text at a time: the square of a batch's mean gradient depends on the batch's size.
2. Weights with I_f > alpha I_D are scaled by min(lambda I_D / I_f, 1). The others stay.
3. Stop rule: of ever smaller alpha, the first at which the loss of what is forgotten is back at a given level, found
   by a grid and then by bisection. More would make the text oddly improbable, which gives away that it was known.
   Every alpha starts from the same weights: dampening twice is not dampening once.

A text that the model gives with near certainty has next to no gradient, so that no alpha finds its weights: this
forgets what was lately studied, and not well-known facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.runs.memory.token_loss import token_loss

if TYPE_CHECKING:
    from editlab.lm import LM

GRID = (10_000.0, 3000.0, 1000.0, 300.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
BISECTIONS = 5
LEAST = 1e-30  # of I_f, where it divides


def importance(lm: LM, rows: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Tensor]:
    """Mean squared gradients of the named weights, each of its weight's shape.

    Args:
        lm: on weights of its own that require gradients (`LM.on_own_weights`).
    """
    weights = {name: lm.model.get_parameter(name) for name in names}
    total = {name: torch.zeros_like(w, requires_grad=False) for name, w in weights.items()}
    for row in rows:
        gradients = torch.autograd.grad(token_loss(lm, [row]), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name].addcmul_(gradient, gradient, value=1 / len(rows))
    return total


def dampened(
    weights: Mapping[str, Tensor],
    forget: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    alpha: float,
    strength: float = 1.0,
) -> dict[str, Tensor]:
    """The weights after step 2, as new tensors.

    Args:
        strength: lambda; smaller dampens more.
    """
    found = {}
    for name, w in weights.items():
        chosen = forget[name] > alpha * reference[name]
        factor = (strength * reference[name] / forget[name].clamp(min=LEAST)).clamp(max=1.0)
        found[name] = torch.where(chosen, w.detach() * factor, w.detach())
    return found


def share(forget: Mapping[str, Tensor], reference: Mapping[str, Tensor], alpha: float) -> float:
    """The share of the weights that are dampened."""
    chosen = sum(int((forget[name] > alpha * reference[name]).sum()) for name in forget)
    return chosen / sum(t.numel() for t in forget.values())


def stop_at(loss: Callable[[float], float], level: float) -> float | None:
    """The largest alpha at which the loss is back at `level`; None if none of the grid's brings it there.

    Args:
        loss: of what is forgotten, after dampening with an alpha.
    """
    above: float | None = None
    for alpha in GRID:
        if loss(alpha) >= level:
            break
        above = alpha
    else:
        return None
    if above is None:
        return alpha
    low, high = alpha, above
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if loss(middle) >= level else (low, middle)
    return low
