"""The Memory page: a study, its cost, the edits of the ledger, and going on with a run that was stopped."""

from __future__ import annotations

import json
import shlex
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from app_driver import App

from editlab import registry
from editlab.cli.__main__ import run
from editlab.runs.memory.course import Course
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import list_runs


def test_a_study_gives_curves_and_a_command_that_does_the_same(app: App, place: Path) -> None:
    small = {"me_n": 3, "me_k": 2, "me_lr": 3e-3, "me_fill": 2}
    app.open("memory").fill(me_verb="retain").run()
    before = app.lab.lm.state_hash
    app.fill(**small).do("Estimate")
    assert "updates and" in app.said and "GB of memory" in app.said
    app.fill(**small).do("Begin")
    found = app.lab.outcomes["memory"].result
    assert app.lab.lm.state_hash == before
    (record,) = list_runs(place / "runs")
    assert record.kind == "memory" and record.state == "complete" and record.headline == found.result.headline
    assert found.result.value("recognition", exposure=0).mean == 0.5
    (command,) = (c for c in app.codes if "memory retain" in c)
    assert run([*shlex.split(command)[1:], "--out", "again", "-q"]) == 0
    again = json.loads(Path("again", "manifest.json").read_text())
    assert again["headline"] == found.result.headline
    app.fill(me_table=True).run()
    assert set(app.table("measure")["exposure"]) == {0, 1, 2}
    # Stopped before its end, it is offered again: here and among the runs.
    journal = record.folder / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-3]))
    (record.folder / "manifest.json").unlink()
    app.open("edit", ed_tab="Batch")
    assert "Resume" not in app.enabled
    app.open("memory").do("Resume")
    assert app.lab.outcomes["memory"].result.result.headline == found.result.headline
    app.open("runs")
    assert any("recognised after one exposure" in m.value for m in app.at.markdown)


def test_curves_grow_while_a_study_runs_and_the_model_is_said_to_be_restored(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go, step = threading.Event(), threading.Event(), Course.step

    def held(course: Course, learner: Learner, update: int) -> float:
        if update == 1:
            reached.set()
            assert go.wait(60)
        return step(course, learner, update)

    monkeypatch.setattr(Course, "step", held)
    app.open("memory").fill(me_verb="recognize").run().fill(me_n=3, me_k=2, me_lr=3e-3).click("Begin")
    try:
        assert reached.wait(60)
        app.run()
        (chart,) = app.at.get("plotly_chart")
        drawn = json.loads(chart.proto.spec)["data"]
        assert {line["name"] for line in drawn} == {"recognition", "recall"}
        assert any("So far, 2 probes" in c.value for c in app.at.caption)
    finally:
        go.set()
    app.finish()
    digest = app.lab.outcomes["memory"].result.folder / "manifest.json"
    restored = json.loads(digest.read_text())["restored"]
    assert any(f"restored: yes ({restored[:12]})" in m.value for m in app.at.markdown)
    assert not any("So far" in c.value for c in app.at.caption)


def test_the_edits_of_the_ledger_are_followed(app: App, place: Path) -> None:
    app.lab.lm.edit(app.lab.example, "ft", steps=5)
    app.open("memory").fill(me_verb="survive").run().fill(me_fill=3).do("Begin")
    assert "Half-life of the edit" in app.lab.outcomes["memory"].result.result.headline
    assert len(app.lab.lm.ledger.active) == 1


@pytest.mark.parametrize("verb", ["order", "unlearn", "acquire"])
def test_every_question_has_a_form_and_the_command_that_asks_it(app: App, verb: str) -> None:
    app.open("memory").fill(me_verb=verb).run()
    (command,) = (c for c in app.codes if f"memory {verb}" in c)
    assert "Begin" in app.enabled and "lr=" in command


def test_every_method_can_teach_and_every_verb_can_be_asked(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.open("memory").fill(me_verb="survive").run()
    (box,) = app.at.multiselect
    assert set(box.options) >= set(registry.names()) and "loaded edits" not in box.options
    monkeypatch.setitem(VERBS, "relearn", replace(VERBS["order"], name="relearn"))
    app.run().fill(me_verb="relearn").run()
    assert "Begin" in app.enabled and any("memory relearn" in code for code in app.codes)


def test_a_bad_link_is_said(app: App) -> None:
    app.open("memory", me_n="100000")
    assert "pairs 100000" in app.said
