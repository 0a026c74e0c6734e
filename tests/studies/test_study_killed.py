"""A study of real edits, killed by the system in the middle of a run, here and on Ray: the same numbers, bit by bit.

Three methods, two models that know facts, three seeds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil
import pytest
from test_study_runs import same

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]

STUDY = """
models: [factworld-llama, factworld-gpt2]
methods: [rome, memit, {method: ft, settings: {layer: 2, steps: 10}}]
facts: language
n: 1
mode: sequential
seeds: 3
evaluate: {metrics: [efficacy, paraphrase, neighbourhood, score]}
"""
RUNS = 18
PATIENCE = 1500.0  # seconds, on a machine that is busy


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> Path:
    """The study without a break."""
    folder = file.parent / "whole"
    with started(file, folder) as study:
        assert study.wait(PATIENCE) == 0
    return folder


@contextmanager
def started(file: Path, folder: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The study as a process; an existing folder is gone on with."""
    what = ["resume", str(folder)] if folder.exists() else ["study", "run", str(file), "--out", str(folder), *more]
    options = [] if folder.exists() else ["--threads", "1"]
    study = subprocess.Popen(
        [sys.executable, "-m", "editlab.cli", *what, "--quiet", *options], stdout=subprocess.DEVNULL
    )
    try:
        yield study
    finally:
        study.kill()
        study.wait()


def ended(folder: Path) -> int:
    """Runs that are done."""
    return len(list(folder.glob("runs/*/evaluation/evaluation.json")))


def in_the_middle(folder: Path) -> bool:
    """Whether a run has begun its first edit and not ended."""
    return any(
        '"started"' in journal.read_text() and not (journal.parent / "evaluation" / "evaluation.json").exists()
        for journal in folder.glob("runs/*/journal.jsonl")
    )


def until(condition: Callable[[], bool], study: subprocess.Popen[bytes]) -> None:
    """Wait for it, as long as the study runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert study.poll() is None and time.monotonic() < end, "the study ended before it could be killed"
        time.sleep(0.02)


def test_killed_twice_and_resumed_it_is_the_unbroken_one(file: Path, whole: Path) -> None:
    folder, seen = file.parent / "killed", []
    for enough in (3, 10):
        with started(file, folder) as study:
            until(lambda n=enough: ended(folder) >= n and in_the_middle(folder), study)  # type: ignore[misc]
            study.send_signal(signal.SIGKILL)
            assert study.wait(PATIENCE) == -signal.SIGKILL
        seen.append(ended(folder))
    assert 3 <= seen[0] < seen[1] < RUNS
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/evaluation/evaluation.json")}
    with started(file, folder) as study:
        assert study.wait(PATIENCE) == 0
    assert ended(folder) == RUNS and stamps.items() <= {p: p.stat().st_mtime_ns for p in map(Path, stamps)}.items()
    same(whole, folder)
    hashes = [pd.read_parquet(f / "results.parquet").groupby("run")["state_hash"].first() for f in (whole, folder)]
    assert hashes[0].nunique() > RUNS // 2 and hashes[0].equals(hashes[1])


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: editlab[ray]")
def test_on_ray_with_a_worker_killed_it_is_the_same(file: Path, whole: Path) -> None:
    folder = file.parent / "ray"
    with started(file, folder, "--launcher", "ray", "--workers", "2") as study:
        until(lambda: ended(folder) >= 2 and in_the_middle(folder), study)
        workers = [p for p in psutil.Process(study.pid).children(recursive=True) if "ray::carry_out" in _title(p)]
        os.kill(workers[0].pid, signal.SIGKILL)
        done = ended(folder)
        assert study.wait(PATIENCE) == 0
    assert done < RUNS == ended(folder)
    same(whole, folder)
    ends = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    runs = [e["run"] for e in ends if e["event"] == "ended"]
    assert len(runs) == len(set(runs)) == RUNS


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
