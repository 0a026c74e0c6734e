"""Loading a model: beside the pages, once for all who ask, and never in the way of what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_driver import App
from editlab_apps.jobs import JobManager
from editlab_apps.models import Models, Source, models

from editlab import LM
from editlab.progress import StepInfo


class Slow:
    """Loading that goes on until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.release, self.asked = threading.Event(), threading.Event(), []
        real = LM.from_pretrained

        def load(name: str | None, *, on_step: Any, **options: Any) -> LM:
            self.asked.append(name)
            on_step(StepInfo("fetching a wheel", 30, 120, "bytes"))
            self.begun.set()
            self.release.wait(60)
            return real(name, **options)

        monkeypatch.setattr(LM, "from_pretrained", load)


@pytest.fixture
def slow(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow(monkeypatch)
    yield found
    found.release.set()


def test_a_model_that_is_being_loaded_holds_nobody_up(app: App, slow: Slow) -> None:
    app.fill(ov_path="factworld-gpt2")
    next(b for b in app.at.button if b.label == "Load").click()
    app.at.run()
    assert slow.begun.wait(60)
    for _ in range(3):  # as often as somebody clicks about
        app.at.run()
    assert [h.value for h in app.at.header] == ["Loading the model"]
    assert "Stay with factworld-llama" in {b.label.replace("\\", "") for b in app.at.button}
    slow.release.set()
    app.run()
    assert slow.asked == ["factworld-gpt2"] and "factworld-gpt2" in app.sidebar


def test_who_stays_keeps_the_model_and_its_edits(app: App, slow: Slow) -> None:
    app.open("edit").do("Preview edit").click("Keep edit").click("Save work").open("overview")
    state = app.lab.state
    app.fill(ov_path="factworld-gpt2")
    next(b for b in app.at.button if b.label == "Load").click()
    app.at.run()
    job = app.at.session_state["editlab.coming"][1]
    next(b for b in app.at.button if b.label.startswith("Stay")).click()
    app.at.run()
    assert app.lab.state == state and "1 edit active" in app.sidebar
    slow.release.set()
    assert job.wait(60)  # transformers cannot load two models at a time, and other tests load some


def test_all_who_ask_wait_for_one(slow: Slow) -> None:
    own = Models(JobManager())
    jobs = [own.ask(Source("factworld-llama")) for _ in range(3)]
    assert slow.begun.wait(60) and jobs[0].share == 0.25
    slow.release.set()
    assert jobs[0].wait(60) and jobs[0].error is None, jobs[0].error
    assert jobs[0] is jobs[1] is jobs[2] is own.ask(Source("factworld-llama"))
    assert len(slow.asked) == 1


def test_a_name_that_is_no_model_leaves_the_old_one(app: App) -> None:
    app.fill(ov_path="factworld-llama").click("Load")
    _ask_for(app, "no/such-model")
    (error,) = app.at.error
    assert "no/such-model" in app.said and error.value
    assert "factworld-llama" in app.sidebar and app.metrics["Layers"] == "6"
    app.fill(ov_path="factworld-gpt2").click("Load")
    assert not app.at.error and "factworld-gpt2" in app.sidebar


def _ask_for(app: App, name: str) -> None:
    """As typed into the field, which AppTest cannot do."""
    app.at.session_state["editlab.coming"] = (Source(name), models().ask(Source(name)))
    app.run()


def test_another_sessions_model_does_not_take_this_ones(app: App) -> None:
    other = App().open().fill(ov_path="factworld-gpt2").click("Load")
    assert "factworld-gpt2" in other.sidebar
    app.open("edit").do("Preview edit").click("Keep edit")
    assert "factworld-llama" in app.sidebar and "1 edit active" in app.sidebar
    app.open("overview").fill(ov_tokens=2).click("Answer")
    assert [said[:4] for said in app.codes[:2]] == ["Pari", "Rome"]


def test_a_small_model_is_offered_where_none_could_be_had(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_MODEL", str(place / "nothing"))
    app = App().open()
    assert app.at.error
    app.click("Use factworld-llama")
    assert not app.at.error and app.metrics["Layers"] == "6"


def test_the_card_says_how_the_model_was_checked(app: App) -> None:
    card = app.table("property").set_index("property")["value"]
    assert card["Parity"].startswith("0.0e+00")
