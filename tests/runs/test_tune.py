"""Tuning: every point is scored as edits are, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_fixtures import ROWS, Cli
from invented_rows import write_lines
from scipy.stats import hmean
from tiny_lm import make_lm

from editlab import Fact, registry
from editlab.config import build
from editlab.errors import ConfigError, RequestError
from editlab.runs.tune import METRICS, default_grid, has_locality, tune

FACTS = [Fact(**row, paraphrases=["It is said that"]) for row in ROWS]
FACTS = [f.model_copy(update={"neighbours": ("Otto plays the",), "target_true": "x"}) for f in FACTS]


@pytest.fixture
def settings(quick: list[str]) -> dict[str, Any]:
    pairs = (pair.partition("=") for pair in quick)
    return {name: [yaml.safe_load(value)] for name, _, value in pairs if name != "layer"}


def test_points_are_ranked_by_the_mean_that_is_documented(settings: dict[str, Any]) -> None:
    lm = make_lm("llama")
    seen: list[int] = []
    found = tune(lm, FACTS, "rome", {"layer": [0, 1], **settings}, on_row=lambda rows: seen.append(len(rows)))
    assert len(lm.ledger) == 0 and lm.state_hash == lm.base_hash
    assert sorted(found["layer"]) == [0, 1] and seen == [1, 2]
    assert found["score"].is_monotonic_decreasing and (found["n"] == 3).all()
    for row in found.to_dict("records"):
        assert row["score"] == pytest.approx(hmean([row[m] for m in METRICS]))
        fork = lm.fork()
        for fact in FACTS:
            entry = fork.edit(fact, "rome", layer=row["layer"], **{k: v[0] for k, v in settings.items()})
            fork.undo(entry.id)
        by_hand = fork.evaluate(FACTS, metrics=METRICS, mode="single")
        assert [row[m] for m in METRICS] == pytest.approx([by_hand[m].edited.mean for m in METRICS])


def test_a_batch_is_scored_together(settings: dict[str, Any]) -> None:
    lm = make_lm("llama")
    found = tune(lm, FACTS, "memit", {"layers": [[0], [1]], **settings}, batch=True)
    assert len(found) == 2 and (found["failed"] == 0).all()


def test_without_neighbours_there_is_no_locality_to_rank_by(settings: dict[str, Any]) -> None:
    bare = [f.model_copy(update={"neighbours": ()}) for f in FACTS]
    assert has_locality(FACTS) and has_locality(FACTS, batch=True) and not has_locality(bare)
    # In one edit of all facts, a neighbour that is one of them is no neighbour.
    others = [f.model_copy(update={"neighbours": (g.text,)}) for f, g in zip(FACTS, FACTS[1:] + FACTS[:1], strict=True)]
    assert has_locality(others) and not has_locality(others, batch=True)
    found = tune(make_lm("llama"), others, "memit", {"layers": [[0]], **settings}, batch=True)
    assert found["neighbourhood_same"].isna().all()


def test_what_cannot_be_tuned_is_said(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no fact"):
        tune(make_lm("llama"), [], "rome")
    lm = make_lm("llama")
    lm.edit(FACTS[0], "ft", layer=1, steps=2)
    with pytest.raises(ConfigError, match="unedited model"):
        tune(lm, FACTS, "rome")


@pytest.mark.parametrize("method", registry.names())
def test_the_default_grid_is_of_the_method(method: str) -> None:
    grid = default_grid(make_lm("llama"), method)
    build(registry.get(method).Config, {name: values[0] for name, values in grid.items()}, method)


def test_the_default_grid_of_a_model_of_one_layer_has_that_layer() -> None:
    lm = make_lm("llama", num_hidden_layers=1)
    assert lm.adapter.n_layers == 1
    assert default_grid(lm, "rome") == {"layer": [0]} and default_grid(lm, "memit")["layers"] == [[0]]


def test_a_fact_that_cannot_be_edited_is_a_failed_one_and_the_others_are_scored(settings: dict[str, Any]) -> None:
    lm = make_lm("gpt2")
    too_long = FACTS[0].model_copy(update={"prompt": "word " * 600 + "{} is"})
    found = tune(lm, [*FACTS[:2], too_long], "rome", {"layer": [0, 1], **settings})
    assert list(found["failed"]) == [1, 1] and list(found["n"]) == [3, 3]
    with pytest.raises(RequestError, match="the model reads 512"):
        tune(lm, [too_long], "rome", {"layer": [0], **settings})
    with pytest.raises(RequestError, match="one fact at a time"):
        tune(lm, FACTS, "rome", {"layer": [0], **settings}, batch=True)


def test_on_the_command_line(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    grid = [f"{n}=[{v}]" for n, _, v in (pair.partition("=") for pair in quick) if n != "layer"]
    head = ["tune", "--file", facts, "-m", model()]
    done = cli(*head, "--out", tmp_path / "run", "layer=[0,1]", *grid, "--json")
    assert done.code == 0 and len(done.data["points"]) == 2 and done.data["best"]["layer"] in (0, 1)
    assert (tmp_path / "run" / "manifest.json").exists()
    assert done.data["ranked_by_locality"] is True
    no_neighbours = write_lines(
        tmp_path / "bare.jsonl", [{k: v for k, v in r.items() if k != "neighbours"} for r in ROWS]
    )
    bare = cli("tune", "--file", no_neighbours, "-m", model(), "--out", tmp_path / "bare", "layer=[1]", *grid)
    assert bare.code == 0 and "ranked by efficacy and paraphrases alone" in bare.err
    again = cli("tune", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again", "--json")
    assert again.code == 0 and again.data["points"] == done.data["points"]
    assert cli(*head, "layer=1").code == 2
    assert cli(*head, "mood=[1]").code == 2
