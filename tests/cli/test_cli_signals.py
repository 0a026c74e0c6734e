"""What ends a command ends all that it has begun: processes, and files that are half-written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
import safetensors.torch
from cli_fixtures import FACT
from full_disk import tree

from editlab.cli import __main__ as command_line
from editlab.runs.journal import Journal

PATIENCE = 60.0


def ended_by(number: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch, at: int = 0) -> tuple[int, str]:
    """The command in a fork that gets a signal in the middle of its `at`-th file of tensors: exit code, and stderr."""
    serialise, written = safetensors.torch.serialize_file, []

    def halfway(tensors: Any, filename: Any, *args: Any, **options: Any) -> None:
        serialise(tensors, filename, *args, **options)
        written.append(filename)
        if len(written) == at + 1:
            os.truncate(filename, 10)
            os.kill(os.getpid(), number)
            time.sleep(PATIENCE)

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(write, 2)
            monkeypatch.setattr(safetensors.torch, "serialize_file", halfway)
            monkeypatch.setattr(sys, "argv", ["editlab", *arguments])
            monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # noqa: SIM115
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_in_the_middle_of_a_write_leaves_no_file(
    name: str,
    code: int,
    model: Callable[..., Path],
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    arguments = ["edit", *FACT, "--model", str(model()), "-q", *quick, "--out", str(tmp_path / "runs" / "one")]
    ended, said = ended_by(getattr(signal, name), arguments, monkeypatch)  # while statistics are written
    assert (ended, said) == (code, "error: Interrupted.\n")
    assert {path.rpartition(".")[2] for path in tree(tmp_path) if "." in path} <= {"lock"}
    ended, said = ended_by(getattr(signal, name), arguments, monkeypatch, at=1)  # while the pack is
    assert ended == code and not (tmp_path / "runs").exists()
    assert not [path for path in tree(tmp_path) if path.endswith(".tmp")]


def test_a_batch_that_is_terminated_says_how_to_go_on(
    model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    arguments = ["edit", "--file", str(facts), "--mode", "sequential", "--model", str(model()), "-q", *quick]
    ended, said = ended_by(signal.SIGTERM, [*arguments, "--out", str(run)], monkeypatch, at=2)  # the second pack
    assert ended == 143 and f"Go on with: editlab resume {run}" in said
    assert Journal(run).last("committed")["chunk"] == 0
    assert not [path for path in tree(run) if path.endswith(".tmp")]


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_signal_to_the_app_ends_its_server(name: str, tmp_path: Path) -> None:
    pytest.importorskip("streamlit", reason="the optional extra 'app' is not installed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "editlab.cli", "app", "--model", "factworld-llama", "--port", str(port)]
    environment = os.environ | {"STREAMLIT_SERVER_HEADLESS": "true", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "log").open("w") as log:
        app = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    begun: list[psutil.Process] = []
    try:
        address, end = f"http://localhost:{port}/_stcore/health", time.monotonic() + PATIENCE
        while not _answers(address):
            assert time.monotonic() < end and app.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        begun = psutil.Process(app.pid).children(recursive=True)
        app.send_signal(getattr(signal, name))
        code = app.wait(PATIENCE)
        assert code == (-9 if name == "SIGKILL" else 0)
        assert not _answers(address) and not [process for process in begun if process.is_running()]
    finally:
        for process in begun:
            if process.is_running():
                process.kill()
        if app.poll() is None:
            app.kill()
            app.wait()
