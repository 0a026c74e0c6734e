"""What `make demo` says when the machine lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout with space"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "install.sh", folder / ".ci")
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def _python(folder: Path, body: str) -> str:
    path = folder / "python of the test"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def _install(checkout: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(checkout / ".ci" / "install.sh"), "core"]
    environment = os.environ | {"PYTHON": python}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _stamp(checkout: Path) -> None:
    """Leave the checkout as a finished installation would."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    key = "$(cat pyproject.toml setup.py constraints.txt | cksum) $(pwd)"
    script = f'cd "{checkout}"; echo "{key}" >.venv/.installed-core'
    subprocess.run(["sh", "-c", script], check=True)


def test_no_python(checkout: Path) -> None:
    ended = _install(checkout, "/none/python")
    assert ended.returncode != 0
    assert ended.stderr == "PYTHON=/none/python cannot be run: name a Python 3.11 or newer.\n"


def test_an_old_python(checkout: Path) -> None:
    old = 'case "$2" in *join*) echo 3.9 ;; *) exit 1 ;; esac'
    ended = _install(checkout, _python(checkout.parent, old))
    assert ended.returncode != 0
    assert "is Python 3.9 and editlab needs 3.11 or newer" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_python_without_venv(checkout: Path) -> None:
    bare = 'case "$2" in *join*) echo 3.12 ;; *ensurepip*) exit 1 ;; *) exit 0 ;; esac'
    ended = _install(checkout, _python(checkout.parent, bare))
    assert ended.returncode != 0
    assert "lacks the venv and ensurepip modules" in ended.stderr
    assert "python3.12-venv" in ended.stderr


def test_a_finished_installation_is_left_alone(checkout: Path) -> None:
    _stamp(checkout)
    ended = _install(checkout, "/none/python")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_an_unfinished_installation_is_made_again(checkout: Path) -> None:
    _stamp(checkout)
    (checkout / ".venv" / ".unfinished").touch()
    ended = _install(checkout, "/none/python")  # it gets as far as needing a Python
    assert ended.returncode != 0
    assert "cannot be run" in ended.stderr


def test_changed_requirements_are_installed(checkout: Path) -> None:
    _stamp(checkout)
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    (checkout / ".venv" / "bin" / "python").unlink()
    assert _install(checkout, "/none/python").returncode != 0
