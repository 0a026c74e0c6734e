"""Texts that a model has no positions for are refused before anything is promised; what just fits is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import Cli
from tiny_lm import make_lm

from editlab.errors import ConfigError
from editlab.lm import LM
from editlab.runs.memory.calibrate import calibrate
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.verbs import VERBS

SMALL: dict[str, dict[str, Any]] = {
    "retain": {"items": 2, "seeds": 1, "times": (1,), "filler_batch": 1, "kinds": ("sentence",)},
    "acquire": {"passages": 1, "injections": 1, "after": 3, "seeds": 1, "filler_batch": 1},
    "unlearn": {"items": 4, "seeds": 1, "kinds": ("sentence",), "alphas": (1.0,)},
    "order": {"items": 4, "words": 100, "length": 8, "seeds": 1, "exposures": 1},
    "survive": {"engines": ("train",), "items": 2, "seeds": 1, "times": (1,), "filler_batch": 1, "exposures": 1},
}


def with_positions(n: int) -> LM:
    return make_lm("llama", max_position_embeddings=n)


@pytest.mark.parametrize("name", SMALL)
def test_the_longest_text_fits_to_the_token(name: str, facts: Path, tmp_path: Path) -> None:
    verb = VERBS[name]
    given = SMALL[name] | ({"file": str(facts)} if name == "survive" else {})
    settings = verb.settings(**given)
    longest = max(course.longest for course in verb.laid_out(with_positions(4096), settings))
    lm = with_positions(longest)
    for course in verb.laid_out(lm, settings):
        assert course.measure(Learner(lm), 0)
    said: list[str] = []
    with pytest.raises(ConfigError, match=f"has {longest:,} tokens, and .* reads {longest - 1:,} at most"):
        run_memory(with_positions(longest - 1), verb, settings, tmp_path / "run", on_cost=said.append)
    assert not said and not (tmp_path / "run").exists()


def test_rates_are_not_tried_on_texts_that_do_not_fit() -> None:
    settings = StudySettings(items=2, seeds=1, kinds=("sentence",))
    with pytest.raises(ConfigError, match="reads 10 at most"):
        calibrate(with_positions(10), settings)


def test_order_promises_nothing_that_a_small_world_cannot_read(cli: Cli, tmp_path: Path) -> None:
    for more in (["--estimate"], ["-o", tmp_path / "run"]):
        ended = cli("memory", "order", "-m", "factworld-llama", "-q", *more, "seeds=1")
        assert ended.code == 2 and "factworld-llama reads 512 at most" in ended.err and "'words'" in ended.err
        assert "minutes" not in ended.out + ended.err
    assert not (tmp_path / "run").exists()
