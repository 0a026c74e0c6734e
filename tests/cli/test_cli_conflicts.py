"""`editlab conflicts`: each command on a fact world, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from cli_fixtures import Cli

WORLD = ["-m", "factworld-llama", "--subjects", "20", "--draws", "1", "-q"]


@pytest.fixture(autouse=True)
def little_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 2)


def test_probe_gives_rates_and_a_figure(cli: Cli, tmp_path: Path) -> None:
    asked = ["capital", "--formats", "reversed", "--flow", "--evidence", *WORLD, "--subjects", "14"]
    ended = cli("conflicts", "probe", *asked, "--out", tmp_path / "r", "--json")
    assert ended.code == 0, ended
    rows = pd.DataFrame(ended.data["rows"]).set_index("condition")
    assert list(rows.index) == ["closed-book", "substitution", "agreeing", "reversed", "irrelevant"]
    assert rows.loc["closed-book", "memory"] == 1 and "facts known" in ended.data["headline"]
    assert len(pd.read_parquet(tmp_path / "r" / "results.parquet")) == len(rows)
    assert {p.stem for p in (tmp_path / "r" / "figures").glob("*.json")} == {"shares", "flow"}
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["config"]["command"] == "probe" and manifest["config"]["subjects"] == 14
    assert manifest["kind"] == "conflicts" and "largest changes" in manifest["flow"]["headline"]
    assert manifest["evidence"]["rows"][0]["evidence"] == "closed-book"


def test_heads_ranks_every_head(cli: Cli, tmp_path: Path) -> None:
    # All 20 subjects: with the six of the discovery split, hardly any head is named after the correction.
    ended = cli("conflicts", "heads", "--relation", "capital", "--all-subjects", *WORLD, "--out", tmp_path / "h")
    assert ended.code == 0, ended
    first = ended.out.splitlines()[1].split()
    assert first[0] in ("4.4", "4.5", "4.6", "4.7")  # one key-value group recalls
    assert first[5:7] == ["True", "recall"]
    assert len(pd.read_parquet(tmp_path / "h" / "results.parquet")) == 48
    config = json.loads((tmp_path / "h" / "manifest.json").read_text())["config"]
    assert config["draws"] == 1 and config["scores"]["draws"] == 2


def test_kept_pruning_is_an_edit_that_can_be_undone(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "p"
    ended = cli("conflicts", "prune", "controls=2", "grid=[1,4]", "--keep", "best", "--transfer", "language,reversed",
                *WORLD, "--out", run, "--json")  # fmt: skip
    assert ended.code == 0, ended
    assert ended.data["kept_heads"] == ended.data["heads"][str(ended.data["best"])]
    assert [row["where"] for row in ended.data["transfer"]] == ["language", "reversed"]
    assert {"random heads of the same layers, K=4", "closed-book"} <= {row["condition"] for row in ended.data["rows"]}
    again = cli("conflicts", "probe", "capital", "--edits", run, *WORLD, "--json")
    assert again.code in (0, 2)  # pruned of its recall heads it may know too little to be asked
    undone = cli("undo", run, "-q", "--json")
    assert undone.code == 0 and undone.data["is_base"] and undone.data["removed"] == ended.data["kept"]


def test_heads_can_be_kept_by_name(cli: Cli, tmp_path: Path) -> None:
    ended = cli(
        "conflicts", "prune", "controls=0", "grid=[1]", "--keep", "1.2, 3.0", *WORLD, "--out", tmp_path / "p", "--json"
    )
    assert ended.code == 0 and ended.data["kept_heads"] == ["1.2", "3.0"], ended


def test_compare_has_a_row_per_lever_and_edits_a_row_per_state(cli: Cli, tmp_path: Path) -> None:
    ended = cli("conflicts", "compare", "grid=[1,3]", "--to", "memory", "--no-juice", *WORLD, "--json")
    assert ended.code == 0, ended
    assert {"plain", "instruction", "CAD", "AdaCAD", "PH3-style", "closed-book"} <= {
        r["lever"] for r in ended.data["rows"]
    }
    edited = cli("conflicts", "compare", "layer=2", "steps=8", "--edit", "ft", "--facts", "2", *WORLD, "--json")
    assert edited.code == 0, edited
    assert [r["condition"] for r in edited.data["rows"]][:2] == ["closed-book, before", "closed-book, after"]
    assert len(edited.data["heads"]["after"]) == 48


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["probe", "capitol"], "capital"),
        (["prune", "ablation=mean", "--keep", "best"], "no bias to put it in"),
        (["probe", "capital", "--formats", "poem"], "no context format 'poem'"),
        (["heads", "--estimand", "guess"], "estimand"),
        (["heads", "draws=9"], "draws"),
        (["prune", "--to", "nowhere"], "direction"),
        (["prune", "--keep", "all"], "'all' is no head"),
        (["prune", "controls=0", "grid=[1]", "--transfer", "moon"], "neither a relation nor a format"),
        (["compare", "--edit", "magic"], "no method 'magic'"),
        (["probe", "--file", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(cli: Cli, arguments: list[str], sentence: str) -> None:
    ended = cli("conflicts", *arguments, *WORLD)
    assert ended.code == 2 and sentence in ended.err, ended


def test_a_model_that_knows_nothing_is_refused(cli: Cli, model: object) -> None:
    ended = cli("conflicts", "probe", "capital", "-m", model("llama"), "-q")  # type: ignore[operator]
    assert ended.code == 2 and "at least six known subjects are needed" in ended.err
