"""What a page says when something cannot be had: one clear sentence, and nothing changed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from app_driver import App
from editlab_apps import work
from editlab_apps.jobs import JobManager

from editlab import LM, Fact
from editlab.errors import EditFailed, EditlabError, Interrupted
from editlab.progress import StepInfo


@pytest.mark.parametrize(
    ("filled", "said"),
    [
        ({"ed_subject": "Atlantis"}, "subject 'Atlantis' does not occur in the prompt"),
        ({"ed_target": "   "}, "target"),
        ({"ed_prompt": ""}, "prompt"),
        ({"ed_layers": "6"}, "There is no layer 6: factworld-llama has layers 0 to 5."),
        ({"ed_layers": "x"}, "x"),
    ],
)
def test_a_request_that_cannot_be_met(app: App, filled: dict[str, str], said: str) -> None:
    app.open("edit").fill(**filled).click("Preview edit").finish()
    (error,) = app.at.error
    assert said.lower() in app.said.lower() and error.value, app.said
    assert "Traceback" not in app.said and not app.lab.lm.ledger.active


def test_a_fact_that_the_model_does_not_know_is_not_traced(app: App) -> None:
    app.open("locate").fill(loc_prompt="The capital of France is", loc_answer="Tokyo", loc_n=2).do("Trace")
    (_,) = app.at.error
    assert "runs" not in [path.name for path in Path.cwd().iterdir()]


def test_another_job_of_the_tab_is_under_way(app: App) -> None:
    release = threading.Event()
    app.lab.start("other", "Waiting", lambda on_step: release.wait(60))
    try:
        app.open("edit")
        assert "Preview edit" not in app.enabled and "Undo last" not in app.enabled
        assert "Compute: Waiting" in app.sidebar
        with pytest.raises(EditlabError, match="Another job"):
            app.lab.start("again", "Waiting", lambda on_step: None)
    finally:
        release.set()
    app.finish()
    assert "Preview edit" in app.enabled and "Compute: idle" in app.sidebar


def test_a_cancelled_job_changes_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, after = threading.Event(), []

    def endless(on_step) -> None:
        for step in range(10**9):
            on_step(StepInfo("steps", step, 10**9, "steps"))
            begun.set()
            after.append(step)

    monkeypatch.setattr(work, "preview", lambda *args: endless)
    app.open("edit")
    state = app.lab.state
    app.click("Preview edit")
    assert begun.wait(30)
    app.run().click("Cancel").finish()
    assert "cancelled after" in app.said and not app.at.error
    assert app.lab.state == state and "Preview edit" in app.enabled
    count = len(after)
    threading.Event().wait(0.1)
    assert len(after) == count, "it goes on after it was cancelled"


def test_a_run_of_another_model_is_looked_at_and_not_put_in_force(app: App, place: Path) -> None:
    app.open("edit").do("Preview edit").click("Keep edit").click("Save work")
    (folder,) = (place / "runs").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"] |= {"hash": "0" * 64, "name": "another"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    other = App().open("runs")
    assert "This run belongs to another model." in other.said
    assert not {"Put its edits in force", "Evaluate"} & other.enabled


def test_a_damaged_run_is_listed_as_unreadable(app: App, place: Path) -> None:
    (place / "runs" / "bad").mkdir(parents=True)
    (place / "runs" / "bad" / "manifest.json").write_text("{")
    app.open("runs")
    assert list(app.table("run")["state"]) == ["unreadable"]


def _showing(error: Exception) -> App:
    """An app of one line, which shows an error."""
    from streamlit.testing.v1 import AppTest

    app = App()

    def script(error: Exception) -> None:
        from editlab_apps import errors

        errors.show(error)

    app.at = AppTest.from_function(script, args=(error,))
    return app.run()


def test_each_kind_of_error_has_its_words() -> None:
    memory = _showing(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"))
    assert "Memory ran out." in memory.said and "smaller" in memory.said
    failed = _showing(EditFailed("The loss is *not* finite.", "Try a smaller learning rate."))
    assert "The loss is *not* finite. Try a smaller learning rate." in failed.said
    cancelled = _showing(Interrupted("Editing: cancelled after 3 of 25 steps.", "Nothing was changed in the ledger."))
    assert not cancelled.at.error and "cancelled after 3 of 25 steps" in cancelled.said


def test_what_nobody_expected_comes_with_a_report_that_quotes_nothing() -> None:
    def fail(secret: str) -> None:
        raise ValueError(f"cannot read {secret}")

    try:
        fail("a private prompt")
    except ValueError as error:
        shown = _showing(error)
    assert "Something broke inside editlab." in shown.said and "Nothing was changed" not in shown.said
    (report,) = shown.codes
    assert "private" not in report and "ValueError" in report and "torch" in report and "in fail" not in report
    assert " fail" in report


def test_jobs_are_served_in_turn_and_one_that_fails_stops_nobody() -> None:
    manager, release, order = JobManager(), threading.Event(), []

    def first(on_step) -> str:
        release.wait(30)
        order.append("a")
        return "done"

    def broken(on_step) -> None:
        order.append("b")
        raise RuntimeError("broken")

    a = manager.submit("a", "A", first)
    b = manager.submit("b", "B", broken)
    c = manager.submit("c", "C", lambda on_step: order.append("c"))
    d = manager.submit("d", "D", lambda on_step: order.append("d"))
    assert manager.ahead_of(c) == 2 and "waiting" in c.text
    d.cancel()
    assert d.state == "cancelled" and not d.is_live
    release.set()
    assert all(job.wait(30) for job in (a, b, c))
    assert order == ["a", "b", "c"]
    assert (a.state, a.result, b.state, str(b.error), c.state) == ("done", "done", "failed", "broken", "done")
    manager.submit("a", "A again", lambda on_step: None).wait(30)


def test_a_job_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from editlab_apps import jobs

    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    job = jobs.Job("me", "Editing", lambda on_step: None)
    job.state = "running"
    job.on_step(StepInfo("tracing", 0, 10, "cells"))
    now[0] += 20
    job.on_step(StepInfo("tracing", 4, 10, "cells"))
    assert job.share == 0.4 and job.text == "tracing 4 of 10 cells, about 30 s left"
    # Another task: its rate is its own.
    job.on_step(StepInfo("scoring", 0, 3, "facts"))
    assert job.left is None and job.text == "scoring 0 of 3 facts"


def test_what_only_prepares_gives_way_and_goes_on_afterwards() -> None:
    manager, begun, ended, ran = JobManager(), threading.Event(), threading.Event(), []

    def prepare(on_step) -> None:
        ran.append("prepare")
        for step in range(10**9):
            on_step(StepInfo("reading", step))
            begun.set()
            if len(ran) > 2:
                ended.set()
                return

    manager.when_idle(prepare)
    assert begun.wait(30)
    job = manager.submit("a", "A", lambda on_step: ran.append("wanted"))
    assert manager.ahead_of(job) == 0
    assert job.wait(30) and job.state == "done" and ended.wait(30)
    assert ran == ["prepare", "wanted", "prepare"]


def test_a_model_is_prepared_for_its_first_edits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(place / "cache"))
    lm, seen = LM.from_pretrained("factworld-llama"), []
    work.prepare(lm)(seen.append)
    assert {step.task.split(" of ")[0] for step in seen} == {"key statistics"}
    seen.clear()
    for method in (work.FOR_ONE, work.FOR_MANY):
        work.preview(lm, Fact(prompt="The capital of {} is", subject="France", target_new="Rome"), method, {})(
            seen.append
        )
    assert not [step.task for step in seen if "statistics" in step.task]
