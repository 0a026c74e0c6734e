"""The Channels page: a scan, a component tried and kept as an edit, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_driver import App
from editlab_apps import channel_work
from tiny_lm import make_lm

from editlab.probes.channels.lists import ListScores
from editlab.probes.channels.parts import Part
from editlab.progress import silent
from editlab.runs.records import list_runs


def test_a_scan_a_trial_and_an_edit_kept(app: App, place: Path) -> None:
    app.open("channels")
    assert "Nothing scanned yet" in app.said
    app.do("Scan all pairs")
    (run,) = list_runs(place / "runs")
    assert run.kind == "channels" and "None of them is shown to do anything yet" in run.headline
    table = app.table("rank1_share")
    assert set(table["status"]) == {"weight-only"} and table["score"].max() > 0
    app.open("channels", ch_tab="Component", ch_comp="1.0.0").fill(ch_scale=0.0).do("Try it")
    state = app.lab.state
    app.click("Keep as an edit")
    assert app.lab.state != state and "removed: 1.0.0" in app.sidebar
    app.open("channels", ch_tab="Test")
    assert "The model has changed since this scan" in app.said
    app.lab.lm.undo()
    assert app.lab.state == state


def test_a_task_that_does_not_suit_the_model_and_a_part_that_is_none_are_refused(app: App) -> None:
    app.open("channels", ch_tab="Component", ch_comp="nonsense")
    assert "names no head" in app.said
    app.open("channels", ch_tab="Steer", ch_parts="1.0").click("Steer")
    assert "made of components" in app.said and app.lab.job is None
    app.fill(ch_parts="9.9.9").click("Steer")
    assert "There is no 9.9.9 in this model" in app.said
    app.open("channels", ch_tab="Component", ch_comp="nonsense")
    app.fill(ch_comp="99.0.0").run()
    assert "There is no 99.0.0 in this model" in app.said


@pytest.mark.parametrize("heads", [1, 4])
def test_controls_of_a_component_are_drawn_and_never_itself(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama", num_attention_heads=heads, num_key_value_heads=heads)
    drawn, draw = [], channel_work.control_writers
    monkeypatch.setattr(channel_work, "control_writers", lambda *a, **k: drawn.extend(draw(*a, **k)) or drawn)
    part = Part(1, 0, 0)
    rows = channel_work.trial(lm, part, 0.0, "the sea", "repeats", 4)(silent).rows.set_index("scaled")
    assert len(drawn) == channel_work.CONTROLS and len({str(w.directions) for w in drawn}) == len(drawn)
    assert {w.layer for w in drawn} == {1} and {len(w.directions) for w in drawn} == {1}
    margins = rows["margin"].tolist()
    assert list(rows.index) == ["as it is", "1.0.0", "6 random ones (mean)"] and len(set(margins)) == 3


def test_a_trial_says_chance_and_an_interval() -> None:
    picks = np.array([0, 1, 1, 2])
    scores = ListScores(picks, np.array([0, 1, 2, 3]), np.full(4, 4), np.zeros(4), np.zeros(4))
    row = channel_work._effect("as it is", [scores], among_all=False)
    assert row["right"] == 0.5 and row["chance"] == 0.25 and row["n"] == 4
    assert 0 < row["95 % from"] < 0.5 < row["to"] < 1
