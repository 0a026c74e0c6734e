"""Intervals and tests where prompts come from few templates: what was drawn together is drawn again together."""

from __future__ import annotations

import numpy as np

from editlab.evaluation.statistics import LEVEL, RESAMPLES, Estimate


def clustered(values: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean with a 95 % interval: groups are resampled, and values within each of them.

    Where every value is a group of its own this is the ordinary bootstrap.

    Args:
        values, groups: (n,).
    """
    values = np.asarray(values, dtype=np.float64)
    names = np.unique(groups)
    if len(names) < 2 or len(values) < 2:
        mean = float(values.mean()) if len(values) else float("nan")
        return Estimate(mean, float("nan"), float("nan"), len(values))
    rng = np.random.default_rng(seed)
    inside = [values[groups == name] for name in names]
    # One resampled mean and size per group and draw; then groups are drawn.
    sums = np.stack([part[rng.integers(len(part), size=(RESAMPLES, len(part)))].sum(1) for part in inside], 1)
    sizes = np.array([len(part) for part in inside])
    drawn = rng.integers(len(names), size=(RESAMPLES, len(names)))
    means = np.take_along_axis(sums, drawn, 1).sum(1) / sizes[drawn].sum(1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high), len(values), "bootstrap over templates and prompts")


def sign_flips(values: np.ndarray, *, seed: int = 0, resamples: int = 9999) -> float:
    """Two-sided p that the mean of paired differences is 0: their signs are flipped, prompt by prompt."""
    if not np.any(values):
        return 1.0
    rng = np.random.default_rng(seed)
    flips = rng.integers(0, 2, size=(resamples, len(values)), dtype=np.int8) * 2 - 1
    means = np.abs(flips @ values) / len(values)
    return float((1 + (means >= abs(values.mean()) - 1e-15).sum()) / (1 + resamples))
