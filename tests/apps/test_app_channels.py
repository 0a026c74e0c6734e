"""The Channels page: a scan, a component tried and kept as an edit, and what is refused."""

from __future__ import annotations

from pathlib import Path

from app_driver import App

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
