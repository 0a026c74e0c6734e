"""How long items live: Kaplan and Meier's estimate over items that were there at t = 0, and the log-rank test.

An item ends at the first probe that no longer finds it. One that every probe finds is censored at the last. The half-
life is the first time at which no more than half of the items are expected to live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Lifetimes:
    """When the items of one curve ended.

    Attributes:
        ends: (n,) time of the probe that first missed each item, or of the last probe. seen: whether it ended at all.
    """

    ends: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, times: Sequence[float], alive: np.ndarray) -> Lifetimes:
        """From (n_items, n_times) yes or no; items that are not there at the first time are left out."""
        found = np.asarray(alive, bool)
        found = found[found[:, 0]]
        lost = ~found
        seen = lost.any(1)
        index = np.where(seen, lost.argmax(1), len(times) - 1)
        return cls(np.asarray(times, float)[index], seen)

    @property
    def half_life(self) -> float:
        """Infinity if more than half of the items outlive the last probe, NaN without items."""
        if not self.ends.size:
            return float("nan")
        if not self.seen.any():
            return float("inf")
        found = stats.ecdf(self._censored).sf
        below = np.flatnonzero(found.probabilities <= 0.5 + 1e-12)
        return float(found.quantiles[below[0]]) if below.size else float("inf")

    @property
    def _censored(self) -> stats.CensoredData:
        return stats.CensoredData(uncensored=self.ends[self.seen], right=self.ends[~self.seen])

    def half_life_interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 %, by resampling items."""
        n = self.ends.size
        if n < 2:
            return float("nan"), float("nan")
        rng = np.random.default_rng(seed)
        halves = []
        for _ in range(resamples):
            i = rng.integers(0, n, n)
            halves.append(Lifetimes(self.ends[i], self.seen[i]).half_life)
        low, high = np.quantile(halves, [0.025, 0.975], method="nearest")
        return float(low), float(high)

    def differs_from(self, other: Lifetimes) -> float:
        """p of the log-rank test that both live equally long; NaN if either has no item or none ended."""
        if not (self.ends.size and other.ends.size and (self.seen.any() or other.seen.any())):
            return float("nan")
        return float(stats.logrank(self._censored, other._censored).pvalue)
