"""Merging several changes of one matrix, each (d_out, d_in), into one.

`ties` and `sign` ("TIES-Merging", arXiv 2306.01708), `dare` with either ("Language Models are Super Mario", arXiv
2311.03099), `linear`, and `slerp`. Weights sum to one. Where only some of the changes touch an entry, ties and sign
give the weighted mean of those that agree with the elected sign, so an entry of one shard alone keeps its full value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Merge = Callable[[Tensor, Tensor, float, int], Tensor]


def merge(name: str, changes: Sequence[Tensor], weights: Sequence[float], density: float, seed: int = 0) -> Tensor:
    """The merged change, float32.

    Args:
        density: share of the largest entries that `ties` and `magnitude` keep, and of random ones that `dare` keeps.
        seed: of the random ones.
    """
    stacked = torch.stack(list(changes)).double()
    shares = torch.tensor(weights, dtype=torch.float64)
    return MERGES[name](stacked, shares / shares.sum(), density, seed).float()


def _ties(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    return _sign(_trimmed(x, density), weights, density, seed)


def _sign(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    w = weights[:, None, None]
    elected = torch.where((w * x).sum(0) >= 0, 1.0, -1.0)  # exact ties are positive
    agrees = x * elected > 0
    total = torch.where(agrees, w * x, 0).sum(0)
    share = torch.where(agrees, w, 0).sum(0)
    return torch.where(share > 0, total / share.clamp(min=1e-300), 0)


def _linear(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    return (weights[:, None, None] * x).sum(0)


def _magnitude(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    return _linear(_trimmed(x, density), weights, density, seed)


def _dare_linear(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    return _linear(_dropped(x, density, seed), weights, density, seed)


def _dare_ties(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    return _sign(_dropped(x, density, seed), weights, density, seed)


def _slerp(x: Tensor, weights: Tensor, density: float, seed: int) -> Tensor:
    """Spherical interpolation, one change after the other, each by its share of those so far."""
    merged, so_far = x[0], weights[0]
    for change, weight in zip(x[1:], weights[1:], strict=True):
        so_far = so_far + weight
        merged = _between(merged, change, float(weight / so_far))
    return merged


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    lengths = float(a.norm() * b.norm())
    cosine = float((a * b).sum()) / lengths if lengths > 0 else 1.0
    angle = torch.arccos(torch.tensor(max(-1.0, min(1.0, cosine)), dtype=torch.float64))
    if float(angle.sin()) < 1e-6:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def _trimmed(x: Tensor, density: float) -> Tensor:
    """Each change with only its `density` largest entries."""
    keep = round(density * x[0].numel())
    flat = x.flatten(1)
    smallest = flat.abs().topk(keep, dim=1).values[:, -1:] if keep else flat.new_full((len(x), 1), torch.inf)
    return torch.where(flat.abs() >= smallest, flat, 0).view_as(x)


def _dropped(x: Tensor, density: float, seed: int) -> Tensor:
    """Each change with random entries only, scaled so that its expectation is kept."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(kept, x / density, 0)


MERGES: dict[str, Merge] = {
    "ties": _ties,
    "sign": _sign,
    "linear": _linear,
    "slerp": _slerp,
    "magnitude": _magnitude,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
}
