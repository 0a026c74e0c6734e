"""A disk that is full, at any write: the cause is told, nothing is half-written, and what was there is as it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from cli_fixtures import FACT, ROWS, Cli
from full_disk import disk_with, tree
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.data.corpus import load_corpus
from editlab.edits.covariance import StatsSettings, collect
from editlab.edits.keys import contexts
from editlab.errors import EditlabError, PackError, WriteFailed, is_disk_full, system_cause
from editlab.runs import Plan, is_finished, run_batch, write_evaluation, write_run, write_table
from editlab.runs.journal import Journal
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.verbs import VERBS
from editlab.state.files import write_json, write_text
from editlab.state.lora import save_lora
from editlab.state.packs import read_pack

FACTS = [Fact(**row) for row in ROWS]
OF_ONE = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "in the sea"}


@pytest.fixture
def settings(quick: list[str]) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in quick)}


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> LM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        lm = make_lm("llama")
        lm.edit(OF_ONE, "lora", steps=2)
        return lm


def fails_at_every_write(write: Callable[[Path], object], root: Path) -> int:
    """Each write of `write(folder)` in turn is the first that fails; then it is tried again, with room."""
    root.mkdir()
    with disk_with(None) as disk:
        write(root / "whole" / "out")
    assert disk.writes > 1
    for room in range(disk.writes):
        place = root / f"room-{room}"
        place.mkdir()
        (place / "other.txt").write_text("of somebody else")
        with disk_with(room), pytest.raises((WriteFailed, PackError)) as error:
            write(place / "new" / "out")
        assert "the disk is full" in error.value.what and str(place) in error.value.what, room
        assert tree(place) == {"other.txt": b"of somebody else"}, room
        write(place / "new" / "out")
        assert {p.name for p in (place / "new" / "out").iterdir()} == {
            p.name for p in (root / "whole" / "out").iterdir()
        }
    return disk.writes


WRITERS: dict[str, Callable[[LM, Path], object]] = {
    "pack": lambda lm, folder: lm.save_edits(folder),
    "model folder": lambda lm, folder: lm.save_pretrained(folder),
    "LoRA": lambda lm, folder: save_lora(folder, lm.ledger, lm.model, lm.name),
    "run of edits": lambda lm, folder: write_run(folder, lm, "edit", {"method": "lora"}, []),
    "table": lambda lm, folder: write_table(
        folder, lm, "probe", {"a": 1}, pd.DataFrame({"a": [1.0]}), {"headline": "x"}
    ),
    "result": lambda lm, folder: lm.locate("The river {} is", "is", samples=2, min_gap=0).save(folder),
    "evaluation": lambda lm, folder: write_evaluation(
        folder, lm, lm.evaluate([OF_ONE], metrics="efficacy_argmax"), {"pack": "p"}
    ),
}


@pytest.mark.parametrize("what", list(WRITERS))
def test_what_cannot_be_written_whole_leaves_nothing(what: str, edited: LM, tmp_path: Path) -> None:
    fails_at_every_write(lambda folder: WRITERS[what](edited, folder), tmp_path / "at")


def test_an_older_pack_stays_or_the_new_one_is_there(edited: LM, tmp_path: Path) -> None:
    twin = edited.fork()
    twin.undo()
    with disk_with(None) as disk:
        twin.save_edits(tmp_path / "count")
    for room in range(disk.writes):
        folder = edited.save_edits(tmp_path / f"pack-{room}")
        with disk_with(room), pytest.raises(PackError, match="the disk is full"):
            twin.save_edits(folder)
        assert [e.state for e in read_pack(folder).entries] in (["active"], ["removed"])


@pytest.mark.parametrize("kind", ["contexts", "statistics", "values"])
def test_a_cache_has_whole_files_or_none(
    kind: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm("llama")
    corpus = load_corpus(settings["stats_text"])

    def use() -> Any:
        if kind == "contexts":
            return contexts(lm, per_length={4: 1}, seed=0)
        if kind == "statistics":
            return collect(lm, [1], corpus, StatsSettings(tokens=600))[1].total
        return lm.fork().edit(FACTS[0], "rome-nocov", layer=1, steps=2, contexts={}).edit.digest

    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "whole"))
    with disk_with(None) as disk:
        right = use()
    for room in range(disk.writes):
        cache = tmp_path / f"cache-{room}"
        monkeypatch.setenv("EDITLAB_CACHE", str(cache))
        with disk_with(room), pytest.raises(WriteFailed, match="the disk is full") as error:
            use()
        assert "EDITLAB_CACHE" in error.value.fix
        assert not [name for name in tree(tmp_path) if name.endswith(".tmp")]
        again = use()
        assert torch.equal(again, right) if isinstance(right, torch.Tensor) else again == right


def test_a_batch_goes_on_from_what_it_could_write_or_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    plan = Plan(method="rome-nocov", mode="sequential", settings={"layer": 1, "steps": 2, "contexts": {}})
    run_batch(make_lm("llama"), FACTS[:2], plan, tmp_path / "warm")
    whole = make_lm("llama")
    with disk_with(None) as disk:
        run_batch(whole, FACTS[:2], plan, tmp_path / "whole")
    began = []
    for room in [*range(0, disk.writes, 9), disk.writes - 1]:
        folder = tmp_path / f"at-{room}" / "run"
        folder.parent.mkdir()
        with disk_with(room), pytest.raises((WriteFailed, PackError), match="the disk is full"):
            run_batch(make_lm("llama"), FACTS[:2], plan, folder)
        began.append(folder.exists())
        if folder.exists():  # an edit is done, and is not lost
            events = Journal(folder).events
            assert (folder / "journal.jsonl").read_bytes().endswith(b"\n") and not is_finished(folder)
            assert sum(event["event"] == "committed" for event in events) >= 1
        lm = make_lm("llama")
        run_batch(lm, FACTS[:2], plan, folder)
        assert lm.state_hash == whole.state_hash
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert began == sorted(began) and not began[0] and began[-1]


def test_a_study_of_memory_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlab.runs.memory.run.find_spec", lambda name: None)  # figures take longest
    lm = make_lm("llama")
    small = StudySettings(kinds=("letters",), items=4, seeds=1, exposures=1, times=(1,), block=16, batch=3)
    with disk_with(None) as disk:
        whole = run_memory(lm, VERBS["recognize"], small, tmp_path / "whole").to_pandas()
    began = []
    for room in (0, 5, disk.writes - 1):
        folder = tmp_path / f"at-{room}" / "run"
        folder.parent.mkdir()
        with disk_with(room), pytest.raises(WriteFailed, match="the disk is full"):
            run_memory(lm, VERBS["recognize"], small, folder)
        began.append(folder.exists())
        pd.testing.assert_frame_equal(run_memory(lm, VERBS["recognize"], small, folder).to_pandas(), whole)
    assert began == sorted(began) and not began[0] and began[-1]


def test_the_command_line_says_why_and_how_to_go_on(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    one = ["edit", *FACT, "--model", model(), "-q", *quick]
    many = ["edit", "--file", facts, "--mode", "sequential", "--model", model(), "-q", *quick]
    assert cli(*one, "--out", tmp_path / "warm").code == 0
    assert cli(*many, "--out", tmp_path / "warm-too").code == 0
    before = tree(tmp_path)
    with disk_with(8):
        ended = cli(*one, "--out", tmp_path / "one")
    assert ended.code in (1, 2) and "the disk is full" in ended.err and "nothing was changed" not in ended.err
    assert tree(tmp_path) == before
    with disk_with(40):
        ended = cli(*many, "--out", tmp_path / "many")
    assert "the disk is full" in ended.err and f"Then go on with: editlab resume {tmp_path / 'many'}" in ended.err
    assert cli("resume", tmp_path / "many", "-q").code == 0


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "the disk is full"),
        (Exception("No space left on device (os error 28)"), "the disk is full"),
        (Exception("database or disk is full"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (Exception("I/O error: Permission denied (os error 13)"), "permission denied"),
        (OSError("something else\nof many lines"), "something else"),
    ],
)
def test_the_system_s_reason_in_words(error: Exception, cause: str) -> None:
    assert system_cause(error) == cause
    assert is_disk_full(error) == (cause == "the disk is full")


def test_a_file_too_large_for_the_system_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """By the system itself, in the middle of what the libraries write."""
    resource = pytest.importorskip("resource", reason="limits of a process exist on POSIX")
    signal = __import__("signal")
    lm = make_lm("llama")
    lm.edit(OF_ONE, "ft", steps=2)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            said = []
            for name, write in (
                ("pack", lambda p: lm.save_edits(p)),
                ("folder", lambda p: lm.save_pretrained(p)),
                ("table", lambda p: write_table(p, lm, "x", {}, pd.DataFrame({"a": range(9000)}), {})),
            ):
                try:
                    write(tmp_path / name)
                except EditlabError as error:
                    said.append(error.what)
            os._exit(0 if len(said) == 3 and all("the disk is full" in what for what in said) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tree(tmp_path) == {}


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "stats"
    folder.mkdir(parents=True)
    abandoned, fresh, other = (folder / n for n in (".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp", ".mine.tmp"))
    outside = tmp_path / ".a.json.0123abcd.tmp"
    for path in (abandoned, fresh, other, outside):
        path.write_text("half")
        if path != fresh:
            os.utime(path, (1e9, 1e9))
    write_json(folder / "new.json", {"a": 1})
    write_text(tmp_path / "new.txt", "x")
    assert sorted(p.name for p in folder.iterdir()) == [fresh.name, other.name, "new.json"]
    assert outside.exists() and json.loads((folder / "new.json").read_text()) == {"a": 1}
