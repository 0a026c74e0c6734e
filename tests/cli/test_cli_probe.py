"""`editlab probe` and `editlab ls probes`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cli_fixtures import Cli

from editlab import registry


def test_probes_are_listed_with_their_settings(cli: Cli) -> None:
    ended = cli("ls", "probes", "--json")
    assert [row["name"] for row in ended.data["probes"]] == registry.names("probes")
    assert all(row["summary"] for row in ended.data["probes"])
    assert [row["name"] for row in cli("ls", "probes", "next-token", "--json").data["settings"]] == ["k"]


def test_a_probe_prints_and_keeps_what_it_found(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("In the sea\n\nThe old town\n", encoding="utf-8")
    ended = cli(
        "probe", "next-token", "k=3", "--prompt", "Once", "--file", tmp_path / "prompts.txt", "-m", model(),
        "--out", tmp_path / "run", "--json", "-q",
    )  # fmt: skip
    assert ended.code == 0, ended
    rows = pd.DataFrame(ended.data["rows"])
    assert list(rows["prompt"].unique()) == ["Once", "In the sea", "The old town"]
    assert len(rows) == 9
    assert len(pd.read_parquet(tmp_path / "run" / "results.parquet")) == 9
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["headline"]) == ("probe", ended.data["headline"])


def test_facts_are_prompts_too(cli: Cli, model: Callable[..., Path], facts: Path, tmp_path: Path) -> None:
    ended = cli("probe", "next-token", "k=1", "--file", facts, "-m", model(), "--out", tmp_path / "run", "--json", "-q")
    assert ended.code == 0, ended
    assert len(ended.data["rows"]) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "--prompt", "x"], "There is no probe 'nothing'."),
        (["next-token"], "There is no prompt."),
        (["next-token", "k=0", "--prompt", "x"], "'k' = 0"),
        (["next-token", "--file", "missing.txt"], "'missing.txt' cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(cli: Cli, words: list[str], said: str) -> None:
    ended = cli("probe", *words, "-m", "no-such-model")
    assert ended.code == 2
    assert said in ended.err
