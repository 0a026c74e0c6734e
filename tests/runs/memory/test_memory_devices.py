"""Training on a pretended device, stopped and gone on with: no operation mixes two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_lm import make_lm

from editlab import LM
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.unlearn import UnlearnSettings
from editlab.runs.memory.verbs import VERBS

ROWS = [(5, 6, 7, 8, 9), (9, 8, 7)]


def test_an_optimiser_is_restored_where_the_weights_are(there: Callable[[LM], LM], tmp_path: Path) -> None:
    learner = Learner(there(make_lm("llama", num_hidden_layers=2)))
    for _ in range(2):
        learner.step(ROWS, 1e-2)
    learner.save(tmp_path / "state.safetensors", {})
    after = learner.step(ROWS, 1e-2), learner.step(ROWS, 1e-2), learner.distance()
    learner.restore()
    learner.load(tmp_path / "state.safetensors")
    assert (learner.step(ROWS, 1e-2), learner.step(ROWS, 1e-2), learner.distance()) == after


def test_study_and_forgetting(there: Callable[[LM], LM], tmp_path: Path) -> None:
    lm = there(make_lm("llama", num_hidden_layers=2))
    few = {"kinds": ("letters",), "seeds": 1, "exposures": 2, "lr": 3e-3, "block": 16}
    assert run_memory(
        lm, VERBS["retain"], StudySettings(items=2, times=(1, 2), batch=2, **few), tmp_path / "a"
    ).headline
    settings = UnlearnSettings(items=4, alphas=(2.0, 50.0, 2.0), **few)
    assert run_memory(lm, VERBS["unlearn"], settings, tmp_path / "b").headline
