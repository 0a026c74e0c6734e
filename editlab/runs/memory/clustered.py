"""Means over items whose unit is another: a passage with its probes, a text with its pairs, a fact in streams."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from editlab.evaluation.statistics import Estimate, estimate, estimate_nested, estimate_nested_joint


def over_clusters(
    values: Sequence[float] | np.ndarray,
    cluster: Sequence[Hashable],
    *,
    within: tuple[float, float] | None = None,
    is_share: bool = True,
) -> Estimate:
    """The mean over items; its interval takes all items of a cluster as one draw.

    Clusters of one item each are the items. Where all items are the same yes or no, the interval is Wilson's over
    clusters. With one cluster it is over its items, and says nothing of others.

    Args:
        cluster: of each item. within: bounds that the mean cannot leave. is_share: items of 0 and 1 are yes or no, as
            those of a difference that has no -1 are not.
    """
    x = np.asarray(values, float)
    names = list(dict.fromkeys(cluster))
    groups = [x[[c == name for c in cluster]] for name in names]
    if not is_share:
        return estimate_nested_joint([[g.tolist()] for g in groups], np.asarray, within=within)
    if len(names) == len(x):
        return estimate(x.tolist())
    found = estimate_nested([g.tolist() for g in groups], within=within)
    if found.method == "wilson" and len(names) > 1:
        return replace(estimate([float(g[0]) for g in groups]), n=found.n)
    return found


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two independent estimates; the interval is made of theirs (MOVER, doi 10.1002/sim.2779, section 2)."""
    mean = a.mean - b.mean
    below = np.hypot(a.mean - a.low, b.high - b.mean)
    above = np.hypot(a.high - a.mean, b.mean - b.low)
    return Estimate(mean, mean - float(below), mean + float(above), a.n, "of two intervals")
