"""Recognition: does the model tell what it studied from what it did not, by their losses? (arXiv 2303.17557)

    acc      share of pairs whose studied text has the smaller loss; a tie counts one half (the paper's, but for ties)
    auc      the same over every studied text with every foil: Mann and Whitney's U over n m
    acc_cal  share of pairs whose studied text lost more since before the study: plausibility and length cancel; one
             half before any study
    d'       sqrt(2) times the normal quantile of acc, with 1/(2N) in place of 0 and of 1
    margin   how far the mean losses of foils and studied texts are apart, in their pooled standard deviation

Chance is one half for acc only if both texts of every pair were studied in turn (see `editlab.data.stimuli`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CHANCE = 0.5


def prefers(studied: ArrayLike, foils: ArrayLike) -> np.ndarray:
    """(n,) 1 where the studied text has the smaller loss, 0 where the foil has, 0.5 for a tie."""
    return (1 - np.sign(np.asarray(studied, float) - np.asarray(foils, float))) / 2


def auc(studied: ArrayLike, foils: ArrayLike) -> float:
    """The share of all pairings that are told apart."""
    a, b = np.asarray(studied, float), np.asarray(foils, float)
    return float(stats.mannwhitneyu(-a, -b).statistic / (a.size * b.size))


def gained(studied: ArrayLike, foils: ArrayLike, studied_before: ArrayLike, foils_before: ArrayLike) -> np.ndarray:
    """(n,) as `prefers`, of how much less each text costs than before the study."""
    changes = [
        np.asarray(after, float) - np.asarray(before, float)
        for after, before in ((studied, studied_before), (foils, foils_before))
    ]
    return prefers(*changes)


def d_prime(accuracy: float, n: int) -> float:
    """Sensitivity from the accuracy over `n` pairs."""
    inside = min(max(accuracy, 1 / (2 * n)), 1 - 1 / (2 * n))
    return float(np.sqrt(2) * stats.norm.ppf(inside))


def margin(studied: ArrayLike, foils: ArrayLike) -> float:
    """Distance of the mean losses in pooled standard deviations."""
    a, b = np.asarray(studied, float), np.asarray(foils, float)
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2) if min(a.size, b.size) > 1 else 0.0
    return float((b.mean() - a.mean()) / pooled) if pooled > 0 else float("nan")
