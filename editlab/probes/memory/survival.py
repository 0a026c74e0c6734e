"""How long items live: Kaplan and Meier's estimate over items that were there at t = 0, and the log-rank test.

An item ends at the first probe that no longer finds it; one that every probe finds is censored at the last. As nothing
is censored before, the estimate is the share that is still alive. The half-life is the first time at which no more than
half are.

Several lifetimes of one item (under different streams of training, or after different ways of teaching it) are no
independent draws. So items are resampled with all their lifetimes; and the log-rank statistic, the sum over times of
deaths of one group less what is expected if both die alike, is compared with what it would be had the two groups'
lifetimes of any items been exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

EXACT = 14  # items up to which all exchanges are tried
DRAWS = 100_000


@dataclass(frozen=True)
class Lifetimes:
    """When the items of one curve ended.

    Attributes:
        times: (T,) of the probes, ascending. alive: (n, T) whether no probe up to then missed it. unit: (n,) whose
            lifetime it is.
    """

    times: np.ndarray
    alive: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(cls, times: Sequence[float], found: np.ndarray, unit: Sequence[int] | np.ndarray | None = None) -> Lifetimes:
        """From (n_items, n_times) yes or no; items that are not there at the first time are left out."""
        alive = np.logical_and.accumulate(np.asarray(found, bool), axis=1)
        units = np.arange(len(alive)) if unit is None else np.asarray(unit)
        return cls(np.asarray(times, float), alive[alive[:, 0]], units[alive[:, 0]])

    @property
    def n(self) -> int:
        """Lifetimes."""
        return len(self.alive)

    @property
    def share(self) -> np.ndarray:
        """(T,) still alive, of those that were there at the first time; NaN without items."""
        return self.alive.mean(0) if self.n else np.full(self.times.size, np.nan)

    @property
    def half_life(self) -> float:
        """Infinity if more than half of the items outlive the last probe, NaN without items."""
        return float(_half_lives(self.times, self.share[None])[0]) if self.n else float("nan")

    def half_life_interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 %, by resampling items; NaN with fewer than two."""
        units, of = np.unique(self.unit, return_inverse=True)
        if units.size < 2:
            return float("nan"), float("nan")
        living = np.zeros((units.size, self.times.size))
        np.add.at(living, of, self.alive.astype(float))
        sizes = np.bincount(of)
        draws = np.random.default_rng(seed).multinomial(units.size, np.full(units.size, 1 / units.size), resamples)
        halves = _half_lives(self.times, (draws @ living) / (draws @ sizes)[:, None])
        low, high = np.quantile(halves, [0.025, 0.975], method="nearest")
        return float(low), float(high)

    def differs_from(self, other: Lifetimes, seed: int = 0) -> float:
        """Two-sided p that both live equally long; NaN if either has no item or none ended."""
        both = (self, other)
        if not (self.n and other.n) or all(group.alive.all() for group in both):
            return float("nan")
        units = np.union1d(self.unit, other.unit)
        risk, deaths = (np.stack(x) for x in zip(*(_counts(group, units) for group in both), strict=True))
        # (groups, units, T - 1); what is expected of a unit is its share of those at risk times all deaths.
        at_risk = risk.sum((0, 1))
        expected = risk * np.divide(deaths.sum((0, 1)), at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
        excess = (deaths - expected).sum(2)
        each = (excess[0] - excess[1]) / 2  # exchanging a unit's lifetimes turns its sign
        n = units.size
        if n <= EXACT:
            signs = np.array(list(product((1.0, -1.0), repeat=n)))
            return float((np.abs(signs @ each) >= abs(each.sum()) - 1e-9).mean())
        signs = np.random.default_rng(seed).choice([1.0, -1.0], (DRAWS, n))
        return float((1 + (np.abs(signs @ each) >= abs(each.sum()) - 1e-9).sum()) / (1 + DRAWS))


def _counts(group: Lifetimes, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(units, T - 1) lifetimes at risk before each later probe, and those that it ended."""
    of = np.searchsorted(units, group.unit)
    before, after = group.alive[:, :-1].astype(float), group.alive[:, 1:].astype(float)
    risk, deaths = np.zeros((units.size, before.shape[1])), np.zeros((units.size, before.shape[1]))
    np.add.at(risk, of, before)
    np.add.at(deaths, of, before - after)
    return risk, deaths


def _half_lives(times: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(k,) first time at which each of (k, T) shares is at one half or less."""
    low = shares <= 0.5 + 1e-12
    return np.where(low.any(1), times[low.argmax(1)], np.inf)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for several tests; NaN stays, and does not count."""
    values = np.asarray(p, float)
    order = [i for i in np.argsort(values) if np.isfinite(values[i])]
    out, highest = values.copy(), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        out[i] = highest
    return out.tolist()
