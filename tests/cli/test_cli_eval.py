"""`editlab eval` and `editlab runs`, whole, on tiny model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cli_fixtures import Cli

RunOf = Callable[..., Path]
QUICK = ["--metric", "counterfact", "--metric", "efficacy_said"]


@pytest.fixture
def suite(tmp_path: Path, facts: Path) -> Callable[..., Path]:
    def write(**settings: object) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"facts": facts.name, "passages": 2, "max_new_tokens": 3, **settings}))
        return path

    return write


def test_a_run_is_measured_on_its_own_facts(cli: Cli, run_of: RunOf, tmp_path: Path) -> None:
    run = run_of(mode="sequential")
    ended = cli("eval", run, *QUICK, "--out", tmp_path / "result")
    assert ended.code == 0
    assert "unedited" in ended.out and "efficacy_said" in ended.out and "95 % interval" in ended.out
    assert "3 facts, 3 of them edited; mode together: scored after the last edit." in " ".join(ended.out.split())
    table = pd.read_parquet(tmp_path / "result" / "results.parquet")
    assert set(table.columns) == {"metric", "state", "item", "value"}
    assert set(table.state) == {"base", "edited"} and set(table.item) == {"one", "two", "three"}
    manifest = json.loads((tmp_path / "result" / "manifest.json").read_text())
    assert manifest["kind"] == "eval" and manifest["config"]["pack"] == str(run)


def test_a_single_run_is_scored_edit_by_edit(cli: Cli, run_of: RunOf) -> None:
    data = cli("eval", run_of(mode="single"), *QUICK, "--json").data
    assert data["settings"]["mode"] == "single" and data["settings"]["n_facts"] == 3
    magnitude = next(m for m in data["metrics"] if m["metric"] == "efficacy_magnitude")
    assert magnitude["edited_mean"] > magnitude["base_mean"]
    assert Path(data["folder"]).parent.name == "runs"


def test_a_facts_file_is_a_suite(cli: Cli, run_of: RunOf, facts: Path) -> None:
    data = cli("eval", run_of(), "--suite", facts, *QUICK, "--json").data
    assert (data["settings"]["n_facts"], data["settings"]["n_edited"]) == (3, 1)


def test_a_suite_file_holds_settings_and_relative_paths(cli: Cli, run_of: RunOf, suite: Callable[..., Path]) -> None:
    path = suite(limit=2, metrics=["ES", "drift"], along=True)
    data = cli("eval", run_of(mode="sequential"), "--suite", path, "--json").data
    assert data["settings"]["n_facts"] == 2
    assert {m["metric"] for m in data["metrics"]} == {
        "efficacy",
        "control_kl",
        "control_same",
        "perplexity",
        "norm_ratio",
    }
    shown = cli("runs", "show", data["folder"])
    assert shown.code == 0 and "perplexity" in shown.out and "still there" in shown.out


def test_a_missed_threshold_is_exit_code_4(cli: Cli, run_of: RunOf) -> None:
    run = run_of()
    assert cli("eval", run, *QUICK, "--fail-under", "efficacy_said=0").code == 0
    ended = cli("eval", run, *QUICK, "--fail-under", "EA=1.5", "--json")
    assert ended.code == 4
    (failure,) = ended.data["failed"]
    assert failure.startswith("EA is ") and failure.endswith(", under 1.5")
    ended = cli("eval", run, *QUICK, "--fail-over", "norm_ratio=0.5", "--metric", "norm_ratio")
    assert ended.code == 4 and "FAILED: norm_ratio is" in ended.out


def test_two_evaluations_are_compared(cli: Cli, run_of: RunOf, facts: Path, tmp_path: Path) -> None:
    runs = {"a": run_of(mode="sequential", name="many"), "b": run_of(name="few")}
    for name, run in runs.items():
        assert cli("eval", run, "--suite", facts, *QUICK, "--out", tmp_path / name, "-q").code == 0
    ended = cli("runs", "compare", tmp_path / "a", tmp_path / "b")
    assert ended.code == 0 and "b - a" in ended.out and "state_hash" in ended.out
    data = cli("runs", "compare", tmp_path / "a", tmp_path / "b", "--json").data
    assert {"metric", "a", "b", "difference", "low", "high", "n", "p", "q"} == data["differences"][0].keys()
    assert "state_hash" in data["settings"]


def test_results_are_listed_with_the_runs(cli: Cli, run_of: RunOf) -> None:
    cli("eval", run_of(), *QUICK, "-q")
    (row,) = cli("ls", "runs", "--json").data["runs"]
    assert row["kind"] == "eval"


def test_facts_that_no_edit_wrote_are_said_to_be_so(cli: Cli, run_of: RunOf, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "{} lives in", "subject": "Otto", "target_new": "Rome"}\n')
    ended = cli("eval", run_of(), "--suite", other, "--metric", "efficacy_argmax")
    assert ended.code == 0 and "everything here is side effect" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("nowhere", 2, "'nowhere' is not a folder"),
        ("RUN --suite nowhere.jsonl", 2, "There is no suite 'nowhere.jsonl'"),
        ("RUN --suite bad.yaml", 2, "there is no setting 'factz'. Did you mean 'facts'?"),
        ("RUN --suite bad.jsonl", 2, "bad.jsonl"),
        ("RUN --metric efficaccy", 2, "Did you mean 'efficacy'?"),
        ("RUN --metric ES --fail-under NS=0.5", 2, "'NS' has a threshold but is not measured"),
        ("RUN --fail-under ES", 2, "'ES' is not a setting. Write name=value."),
        ("RUN --fail-under ES=high", 2, "'fail_under.ES' = 'high'"),
        ("RUN --mode sequence", 2, "Use together or single."),
        ("RUN --out RUN", 2, "is not empty"),
        ("RUN --limit 0", 2, "--limit"),
    ],
)
def test_bad_input_is_one_sentence(
    cli: Cli, run_of: RunOf, tmp_path: Path, arguments: str, code: int, words: str
) -> None:
    (tmp_path / "bad.yaml").write_text("factz: x\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "{} is"}\n')
    run = run_of()
    ended = cli("eval", *(str(run) if a == "RUN" else a for a in arguments.split()))
    assert ended.code == code and ended.err.startswith("error: ")
    assert words in " ".join(ended.err.split())


def test_folders_without_an_evaluation_are_refused(cli: Cli, tmp_path: Path) -> None:
    ended = cli("runs", "compare", tmp_path, tmp_path)
    assert ended.code == 2 and "holds no evaluation" in ended.err


def test_metrics_are_listed_and_their_cards_printed(cli: Cli) -> None:
    rows = cli("ls", "metrics", "--json").data["metrics"]
    assert {"name", "formula", "decoding", "source", "chance", "better"} <= rows[0].keys()
    card = cli("cat", "NS")
    assert card.code == 0 and "neighbourhood" in card.out and "arXiv 2202.05262" in card.out
    assert "Two families, never mixed" in cli("cat", "scoring").out
    assert cli("cat", "scorring").code == 2
