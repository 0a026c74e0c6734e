"""`editlab channels` as command lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixtures import Cli
from tiny_lm import make_lm

from editlab import LM


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose tokenizer suits the tasks."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "probes" / "channels"))
    from word_lm import word_lm

    return word_lm().save_pretrained(tmp_path_factory.mktemp("words") / "model")


def test_scan_ranks_and_leaves_a_run(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = cli("channels", "scan", "-m", model(), "--mode", "q", "--rows", "5", "--out", run, "--json", "-q")
    assert ended.code == 0 and len(ended.data["rows"]) == 5
    first = ended.data["rows"][0]
    assert first["mode"] == "q" and first["status"] == "weight-only" and 0 < first["rank1_share"] <= 1
    assert (
        (run / "manifest.json").is_file()
        and (run / "results.parquet").is_file()
        and (run / "figures" / "scan-q.json").is_file()
    )
    shown = cli("channels", "scan", "-m", model(), "--level", "head", "--target", "2.1", "-q")
    assert shown.code == 0 and "2.1" in shown.out and "hypothesis until" in shown.out


def test_show_tells_a_component_a_pair_and_roles(cli: Cli, model: Callable[..., Path], words: Path) -> None:
    ended = cli("channels", "show", "0.1.2", "-m", model(), "--json", "-q")
    assert ended.code == 0 and len(ended.data["spectrum"]) == 8 and len(ended.data["tokens"]["writes +"]) == 10
    pair = cli("channels", "show", "0.1", "--target", "2.3", "--mode", "all", "-m", model(), "--json", "-q").data
    assert [p["mode"] for p in pair["pairs"]] == ["q", "k", "v"] and "tokens" not in pair
    roles = cli("channels", "show", "-m", words, "--json", "-q", "--rows", "2")
    assert roles.code == 0 and len(roles.data["rows"]) == 10


def test_test_gives_a_status(cli: Cli, words: Path) -> None:
    ended = cli(
        "channels", "test", "0.1.0", "2.1", "2.2", "-m", words, "--prompts", 20, "--passages", 0, "--json", "-q"
    )
    assert ended.code == 0, ended
    assert [r["target"] for r in ended.data["rows"]] == ["2.1", "2.2"]
    assert {r["status"] for r in ended.data["rows"]} <= {"verified", "edge-only", "not shown", "refuted"}
    assert all(r["n"] == 20 and r["controls"] == 24 for r in ended.data["rows"])
    shown = cli("channels", "test", "0.1", "2.1", "--mode", "k", "--task", "lists", "--length", 3, "--prompts", 9,
                "-m", words, "--passages", 0, "-q")  # fmt: skip
    assert shown.code == 0 and "lists with one item left" in shown.out


def test_steer_judges_what_it_chose_on_other_prompts(cli: Cli, words: Path, tmp_path: Path) -> None:
    small = ("length=3", "dev=1", "test=2", "samples=4", "controls=2", "spaces=1")
    run = tmp_path / "run"
    ended = cli("channels", "steer", "0.1.0", "1.2.0", *small, "-m", words, "--out", run, "--json", "-q")
    assert ended.code == 0, ended
    scaled, placed = ended.data["rows"]
    assert scaled["what"].startswith("0.1.0, 1.2.0 times") and "oracle" in placed["what"]
    assert scaled["n"] == placed["n"] == 6 and scaled["chance"] == pytest.approx(1 / 3)
    assert scaled["gain"] == pytest.approx(scaled["steered"] - scaled["base"])
    assert (run / "figures" / "places.json").is_file() and (run / "results.parquet").is_file()
    late = cli("channels", "steer", "2.1.0", *small, "-m", words, "-q")
    assert late.code == 2 and "After the last layer" in late.err


def test_edit_leaves_a_pack_that_can_be_undone(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = cli("channels", "edit", "1.2.0", "1.2.1", "--scale", 0.5, "-m", model(), "--out", run, "--json", "-q")
    assert ended.code == 0 and "scaled by 0.5: 1.2.0, 1.2.1" in ended.data["headline"]
    lm = make_lm("llama")
    lm.load_edits(run)
    assert lm.state_hash != lm.base_hash
    assert cli("generate", "-m", model(), "--prompt", "the old town", "--edits", run, "-q").code == 0
    out = tmp_path / "hf"
    assert cli("export", run, "--to", "hf", "--out", out, "-q", "-m", model()).code == 0
    assert LM.from_pretrained(out).base_hash == lm.state_hash
    assert cli("undo", run, "-q", "-m", model()).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scan", "--mode", "x"], "There is no mode 'x'"),
        (["scan", "--level", "x"], "There is no level 'x'"),
        (["scan", "p=2"], "'p' = 2"),
        (["show", "1"], "names no head"),
        (["test", "2.0.0", "1.0"], "cannot speak to"),
        (["test", "0.0.0", "1.0", "--task", "x"], "no task 'x'"),
        (["edit", "1.2"], "whole head"),
        (["edit", "9.2.0"], "There is no 9.2.0"),
    ],
)
def test_mistakes_are_said_in_a_sentence(cli: Cli, model: Callable[..., Path], arguments: list[str], says: str) -> None:
    ended = cli("channels", *arguments, "-m", model(), "-q")
    assert ended.code == 2 and says in ended.err
