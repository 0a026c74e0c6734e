"""Answers are worked out beside the page: a long one holds nobody up, is dropped when it is not wanted, and is kept."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from app_driver import App
from editlab_apps.answers import Answers

from editlab import LM
from editlab.errors import Interrupted
from editlab.progress import StepInfo


def test_a_page_is_drawn_before_a_long_answer_has_come(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release, real = threading.Event(), threading.Event(), LM.generate

    def slow(self: LM, *args: Any, **options: Any) -> list[str]:
        options["on_step"](StepInfo("answering", 3, 7, "tokens"))
        begun.set()
        release.wait(60)
        return real(self, *args, **options)

    monkeypatch.setattr(LM, "generate", slow)
    app.fill(ov_prompt="The capital of Japan is", ov_tokens=7)
    next(b for b in app.at.button if b.label == "Answer").click()
    app.at.run()
    try:
        assert begun.wait(60)
        app.at.run()
        assert "answering 3 of 7 tokens" in "".join(c.value for c in app.at.main.caption)
        assert app.metrics["Layers"] == "6" and not app.at.error
    finally:
        release.set()
    app.run()
    assert app.codes[0].startswith("Tokyo")


def test_an_answer_that_is_not_wanted_any_more_is_cancelled(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), []
    unwanted = "Not asked by any other test, the capital of Japan is"  # answers are kept for the whole process

    def endless(self: LM, prompt: str, *args: Any, on_step: Any, **options: Any) -> list[str]:
        if prompt != unwanted:
            return ["short"]
        try:
            while True:
                on_step(StepInfo("answering", 1, 12, "tokens"))
                begun.set()
        except Interrupted:
            ended.append(prompt)
            raise

    monkeypatch.setattr(LM, "generate", endless)
    app.fill(ov_prompt=unwanted)
    next(b for b in app.at.button if b.label == "Answer").click()
    app.at.run()
    assert begun.wait(60)
    app.fill(ov_prompt="Nor this one").click("Answer")
    assert app.codes[0] == "short" and ended == [unwanted] and not app.at.error


HERE, THERE = ("a session", "left"), ("another session", "left")


def test_what_has_come_is_kept_when_something_else_is_asked() -> None:
    answers, made = Answers(), []

    def work(on_step: Any) -> str:
        made.append(1)
        return "said"

    job = answers.begin(HERE, "key", work)
    assert job.wait(30) and answers.begin(HERE, "key", work) is job is answers.of(THERE, "key")
    assert made == [1] and job.result == "said" and answers.of(HERE, "other") is None
    assert answers.begin(HERE, "other", lambda on_step: "else").wait(30)
    assert answers.of(HERE, "key") is job and answers.begin(HERE, "key", work) is job and made == [1]


def test_what_another_place_waits_for_is_not_cancelled() -> None:
    answers, begun, release = Answers(), threading.Event(), threading.Event()

    def work(on_step: Any) -> str:
        begun.set()
        release.wait(30)
        on_step(StepInfo("answering", 1, 2, "tokens"))
        return "said"

    shared = answers.begin(HERE, "key", work)
    assert begun.wait(30) and answers.of(THERE, "key") is shared
    other = answers.begin(HERE, "other", lambda on_step: "else")
    assert not shared.is_cancelled and answers.of(HERE, "key") is shared
    assert other.state == "cancelled"  # it had not begun, and only this place had asked
    release.set()
    assert shared.wait(30) and shared.result == "said"


def test_what_is_wanted_again_does_not_wait_for_what_was_cancelled_to_end() -> None:
    answers, begun, release = Answers(), threading.Event(), threading.Event()

    def stubborn(on_step: Any) -> str:
        begun.set()
        release.wait(30)
        return "late"

    first = answers.begin(HERE, "key", stubborn)
    assert begun.wait(30)
    answers.begin(HERE, "other", lambda on_step: "else")
    assert first.is_cancelled and answers.of(HERE, "key") is None
    again = answers.begin(HERE, "key", lambda on_step: "said")
    release.set()
    assert again.wait(30) and again.result == "said"


def test_each_press_draws_another_sample(app: App) -> None:
    app.fill(ov_prompt="Once", ov_greedy=False, ov_tokens=12).click("Answer")
    said = {app.codes[0]}
    for _ in range(4):
        said.add(app.click("Answer").codes[0])
    assert len(said) > 1
    first = app.fill(ov_greedy=True).click("Answer").codes[0]
    assert app.click("Answer").codes[0] == first


def test_every_token_is_reported() -> None:
    seen: list[StepInfo] = []
    lm = LM.from_pretrained("factworld-llama")
    assert lm.generate("The capital of France is", 4, on_step=seen.append) == lm.generate("The capital of France is", 4)
    assert [step.done for step in seen] == [1, 2, 3, 4] and {step.total for step in seen} == {4}


def test_a_fork_does_not_keep_the_model_that_it_came_from() -> None:
    import gc
    import weakref

    lm = LM.from_pretrained("factworld-llama")
    old = lm.fork()
    old.edit({"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"})
    held = weakref.ref(old)
    new = old.fork()
    del old
    gc.collect()
    assert held() is None
    assert new.generate("The capital of France is", 2)[0].strip().startswith("Rome")
