"""What scores would be without any channel: from geometry, and from pairs of heads that cannot speak to each other.

1. Isotropic null, in closed form. For directions spread evenly over n dimensions, with energies w of the writing head
   and tau of the reading one, alpha = sum w^2 and beta = sum tau^2:

       E[CS^2] = 1/n,    Var[CS^2] = 2 (alpha - 1/n)(beta - 1/n) / ((n - 1)(n + 2)),    cos^2 ~ Beta(1/2, (n - 1)/2).

   A trained model's residual stream is far from isotropic, so this null calls a third of all pairs outliers.
2. Backward null. A head cannot write to an earlier layer, but shares the stream's anisotropy with those that can: the
   scores of pairs in the wrong order are what chance gives here. p = (1 + #{backward >= x}) / (1 + #backward).
   It knows nothing of how far apart the layers are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

BINS = 20_000


def isotropic(alpha: np.ndarray, beta: np.ndarray, n: int) -> tuple[float, np.ndarray]:
    """Mean and variance of the squared composition score."""
    return 1 / n, 2 * (alpha - 1 / n) * (beta - 1 / n) / ((n - 1) * (n + 2))


def p_cosine(cosine: np.ndarray, n: int) -> np.ndarray:
    """Probability that two independent directions in n dimensions agree so far, either sign."""
    return stats.beta.sf(np.square(cosine), 0.5, (n - 1) / 2)


@dataclass(eq=False)
class Tail:
    """How often the null gave so much; filled piece by piece and never larger than its histogram.

    Scores lie between 0 and 1. One that falls into a bin counts as all of that bin, so p is never too small.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    @property
    def n(self) -> int:
        """Scores that it holds."""
        return int(self.counts.sum())

    def add(self, scores: np.ndarray) -> None:
        """Take in more scores of the null."""
        self.counts += np.bincount(self._bin(scores).ravel(), minlength=len(self.counts))

    def p(self, scores: np.ndarray) -> np.ndarray:
        """(1 + #{null >= x}) / (1 + n), elementwise; NaN where the null is empty."""
        if not self.n:
            return np.full(np.shape(scores), np.nan)
        at_least = np.append(self.counts[::-1].cumsum()[::-1], 0)
        return (1 + at_least[self._bin(scores)]) / (1 + self.n)

    def quantile(self, share: float) -> float:
        """The smallest bound (a bin's upper edge) below which at least this share of the null lies."""
        below = self.counts.cumsum()
        return float((np.searchsorted(below, share * below[-1]) + 1) / len(self.counts)) if self.n else float("nan")

    def _bin(self, scores: np.ndarray) -> np.ndarray:
        return np.clip((scores * len(self.counts)).astype(np.int64), 0, len(self.counts) - 1)


def robust(values: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 times the median absolute deviation."""
    middle = np.median(values, axis=axis, keepdims=True)
    spread = 1.4826 * np.median(np.abs(values - middle), axis=axis)
    return middle.squeeze(axis), spread


def adjusted_top(p: np.ndarray, n_tests: int) -> np.ndarray:
    """Benjamini-Hochberg over `n_tests` tests of which only the smallest p-values are at hand; never too small."""
    order = np.argsort(p, kind="stable")
    raw = p[order] * n_tests / (1 + np.arange(len(p)))
    found = np.empty_like(raw)
    found[order] = np.minimum(1.0, np.minimum.accumulate(raw[::-1])[::-1])
    return found
