"""Batches of edits: the modes, the stop rules, what is refused, and that a kill at any point changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_fixtures import ROWS, Cli
from filelock import FileLock
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.edits import value_store
from editlab.errors import ConfigError, EditFailed, ResumeRefused, RunBusy
from editlab.runs import Plan, StopRules, estimate, is_finished, read_run, run_batch
from editlab.runs.journal import Journal
from editlab.state.packs import read_pack

FACTS = [Fact(**row) for row in ROWS]
FILES = {
    "manifest.json", "config.yaml", "journal.jsonl", "results.parquet", "pack.json", "edits.safetensors",
}  # fmt: skip


@pytest.fixture
def settings(quick: list[str]) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in quick)}


class Cut(BaseException):
    """Ends a run from inside, as Ctrl-C does."""


def cut_after(monkeypatch: pytest.MonkeyPatch, edits: int) -> None:
    """Let that many edits through."""
    edit, done = LM.edit, []

    def editing(self: LM, *args: Any, **options: Any) -> Any:
        if len(done) == edits:
            raise Cut
        done.append(1)
        return edit(self, *args, **options)

    monkeypatch.setattr(LM, "edit", editing)


# -- kills ---------------------------------------------------------------------------------------------


def killed_and_resumed(
    what: str, mode: str, method: str, model: Callable[..., Path], quick: list[str], facts: Path, work: Path
) -> list[dict[str, Any]]:
    script = Path(__file__).parent / "killed.py"
    command = [sys.executable, str(script), str(model()), str(facts), str(work), mode, method, what, *quick]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


def same_as(whole: dict[str, Any], row: dict[str, Any]) -> None:
    assert row["state_hash"] == whole["state"], row["point"]
    # At the last points everything is written, and there is nothing to go on with.
    assert row["state"] == "finished" or row["prompts"] == whole["prompts"], row["point"]


WISE = ["layer=1", "steps=4", "contexts={4: 1}", "pool=4", "negatives=2", "near=1", "shard_size=2"]


@pytest.mark.parametrize(
    ("mode", "method", "points"),
    [
        ("sequential-batched", "memit-seq", 18),
        pytest.param("sequential", "wise", 24, marks=pytest.mark.model),  # two minutes of training
        pytest.param("sequential", "rome", 24, marks=pytest.mark.model),
        pytest.param("single", "rome", 24, marks=pytest.mark.model),
    ],
)
def test_killed_at_any_line_of_the_journal_a_run_ends_as_the_unbroken_one(
    mode: str, method: str, points: int, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    settings = WISE if method == "wise" else quick
    whole, *rows = killed_and_resumed("journal", mode, method, model, settings, facts, tmp_path)
    assert whole["code"] == 0 and len(rows) == points
    for row in rows:
        assert row["code"] == 0, row
        assert set(row["left"]) - {".lock"} == FILES, row
        same_as(whole, row)


@pytest.mark.model
def test_killed_before_any_write_reaches_the_disk_a_run_ends_as_the_unbroken_one(
    model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    whole, *rows = killed_and_resumed("disk", "sequential", "rome", model, quick, facts, tmp_path)
    assert len(rows) > 20
    for row in rows:
        assert row["code"] == 0, row
        assert set(row["left"]) - {".lock"} == FILES, row
        same_as(whole, row)


# -- modes and what is written -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["single", "sequential", "batch"])
def test_a_run_that_was_cut_is_gone_on_with(
    mode: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "memit" if mode == "batch" else "rome"
    plan = Plan(method=method, mode=mode, settings=settings)
    whole = make_lm("llama")
    expected = run_batch(whole, FACTS, plan, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 0 if mode == "batch" else 2)
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "cut")
    assert not is_finished(tmp_path / "cut") and not (tmp_path / "cut" / "manifest.json").exists()
    found_plan, _, facts = read_run(tmp_path / "cut")
    assert found_plan.model_dump(mode="json") == plan.model_dump(mode="json") and facts == FACTS
    lm = make_lm("llama")
    found = run_batch(lm, facts, found_plan, tmp_path / "cut")
    assert lm.state_hash == whole.state_hash and (lm.state_hash == lm.base_hash) == (mode == "single")
    assert [r.rows for r in found.reports] == [r.rows for r in expected.reports]
    assert {p.name for p in (tmp_path / "cut").iterdir()} - {".lock"} == FILES
    assert is_finished(tmp_path / "cut")
    with pytest.raises(ConfigError, match="is finished"):
        run_batch(make_lm("llama"), facts, found_plan, tmp_path / "cut")


def test_what_is_done_is_not_done_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(mode="sequential", settings=settings)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 2)
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")
    with monkeypatch.context() as patch:
        cut_after(patch, 1)  # one more edit is enough
        assert len(run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run").reports) == 3


def test_a_run_does_not_go_on_on_another_ground(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(mode="sequential", settings=settings)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 1)
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")
    for lm, facts, its_plan, what in (
        (make_lm("gpt2"), FACTS, plan, "weights"),
        (make_lm("llama"), FACTS[:2], plan, "facts"),
        (make_lm("llama"), FACTS, plan.model_copy(update={"settings": settings | {"seed": 1}}), "plan"),
    ):
        with pytest.raises(ResumeRefused, match=rf"{what} \(\w+ then, \w+ now\)") as error:
            run_batch(lm, facts, its_plan, tmp_path / "run")
        assert error.value.exit_code == 7
        assert not lm.ledger.active
    forced = run_batch(make_lm("llama"), FACTS, plan.model_copy(update={"batch_size": 3}), tmp_path / "run", force=True)
    assert len(forced.reports) == 3
    assert Journal(tmp_path / "run").last("forced")["changed"]


def test_a_changed_pack_is_noticed(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(mode="sequential", settings=settings)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 2)
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")
    packs = sorted((tmp_path / "run" / "edits").iterdir())
    for file in packs[0].iterdir():
        file.write_bytes((packs[1] / file.name).read_bytes())
    with pytest.raises(ResumeRefused, match="other weights"):
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")


def test_two_processes_do_not_write_one_run(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunBusy) as error:
        run_batch(make_lm("llama"), FACTS, Plan(settings=settings), tmp_path / "run")
    assert error.value.exit_code == 8


def test_facts_that_fail_are_told_and_stay_failed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = LM.edit

    def failing(self: LM, requests: Any, *args: Any, **options: Any) -> Any:
        if requests[0].id == "two":
            raise EditFailed("It cannot be done.")
        return edit(self, requests, *args, **options)

    monkeypatch.setattr(LM, "edit", failing)
    found = run_batch(make_lm("llama"), FACTS, Plan(mode="sequential", settings=settings), tmp_path / "run")
    assert [f.fact for f in found.failed] == ["two"] and len(found.reports) == 2
    assert [e["event"] for e in Journal(tmp_path / "run").events].count("failed") == 1


def test_a_limit_ends_the_run_and_what_was_kept_is_scored(settings: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(mode="sequential", settings=settings, stop={"max_kl": 1e-9})
    lm = make_lm("llama")
    found = run_batch(lm, FACTS, plan, tmp_path / "run")
    assert len(found.reports) == 1 and "control_kl is" in found.stopped and len(lm.ledger.active) == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "stopped"
    plan = plan.model_copy(update={"stop": StopRules(max_kl=1e9)})
    free = run_batch(make_lm("llama"), FACTS, plan, tmp_path / "b")
    assert not free.stopped and len(free.reports) == 3
    checks = [e for e in Journal(tmp_path / "b").events if e["event"] == "checked"]
    assert [c["chunk"] for c in checks] == [0, 1, 2] and all(c["values"]["control_kl"] > 0 for c in checks)


def test_a_run_that_was_killed_before_it_could_say_that_a_limit_was_passed_stops_there(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(mode="sequential", settings=settings, stop={"max_kl": 1e-9})
    whole, lm = make_lm("llama"), make_lm("llama")
    expected = run_batch(whole, FACTS, plan, tmp_path / "whole")
    add = Journal.add

    def killed(self: Journal, event: str, **data: Any) -> None:
        if event == "stopped":
            raise Cut
        add(self, event, **data)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Journal, "add", killed)
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "cut")
    assert run_batch(lm, FACTS, plan, tmp_path / "cut").stopped == expected.stopped
    assert lm.state_hash == whole.state_hash


def test_a_run_that_cannot_begin_takes_back_its_own_files_alone(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = LM.edit

    def meanwhile(self: LM, *args: Any, **options: Any) -> Any:
        (tmp_path / "runs" / "other").mkdir()
        return edit(self, *args, **options)

    plan = Plan(mode="sequential", settings=settings | {"layer": 99})
    with pytest.raises(ConfigError, match="Choose one from"):
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(LM, "edit", meanwhile)
    with pytest.raises(ConfigError, match="Choose one from"):
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "runs" / "mine")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["other"]
    (tmp_path / "mine" / ".git").mkdir(parents=True)
    monkeypatch.setattr(LM, "edit", edit)
    with pytest.raises(ConfigError, match="Choose one from"):
        run_batch(make_lm("llama"), FACTS, plan, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [".git"]


def test_limits_are_checked_as_often_as_asked(settings: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(mode="sequential", settings=settings, stop={"max_norm": 1e9, "max_perplexity": 1e9, "every": 2})
    run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")
    checks = [e for e in Journal(tmp_path / "run").events if e["event"] == "checked"]
    assert [c["chunk"] for c in checks] == [1, 2]
    assert all(c["values"]["norm_ratio"] > 0 and c["values"]["perplexity"] > 0 for c in checks)


def test_a_batch_starts_from_the_base(settings: dict[str, Any], tmp_path: Path) -> None:
    lm = make_lm("llama")
    lm.edit(FACTS[0], **settings)
    with pytest.raises(ConfigError, match="starts from the unedited model"):
        run_batch(lm, FACTS, Plan(settings=settings), tmp_path / "run")


# -- estimates -----------------------------------------------------------------------------------------


def test_an_estimate_leaves_no_trace(settings: dict[str, Any], tmp_path: Path) -> None:
    lm = make_lm("llama")
    one = estimate(lm, FACTS, Plan(mode="sequential", settings=settings))
    assert len(lm.ledger) == 0 and lm.state_hash == lm.base_hash
    assert (one.facts, one.edits) == (3, 3) and one.seconds > 0 and one.memory > 1e6
    run_batch(lm, FACTS, Plan(mode="sequential", settings=settings), tmp_path / "run")
    packed = (tmp_path / "run" / "edits.safetensors").stat().st_size
    assert packed <= one.disk <= 4 * packed
    batch = estimate(make_lm("llama"), FACTS, Plan(method="memit", mode="batch", settings=settings))
    assert batch.edits == 1


def test_an_estimate_optimises_every_value_that_it_times(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    counts, run = [], value_store.optimise_all

    def counting(lm: LM, layer: int, targets: Any, *args: Any, **options: Any) -> Any:
        counts.append(len(targets))
        return run(lm, layer, targets, *args, **options)

    monkeypatch.setattr(value_store, "optimise_all", counting)
    plan = Plan(method="memit", mode="batch", settings=settings)
    for _ in range(2):  # the second finds nothing of the first
        estimate(make_lm("llama"), FACTS, plan)
    estimate(make_lm("llama"), FACTS[:1], plan)
    assert counts == [1, 1, 3, 1, 1, 3, 1, 1]
    run_batch(make_lm("llama"), FACTS, plan, tmp_path / "run")
    assert counts[8:] == [3]


# -- the command line ----------------------------------------------------------------------------------


def test_a_runs_config_is_a_config(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    head = ["edit", "--file", facts, "--json"]
    first = cli(*head, "--mode", "sequential", "-m", model(), "--out", tmp_path / "a", *quick)
    again = cli(*head, "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b")
    assert first.code == again.code == 0
    assert again.data["state_hash"] == first.data["state_hash"]
    one = cli(*head, "--config", tmp_path / "a" / "config.yaml", "--mode", "single", "seed=1")
    assert one.code == 0 and one.data["state_hash"] != first.data["state_hash"]
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: rome\nmood: single\n")
    ended = cli("edit", "--file", facts, "--config", bad, "-m", model())
    assert ended.code == 2 and "mood" in ended.err


def test_dry_run_and_stop_on_the_command_line(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    head = ["edit", "--file", facts, "--mode", "sequential", "-m", model(), "--out", tmp_path / "run"]
    dry = cli(*head, "--dry-run", "--json", *quick)
    assert dry.code == 0 and dry.data["facts"] == 3 and not (tmp_path / "run").exists()
    stopped = cli(*head, "--stop", "max_kl=1e-9", *quick)
    assert stopped.code == 4 and "Stopped after 1 facts control_kl is" in stopped.out
    assert cli("edit", "--file", facts, "--stop", "max_mood=1", "-m", model()).code == 2


def test_resume_of_what_is_no_run_or_done(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli("resume", tmp_path / "empty").code == 2
    cli("edit", "--file", facts, "-m", model(), "--out", tmp_path / "run", *quick)
    ended = cli("resume", tmp_path / "run", "--json")
    assert ended.code == 0 and ended.data["state"] == "finished"
    assert len(read_pack(tmp_path / "run").entries) == 3
    sound = (tmp_path / "run" / "manifest.json").read_text()
    for damaged in (None, "", "[]", "{}", sound.replace("state_hash", "state_has"), sound.replace("written", "writen")):
        (tmp_path / "run" / "manifest.json").unlink(missing_ok=True)
        if damaged is not None:
            (tmp_path / "run" / "manifest.json").write_text(damaged)
        refused = cli("resume", tmp_path / "run")
        assert refused.code == 7 and "its manifest.json is missing or damaged" in refused.err, damaged


def test_a_limit_on_norms_does_not_stop_a_memory_that_changes_none(tmp_path: Path) -> None:
    plan = Plan(method="grace", mode="sequential", settings={"steps": 2}, stop=StopRules(max_norm=2.0))
    assert len(run_batch(make_lm("llama"), FACTS[:2], plan, tmp_path / "run").reports) == 2
