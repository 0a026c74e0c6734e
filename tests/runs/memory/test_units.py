"""What intervals and levels of memory rest on: whole passages and texts, other groups, and what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from editlab.evaluation.statistics import Estimate, estimate
from editlab.probes.memory.recognition import auc
from editlab.runs.memory.clustered import difference, over_clusters
from editlab.runs.memory.curves import StudyResult
from editlab.runs.memory.order import OrderSettings
from editlab.runs.memory.ordered import OrderResult
from editlab.runs.memory.settings import StudySettings


def test_intervals_over_clusters_cover_other_clusters() -> None:
    rng, covered = np.random.default_rng(0), {"clusters": 0, "items": 0}
    cluster = np.repeat(np.arange(6), 4)
    for _ in range(200):
        values = rng.normal(0, 1, 6)[cluster] + rng.normal(0, 0.5, 24)
        for name, e in (("clusters", over_clusters(values, cluster.tolist())), ("items", estimate(values.tolist()))):
            covered[name] += e.low <= 0 <= e.high
    assert covered["clusters"] >= 185 and covered["items"] <= 150


def test_clusters_that_say_nothing_else_than_items() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert over_clusters(values, [0, 1, 2, 3]) == estimate(values)
    # All right: as sure as the number of texts allows, not that of pairs.
    sure = over_clusters([1.0] * 24, [i // 4 for i in range(24)])
    assert (sure.low, sure.high, sure.n) == (estimate([1.0] * 6).low, 1.0, 24)
    assert difference(Estimate(3, 2, 5, 9), Estimate(1, 0.25, 2, 9)) == Estimate(
        2, pytest.approx(2 - np.hypot(1, 1)), pytest.approx(2 + np.hypot(2, 0.75)), 9, "of two intervals"
    )


def order_rows(right: list[list[int]]) -> pd.DataFrame:
    """Rows of pairs, four a text, that are told rightly or not without the text; studying turns none."""
    return pd.DataFrame(
        {"seed": 0, "condition": condition, "item": 4 * text + i, "text": text, "bin": i, "distance": 30,
         "debiased": float(x), "raw": 0.5, "says_a": 1.0, "association": 0.5,
         "recency": 0.5, "bias": 1.0, "mass": 0.9, "text_loss": 2.0}
        for condition in ("none", "studied") for text, pairs in enumerate(right) for i, x in enumerate(pairs)
    )  # fmt: skip


@pytest.mark.parametrize("source", [None, "book.txt"])
def test_texts_are_the_unit_of_order_and_only_invented_ones_have_a_chance_level(source: str | None) -> None:
    rows = order_rows([[1, 1, 1, 1], [0, 0, 0, 0]] * 3)
    result = OrderResult(rows, OrderSettings(seeds=1, file=source), "m")
    found, as_pairs = result.value("none"), estimate([1.0] * 12 + [0.0] * 12)
    assert found.mean == 0.5 and found.n == 24
    assert found.high - found.low > 2 * (as_pairs.high - as_pairs.low) * 0.9
    assert ("chance 50 %" in result.headline) == (source is None)
    assert ("without the text 50%" in result.headline) == (source is not None)
    assert (result.effect.mean, result.effect.low, result.effect.high) == (0, 0, 0)


def study_rows(seeds: int, directions: str) -> pd.DataFrame:
    """Losses of eight pairs before and after one exposure; texts b are by themselves likelier."""
    out: list[dict[str, Any]] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        base = {"a": rng.normal(4.5, 0.2, 8), "b": rng.normal(4.2, 0.2, 8)}
        for direction in directions:
            for exposure in (0, 1):
                for side in "ab":
                    studied = side == direction
                    for item in range(8):
                        loss = base[side][item] - 0.2 * exposure * studied
                        out.append(
                            {"kind": "prose", "seed": seed, "direction": direction, "item": item, "exposure": exposure,
                             "t": np.nan if exposure == 0 else 0.0, "role": "studied" if studied else "foil",
                             "loss": loss, "base_loss": base[side][item], "exact": 0, "hits": 0.5, "prefix": 0.1}
                        )  # fmt: skip
    return pd.DataFrame(out)


def test_without_counterbalancing_the_level_is_what_was_measured_before_any_study() -> None:
    settings = StudySettings(counterbalance=False, seeds=1, exposures=1)
    result = StudyResult(study_rows(1, "a"), settings, "m")
    before = result.value("recognition", exposure=0).mean
    assert before < 0.4  # texts b are likelier
    assert result.level("recognition") == before and "chance" not in result.headline
    assert f"before any study {before:.1%}, not counterbalanced" in result.headline
    curve = result.curve.set_index(["exposure", "measure"])
    assert curve.loc[(1, "recognition"), "chance"] == before
    assert curve.loc[(1, "AUC"), "chance"] == result.value("AUC", exposure=0).mean
    assert curve.loc[(1, "recognition by gain"), "chance"] == 0.5
    (line,) = [s.y0 for s in result.figures()["exposures"].layout.shapes]
    assert line == before
    both = StudyResult(study_rows(1, "ab"), StudySettings(seeds=1, exposures=1), "m")
    assert both.level("recognition") == 0.5 and "chance 50 %" in both.headline


def test_auc_over_seeds_speaks_of_other_seeds() -> None:
    rows = study_rows(3, "ab")
    result = StudyResult(rows, StudySettings(seeds=3, exposures=1), "m")
    each = []
    for _, of_seed in rows[rows["exposure"] == 1].groupby("seed"):
        runs = []
        for _, run in of_seed.groupby("direction"):
            losses = [run[run["role"] == role]["loss"].to_numpy() for role in ("studied", "foil")]
            runs.append(float(auc(*losses)))
        each.append(np.mean(runs))
    found = result.value("AUC", exposure=1)
    half = stats.t.ppf(0.975, 2) * np.std(each, ddof=1) / np.sqrt(3)
    assert found.mean == pytest.approx(np.mean(each))
    assert found.low <= found.mean - half + 1e-9 and found.high >= min(1.0, found.mean + half) - 1e-9
