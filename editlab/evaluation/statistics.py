"""Estimates with their intervals, and the test of one run against another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over items with its 95 % interval.

    Attributes:
        n: items it rests on. method: "wilson", "bootstrap" or "nested bootstrap" (percentile, over items; nested: over
            groups too), "" without an interval: fewer than two items that are more than yes or no, or not finite.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str = ""


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value per item.

    Shares of yes and no get Wilson's interval, which stays honest at 0 and 1; everything else is resampled by item.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        return Estimate(float(x.mean()) if x.size else float("nan"), float("nan"), float("nan"), int(x.size))
    if np.isin(x, (0.0, 1.0)).all():
        found = stats.binomtest(int(x.sum()), x.size).proportion_ci(LEVEL, method="wilson")
        return Estimate(float(x.mean()), float(found.low), float(found.high), int(x.size), "wilson")
    return _resampled((x,), lambda a: a.mean(axis=-1), seed)


def estimate_nested(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """The mean over items that are nested in groups, such as the items of several seeds; groups weigh by their items.

    Groups are resampled, then items within them. Where every item has the same yes or no, which no resampling can
    doubt, the interval is Wilson's over all items; with one group it is over items alone.
    """
    rows = [np.asarray(g, dtype=np.float64) for g in groups if len(g)]
    x = np.concatenate(rows) if rows else np.empty(0)
    if len(rows) < 2 or (x == x[0]).all() or not np.isfinite(x).all():
        return estimate(x.tolist(), seed=seed)
    return _interval(float(x.mean()), _nested_means([row[None] for row in rows], seed)[0], x.size)


def estimate_nested_joint(
    groups: Sequence[Sequence[Sequence[float]]], combine: Callable[..., np.ndarray], *, seed: int = 0
) -> Estimate:
    """`estimate_joint` over items that are nested in groups: groups are resampled, then items within them.

    Args:
        groups: of each group, its columns: values over the same items, NaN where an item has none.
    """
    rows = [np.asarray(columns, dtype=np.float64) for columns in groups]
    x = np.concatenate(rows, axis=1)  # (columns, items)
    if len(rows) < 2:
        return estimate_joint(x.tolist(), combine, seed=seed)
    point = float(combine(*(np.asarray(column[~np.isnan(column)].mean()) for column in x)))
    complete = [row[:, ~np.isnan(row).any(axis=0)] for row in rows]
    n = sum(row.shape[1] for row in complete)
    if n < 2:
        return Estimate(point, float("nan"), float("nan"), n)
    return _interval(point, combine(*_nested_means([row for row in complete if row.size], seed)), n)


def _nested_means(rows: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """(columns, RESAMPLES) means of groups (columns, items) that are resampled, and items within them."""
    rng = np.random.default_rng(seed)
    sums, sizes = np.zeros((rows[0].shape[0], RESAMPLES)), np.zeros(RESAMPLES)
    for _ in rows:
        chosen = rng.integers(0, len(rows), RESAMPLES)
        for i, row in enumerate(rows):
            draws = np.flatnonzero(chosen == i)
            sums[:, draws] += row[:, rng.integers(0, row.shape[1], (draws.size, row.shape[1]))].sum(-1)
            sizes[draws] += row.shape[1]
    return np.asarray(sums / sizes)


def _interval(point: float, resampled: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(point, float(low), float(high), n, "nested bootstrap")


def estimate_joint(
    columns: Sequence[Sequence[float]], combine: Callable[..., np.ndarray], *, seed: int = 0
) -> Estimate:
    """A function of several means over the same items; NaN where an item has no value.

    Each mean is over the items that have a value; the interval is over those that have all of them.

    Args:
        combine: takes one array of means per column, and gives their combination elementwise.
    """
    x = np.asarray(columns, dtype=np.float64)  # (columns, items)
    complete = x[:, ~np.isnan(x).any(axis=0)]
    found = _resampled(tuple(complete), lambda *parts: combine(*(part.mean(axis=-1) for part in parts)), seed)
    point = combine(*(np.asarray(column[~np.isnan(column)].mean()) for column in x))
    return replace(found, mean=float(point))


def _resampled(columns: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], seed: int) -> Estimate:
    n = columns[0].size
    if n < 2:
        return Estimate(float(statistic(*columns)) if n else float("nan"), float("nan"), float("nan"), n)
    point = float(statistic(*columns))
    found = stats.bootstrap(
        columns,
        lambda *parts, axis=-1: statistic(*parts),
        paired=len(columns) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // n),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(point, float(found.low), float(found.high), n, "bootstrap")


@dataclass(frozen=True)
class Paired:
    """The mean difference b - a over the same items.

    Attributes:
        p: two-sided permutation test that swaps a and b within items (exact for few items).
    """

    difference: Estimate
    p: float


def paired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Paired:
    """Test whether two runs differ on the items that both have."""
    d = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    # No Wilson here: a difference is no share.
    difference = _resampled((d,), lambda x: x.mean(axis=-1), seed)
    if d.size < 2 or not d.any():
        return Paired(difference, 1.0)
    test = stats.permutation_test(
        (d,),
        lambda x, axis=-1: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=max(1, 2_000_000 // d.size),
        rng=np.random.default_rng(seed),
    )
    return Paired(difference, float(test.pvalue))


def adjusted(p: Sequence[float]) -> list[float]:
    """p-values of several metrics, adjusted for their number (Benjamini-Hochberg)."""
    return [float(q) for q in stats.false_discovery_control(list(p))] if len(p) else []
