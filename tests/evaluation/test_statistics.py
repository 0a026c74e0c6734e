"""Intervals and tests against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from editlab.evaluation.metrics.counterfact import harmonic
from editlab.evaluation.statistics import (
    adjusted,
    estimate,
    estimate_joint,
    estimate_nested,
    estimate_nested_joint,
    paired,
)


def test_shares_get_wilson_s_interval() -> None:
    e = estimate([1.0] * 10)
    assert (e.mean, e.n, e.method) == (1.0, 10, "wilson")
    assert (e.low, e.high) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_other_means_are_resampled_by_item_and_the_seed_decides() -> None:
    x = list(np.random.default_rng(0).normal(3, 1, 400))
    e = estimate(x)
    assert e.method == "bootstrap" and e.low < e.mean < e.high
    # The normal interval of the mean, which this must be near for 400 values.
    half = 1.96 * np.std(x, ddof=1) / math.sqrt(len(x))
    assert (e.low, e.high) == pytest.approx((e.mean - half, e.mean + half), abs=0.02)
    assert estimate(x, seed=0) == e and estimate(x, seed=1) != e


def test_one_value_has_no_interval_and_none_is_not_a_number() -> None:
    assert math.isnan(estimate([0.3]).low) and estimate([0.3]).mean == 0.3
    assert math.isnan(estimate([]).mean) and estimate([]).n == 0
    assert math.isnan(estimate([0.1, float("nan")]).mean)


def test_joint_means_are_of_the_data_set_and_not_of_items() -> None:
    es, ps, ns = [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]
    e = estimate_joint([es, ps, ns], harmonic)
    assert e.mean == pytest.approx(3 / (1 / 0.5 + 1 / 1 + 1 / 0.75))
    with_gap = estimate_joint([[1.0, 0.0, 1.0], [1.0, 1.0, math.nan], [0.5, 1.0, 1.0]], harmonic)
    assert with_gap.mean == pytest.approx(3 / (1 / (2 / 3) + 1 / 1 + 1 / (2.5 / 3)))


def test_the_paired_test_sees_a_difference_that_is_the_same_for_every_item() -> None:
    a = list(np.random.default_rng(0).normal(0, 5, 30))
    found = paired(a, [x + 0.5 for x in a])
    assert found.difference.mean == pytest.approx(0.5)
    assert found.p < 0.001


def test_the_paired_test_is_exact_for_few_items() -> None:
    # All four signs must agree: 2 of 16 assignments are as extreme.
    assert paired([0, 0, 0, 0], [1, 2, 3, 4]).p == pytest.approx(2 / 16)


def test_equal_runs_do_not_differ() -> None:
    found = paired([1.0, 0.0], [1.0, 0.0])
    assert found.p == 1.0 and found.difference.mean == 0


def test_p_values_are_adjusted_for_their_number() -> None:
    assert adjusted([0.01, 0.04, 0.5]) == pytest.approx([0.03, 0.06, 0.5])
    assert adjusted([]) == []


def test_items_of_groups_that_differ_are_less_sure_than_items_alone() -> None:
    rng = np.random.default_rng(0)
    groups = [list(centre + 0.01 * rng.normal(size=50)) for centre in (0.0, 1.0, 2.0, 3.0)]
    flat = [x for group in groups for x in group]
    nested, alone = estimate_nested(groups), estimate(flat)
    assert (nested.method, nested.n) == ("group jackknife", 200)
    assert nested.mean == pytest.approx(alone.mean) == pytest.approx(1.5, abs=0.01)
    # Groups of one size: Student's interval of their means.
    known = stats.ttest_1samp([np.mean(g) for g in groups], 0).confidence_interval(0.95)
    assert (nested.low, nested.high) == pytest.approx((known.low, known.high))
    assert estimate_nested(groups) == nested


@pytest.mark.parametrize("n_groups", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 2.0], ids=["groups alike", "groups apart"])
def test_intervals_over_few_groups_hold_what_they_promise(n_groups: int, spread: float) -> None:
    rng = np.random.default_rng(n_groups)
    covered = []
    for _ in range(250):
        groups = (spread * rng.normal(size=(n_groups, 1)) + rng.normal(size=(n_groups, 8))).tolist()
        plain = estimate_nested(groups)
        shifted = estimate_nested_joint([[g] for g in groups], lambda a: a + 1.0)
        covered.append([plain.low <= 0 <= plain.high, shifted.low <= 1 <= shifted.high])
    assert (np.mean(covered, 0) >= 0.92).all()  # a resampling of groups covers 56 %, 71 % and 80 % where they are apart


@pytest.mark.parametrize("sizes", [(6, 6, 6), (3, 6, 12, 24)], ids=["equal", "unequal"])
def test_shares_over_few_groups_are_covered_and_stay_shares(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    level = np.array([0.2, 0.4, 0.6, 0.8])
    covered = 0
    for _ in range(250):
        groups = [(rng.random(n) < rng.choice(level)).astype(float).tolist() for n in sizes]
        e = estimate_nested(groups)
        assert 0 <= e.low <= e.mean <= e.high <= 1
        covered += e.low <= 0.5 <= e.high
    assert covered / 250 >= 0.92


def test_an_interval_never_leaves_the_bounds_that_it_is_given() -> None:
    groups = [[0.2, 0.25, 0.1], [0.9, 0.8, 0.95]]
    free, bound = estimate_nested(groups), estimate_nested(groups, within=(0.0, 1.0))
    assert free.low < 0 and free.high > 1 and (bound.low, bound.high) == (0.0, 1.0)
    joint = estimate_nested_joint([[g] for g in groups], lambda a: a, within=(0.0, 1.0))
    assert (joint.low, joint.high) == (0.0, 1.0)


def test_groups_alike_by_chance_are_no_surer_than_their_items() -> None:
    items = estimate([0.25, 0.75, 0.25, 0.75])
    same = estimate_nested([[0.25, 0.75], [0.75, 0.25]])
    assert (same.low, same.high) == (items.low, items.high)


def test_groups_weigh_by_their_items() -> None:
    found = estimate_nested([[0.0] * 90, [1.0] * 10])
    assert found.mean == pytest.approx(0.1) and 0.0 <= found.low < found.mean < found.high <= 1.0
    same = estimate_nested([[0.25, 0.75] * 30, [0.25, 0.75] * 30])  # groups alike: items are what is not known
    items = estimate([0.25, 0.75] * 60)
    assert (same.low, same.high) == pytest.approx((items.low, items.high), abs=0.04)


def test_groups_that_no_resampling_can_doubt_get_wilson_s_interval() -> None:
    assert estimate_nested([[1.0] * 5, [1.0] * 5]) == estimate([1.0] * 10)
    assert estimate_nested([[1.0, 0.0, 1.0], []]) == estimate([1.0, 0.0, 1.0])
    assert estimate_nested([]).n == 0
    assert math.isnan(estimate_nested([[1.0, math.nan], [0.0]]).low)


def test_tests_and_intervals_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(3)
    a = list(rng.normal(size=40))
    b = [x + y for x, y in zip(a, rng.normal(0.3, 1, 40), strict=True)]
    found = paired(a, b)
    assert paired(a, b) == found and paired(a, b, seed=1).difference != found.difference
    back = paired(b, a)
    assert back.difference.mean == pytest.approx(-found.difference.mean) and back.p == pytest.approx(found.p, abs=0.02)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert paired([0.0, 0.0], [1.0, 2.0]).p == 0.5  # two of four signs are as extreme
    assert paired([1.0], [2.0]).p == 1.0


def test_seeds_reach_every_interval() -> None:
    x = np.random.default_rng(0).random(24).tolist()
    alike = [x, x[::-1]]  # nothing between groups, so that the interval is that over items
    for interval in (
        lambda seed: estimate(x, seed=seed),
        lambda seed: estimate_nested([x], seed=seed),
        lambda seed: estimate_nested(alike, seed=seed),
        lambda seed: estimate_nested_joint([[g] for g in alike], lambda a: a, seed=seed),
        lambda seed: estimate_nested_joint([[x]], lambda a: a, seed=seed),
    ):
        assert interval(0) == interval(0)
        assert (interval(0).low, interval(0).high) != (interval(1).low, interval(1).high)
        assert interval(0).mean == interval(1).mean


def test_too_few_complete_items_bear_no_interval() -> None:
    nan = float("nan")
    found = estimate_nested_joint([[[1.0, nan], [2.0, 3.0]], [[nan], [4.0]]], lambda a, b: a + b)
    assert (found.mean, found.n) == (4.0, 1) and np.isnan(found.low) and np.isnan(found.high)
