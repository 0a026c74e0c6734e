"""Intervals and tests of prompts that come from few templates.

An interval speaks of other templates too, and is wide where there are few of them. The test speaks of prompts of these
templates.
"""

from __future__ import annotations

import numpy as np

from editlab.evaluation.statistics import Estimate, estimate_nested


def clustered(values: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean with a 95 % interval over groups (`estimate_nested`); NaN with one group.

    Where every value is a group of its own this is Student's interval, or the ordinary bootstrap where that is wider.

    Args:
        values, groups: (n,).
    """
    values = np.asarray(values, dtype=np.float64)
    names = np.unique(groups)
    if len(names) < 2:
        mean = float(values.mean()) if len(values) else float("nan")
        return Estimate(mean, float("nan"), float("nan"), len(values))
    return estimate_nested([values[groups == name].tolist() for name in names], seed=seed)


def sign_flips(values: np.ndarray, *, seed: int = 0, resamples: int = 9999) -> float:
    """Two-sided p that the mean of paired differences is 0: their signs are flipped, prompt by prompt."""
    if not np.any(values):
        return 1.0
    rng = np.random.default_rng(seed)
    flips = rng.integers(0, 2, size=(resamples, len(values)), dtype=np.int8) * 2 - 1
    means = np.abs(flips @ values) / len(values)
    return float((1 + (means >= abs(values.mean()) - 1e-15).sum()) / (1 + resamples))
