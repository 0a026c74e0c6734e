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


def auc(studied: ArrayLike, foils: ArrayLike, w: np.ndarray | None = None, v: np.ndarray | None = None) -> np.ndarray:
    """The share of all pairings that are told apart.

    Args:
        w, v: (..., n) weights of the studied texts and of the foils, which sum to 1; default alike. A resample of the
            texts is one row of weights.
    """
    a, b = np.asarray(studied, float), np.asarray(foils, float)
    told = (1 - np.sign(a[:, None] - b[None])) / 2
    return np.asarray(np.einsum("...i,ij,...j->...", _weights(a, w), told, _weights(b, v), optimize=True))


def _weights(x: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    return np.full(x.size, 1 / x.size) if given is None else given


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


def margin(
    studied: ArrayLike, foils: ArrayLike, w: np.ndarray | None = None, v: np.ndarray | None = None
) -> np.ndarray:
    """Distance of the mean losses in pooled standard deviations, with weights as in `auc`; NaN where nothing varies."""
    means, variances = [], []
    for losses, given in ((studied, w), (foils, v)):
        x = np.asarray(losses, float)
        weights = _weights(x, given)
        mean = np.asarray(weights @ x)
        means.append(mean)
        variances.append((weights * (x - mean[..., None]) ** 2).sum(-1) * x.size / max(x.size - 1, 1))
    pooled = np.sqrt((variances[0] + variances[1]) / 2)
    return np.divide(means[1] - means[0], pooled, out=np.full(pooled.shape, np.nan), where=pooled > 0)
