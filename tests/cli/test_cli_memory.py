"""`editlab memory`: studies on a tiny model, what is written, what is refused, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cli_fixtures import Cli

TINY = ["items=4", "seeds=1", "exposures=2", "lr=3e-3", "block=16", "--kind", "letters"]


def test_retain_gives_curves_figures_and_a_run_that_can_be_gone_on_with(
    cli: Cli, model: Callable[..., Path], tmp_path: Path
) -> None:
    ended = cli("memory", "retain", *TINY, "--updates", "2", "-m", model(), "--out", tmp_path / "run", "--json", "-q")
    assert ended.code == 0, ended
    rows = pd.DataFrame(ended.data["rows"])
    zero = rows[(rows["exposure"] == 0) & (rows["measure"] == "recognition")].iloc[0]
    assert zero["mean"] == 0.5 == zero["chance"] and zero["n"] == 8
    assert set(rows["t"]) == {0, 1, 2}
    assert "recognised after one exposure" in ended.data["headline"]
    names = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")}
    assert names == {"manifest.json", "config.yaml", "results.parquet", "journal.jsonl", "figures"}
    # A kill after the last probe: the journal lacks its last line, the run its results.
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]))
    (tmp_path / "run" / "manifest.json").unlink()
    again = cli("resume", tmp_path / "run", "-m", model(), "--json", "-q")
    assert again.code == 0 and again.data["rows"] == ended.data["rows"]
    assert cli("resume", tmp_path / "run", "-m", model(), "--json", "-q").data["state"] == "finished"
    (tmp_path / "run" / "manifest.json").write_text("{}")
    assert cli("resume", tmp_path / "run").code == 7
    journal.write_text(lines[0].replace('"verb"', '"werb"') + "".join(lines[1:]))
    assert cli("resume", tmp_path / "run").code == 7
    listed = cli("ls", "runs", "--json")
    assert listed.code == 0


def test_recall_is_shown_as_a_table(cli: Cli, model: Callable[..., Path]) -> None:
    ended = cli("memory", "recall", *TINY, "-m", model(), "-q")
    assert ended.code == 0, ended
    assert "ROUGE-2" in ended.out and "50.0%" in ended.out and "Run:" in ended.out
    assert "One seed" in ended.out


def test_an_estimate_runs_nothing(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    ended = cli("memory", "recognize", *TINY, "-m", model(), "--estimate", "--json", "-q")
    assert ended.code == 0 and ended.data["updates"] == 4 and ended.data["memory"] > 0
    assert not (tmp_path / "runs").exists()


def test_calibrate_says_what_it_chose(cli: Cli, model: Callable[..., Path]) -> None:
    rates = ["--lr", "1e-6", "--lr", "1e-2", "--aim", "0.5"]
    ended = cli("memory", "calibrate", *TINY, "exposures=20", *rates, "-m", model(), "--json", "-q")
    assert ended.code == 0 and ended.data["chosen"] == 1e-2
    assert [p["lr"] for p in ended.data["points"]] == [1e-6, 1e-2]


def test_texts_and_edits_of_ones_own(cli: Cli, model: Callable[..., Path], run_of, tmp_path: Path) -> None:
    lines = "\n".join(f"{word} is a line of text" for word in ("one", "two", "six", "ten"))
    (tmp_path / "mine.txt").write_text(lines)
    small = ["seeds=1", "exposures=1", "block=16", "-m", model(), "-q", "--json", "--out", tmp_path / "run"]
    ended = cli("memory", "recognize", "--file", tmp_path / "mine.txt", "--edits", run_of(), *small)
    assert ended.code == 0, ended
    assert (tmp_path / "run" / "start" / "pack.json").is_file()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state_hash"] != manifest["base"]["hash"]


def test_order_asks_about_texts_of_ones_own(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"Sentence {i} of it is a short one." for i in range(40)))
    small = ["items=4", "words=64", "length=8", "exposures=1", "seeds=1", "block=32", "-m", model(), "--json", "-q"]
    ended = cli("memory", "order", "--file", book, *small)
    assert ended.code == 0, ended
    assert "letters cancelled" in ended.data["headline"] and ended.data["rows"][0]["chance"] == 0.5
    refused = cli("memory", "order", "length=80", *small[:2], "-m", model(), "-q")
    assert refused.code == 2 and "more than four times" in refused.err


def test_every_setting_is_listed(cli: Cli) -> None:
    ended = cli("memory", "settings", "retain")
    assert ended.code == 0 and "counterbalance" in ended.out and "opt_state" in ended.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["retain", "--preset", "standart"], "Did you mean 'standard'"),
        (["recall", "--kind", "poem"], "no kind 'poem'"),
        (["recall", "--kind", "letters", "--file", "x.txt"], "exclude each other"),
        (["recall", "--file", "x.txt"], "There is no file 'x.txt'"),
        (["recall", "lr=0"], "'lr' = 0"),
        (["recall", "itms=3"], "Did you mean 'items'"),
        (["retain", "filler_text=none.txt", "items=2", "seeds=1"], "There is no text file"),
        (["settings", "retina"], "Did you mean 'retain'"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(
    cli: Cli, model: Callable[..., Path], arguments: list[str], sentence: str
) -> None:
    where = [] if arguments[0] == "settings" else ["-m", model()]
    ended = cli("memory", *arguments, *where, "-q")
    assert ended.code == 2 and sentence in ended.err, ended
