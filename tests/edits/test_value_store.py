"""Kept values: found again for the same question, and only for the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_several import FACTS, quick  # noqa: F401
from tiny_lm import make_lm

from editlab import LM
from editlab.edits import value_store
from editlab.edits.settings import LocateEditSettings
from editlab.edits.values import Target
from editlab.rows import essence_row, rewrite_row

SETTINGS = LocateEditSettings(lr=0.3, steps=5, clamp=2)


def target(lm: LM, i: int) -> Target:
    rows = (rewrite_row(lm, FACTS[i], sink=True),)
    return Target(rows, essence_row(lm, FACTS[i], sink=True), torch.full((lm.adapter.d_model,), 0.5))


@pytest.fixture
def optimised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many targets were optimised, call by call, in a fresh cache."""
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    calls: list[int] = []
    run = value_store.optimise_all

    def counting(lm: LM, layer: int, targets: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(targets))
        return run(lm, layer, targets, *args, **options)

    monkeypatch.setattr(value_store, "optimise_all", counting)
    return calls


def test_a_value_is_optimised_once(optimised: list[int]) -> None:
    lm = make_lm("llama")
    first = value_store.values_of(lm, 1, [target(lm, 0), target(lm, 1)], SETTINGS)
    other = make_lm("llama")  # the same weights in another object
    again = value_store.values_of(other, 1, [target(lm, 1), target(lm, 2), target(lm, 0)], SETTINGS)
    assert optimised == [2, 1]
    assert torch.equal(again[0].delta, first[1].delta) and torch.equal(again[2].delta, first[0].delta)
    assert again[0].losses == first[1].losses and again[0].clamped == first[1].clamped
    assert not torch.equal(again[1].delta, first[0].delta)


def test_reading_a_store_does_not_write_to_it(optimised: list[int], tmp_path: Path) -> None:
    lm = make_lm("llama")
    value_store.values_of(lm, 1, [target(lm, 0)], SETTINGS)
    store = tmp_path / "values.sqlite"
    os.utime(store, (0, 0))
    value_store.values_of(lm, 1, [target(lm, 0)], SETTINGS)
    assert store.stat().st_mtime == 0 and optimised == [1, 0]


@pytest.mark.parametrize("what", ["weights", "edits", "layer", "steps", "clamp", "fact", "context", "essence"])
def test_another_question_is_another_value(what: str, optimised: list[int]) -> None:
    lm = make_lm("llama")
    value_store.values_of(lm, 1, [target(lm, 0)], SETTINGS)
    asked, layer, settings = target(lm, 0), 1, SETTINGS
    if what == "weights":
        lm = make_lm("gpt2")
        asked = target(lm, 0)
    elif what == "edits":
        lm.edit(FACTS[1], "ft", layer=1, steps=2)
    elif what == "layer":
        layer = 0
    elif what == "fact":
        asked = target(lm, 1)
    elif what == "context":
        asked = Target((rewrite_row(lm, FACTS[0], context="The sea", sink=True),), asked.essence, asked.reference)
    elif what == "essence":
        asked = Target(asked.rows, None, asked.reference)
    else:
        settings = SETTINGS.model_copy(update={what: 3})
    value_store.values_of(lm, layer, [asked], settings)
    assert optimised == [1, 1]


def test_batches_that_were_finished_survive_one_that_was_not(
    optimised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import editlab.edits.values as values

    lm = make_lm("llama")
    targets = [target(lm, i) for i in range(3)]
    run, calls = values.optimise, []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args, **options)

    monkeypatch.setattr(values, "optimise", failing)
    whole = values.optimise_all
    monkeypatch.setattr(value_store, "optimise_all", lambda *a, **k: whole(*a, **k, max_tokens=1))
    with pytest.raises(KeyboardInterrupt):
        value_store.values_of(lm, 1, targets, SETTINGS)
    calls.append(0)
    found = value_store.values_of(lm, 1, targets, SETTINGS)
    assert len(found) == 3 and calls == [1, 1, 1, 0, 1]  # one was left


def test_methods_share_values(quick: dict[str, Any], optimised: list[int]) -> None:  # noqa: F811
    lm = make_lm("llama")
    lm.edit(FACTS, "memit", layer=1, **quick)
    lm.undo()
    lm.edit(FACTS, "emmet", layer=1, **quick)
    lm.undo()
    lm.edit(FACTS[:2], "alphaedit", layer=1, **quick)
    lm.undo()
    assert sum(optimised) == optimised[0]  # all of them in the first edit
