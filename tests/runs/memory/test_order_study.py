"""Sequence order recall in the harness: its conditions, what study adds, and going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_lm import make_lm

from editlab.lm import LM
from editlab.progress import StepInfo
from editlab.runs.journal import Journal
from editlab.runs.memory.order import OrderSettings, order_courses
from editlab.runs.memory.ordered import OrderResult
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.verbs import VERBS

SMALL = OrderSettings(items=8, words=100, length=8, seeds=2, exposures=2, lr=3e-3, block=96)


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama", max_position_embeddings=2048)


def order(lm: LM, settings: OrderSettings, folder: Path, **options) -> OrderResult:
    return run_memory(lm, VERBS["order"], settings, folder, **options)


def test_every_pair_is_asked_in_sight_before_and_after_study(lm: LM, tmp_path: Path) -> None:
    result = order(lm, SMALL, tmp_path / "run")
    assert lm.state_hash == lm.base_hash
    rows = result.rows
    assert rows.groupby(["seed", "condition", "bin"]).size().tolist() == [2] * 2 * 3 * 4
    assert set(rows["condition"]) == {"in context", "none", "studied"}
    loss = rows.groupby("condition")["text_loss"].mean()
    assert loss["studied"] < loss["none"] - 0.5 and loss["in context"] == loss["none"]
    assert rows[rows["condition"] == "in context"]["recency"].isna().all()
    assert result.value("none").n == 16 and result.value("none", distance=result.bins[0]).n == 4
    wide = rows.pivot(index=["seed", "item"], columns="condition", values="debiased")
    assert result.effect.mean == (wide["studied"] - wide["none"]).mean()
    assert "chance 50 %, n = 16 pairs, 4 texts, 2 seeds" in result.headline and "Study adds" in result.remarks()[0]
    assert result.bins == ["8 to 24", "25 to 33", "34 to 49", "50 or more"]
    assert {t.name.split(" ")[0] for t in result.plot().data if t.name} == {"in", "none", "studied"}
    assert "25 to 33" in result.table()
    assert (tmp_path / "run" / "figures" / "order.json").is_file()


def test_without_learning_study_adds_exactly_nothing(lm: LM, tmp_path: Path) -> None:
    result = order(lm, SMALL.model_copy(update={"seeds": 1, "lr": 1e-30}), tmp_path / "run")
    wide = result.rows.pivot(index="item", columns="condition", values=["d_a", "d_b", "association"])
    for column in ("d_a", "d_b", "association"):
        assert (wide[column, "studied"] == wide[column, "none"]).all()
    assert result.effect.mean == 0


def test_a_stopped_run_is_gone_on_with(lm: LM, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: StepInfo) -> None:
        if step.task == "training" and step.done == 3:
            raise Stop

    settings = SMALL.model_copy(update={"seeds": 1, "items": 4, "exposures": 4})
    order(lm, settings, tmp_path / "whole")
    with pytest.raises(Stop):
        order(lm, settings, tmp_path / "broken", on_step=stop)
    order(lm, settings, tmp_path / "broken")
    whole, broken = (
        [{k: v for k, v in e.items() if k != "seconds"} for e in Journal(tmp_path / name).events]
        for name in ("whole", "broken")
    )
    assert whole == broken


def test_settings_that_fit_no_text_are_refused(lm: LM) -> None:
    with pytest.raises(ValueError, match="more than four times"):
        OrderSettings(words=80, length=20)
    assert [c.updates for c in order_courses(lm, SMALL)] == [4, 4]
