"""A run killed at one point and gone on with, for every point: run as a script, prints one JSON line a point.

Children are forked before torch has computed anything, so that each is as a fresh process, without its start.

    python killed.py MODEL FACTS WORK MODE METHOD WHAT [SETTING=VALUE ...]

WHAT is "journal" (before, in the middle of, and after each line) or "disk" (before each sync of a file).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  imported here so that a child need not
import transformers.models.llama.modeling_llama  # noqa: F401

import editlab.runs.journal as journal
from editlab import registry
from editlab.cli.__main__ import run


def kill_at(what: str, point: int) -> None:
    """Have this process kill itself at the `point`-th time; a negative one only counts."""
    seen = {"n": 0}

    def due() -> bool:
        seen["n"] += 1
        return seen["n"] - 1 == point

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if what == "disk":
        sync = os.fsync

        def fsync(fd: Any) -> None:
            if due():
                kill()
            sync(fd)

        os.fsync = fsync
        return
    add = journal.Journal.add

    def adding(self: journal.Journal, event: str, **data: Any) -> None:
        if due():
            kill()
        if due():
            with self.path.open("ab") as f:
                f.write(b'{"event": "committed", "chunk": 0, "state"')
            kill()
        add(self, event, **data)
        if due():
            kill()

    journal.Journal.add = adding  # type: ignore[method-assign]


def in_child(arguments: list[str], what: str = "", point: int = -1) -> tuple[int, str]:
    """Run a command line in a fork; its exit status (negative: the signal) and what it printed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        if what:
            kill_at(what, point)
        code = run(arguments)
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def main() -> None:
    model, facts, work, mode, method, what, *settings = sys.argv[1:]
    registry.get(method)
    os.environ["EDITLAB_CACHE"] = str(Path(work) / "cache")

    def edit(out: Path) -> list[str]:
        head = ["edit", "--file", facts, "--mode", mode, "--method", method, "--batch-size", "2", "-m", model]
        return [*head, "--out", str(out), "--json", "--quiet", *settings]

    code, text = in_child(edit(Path(work) / "whole"))
    whole = json.loads(text)
    row = {"point": None, "code": code, "state": whole["state_hash"], "prompts": whole["prompts"]}
    print(json.dumps(row), flush=True)
    point = 0
    while True:
        out = Path(work) / f"run-{point}"
        code, text = in_child(edit(out), what, point)
        if code != -signal.SIGKILL:
            break
        resumed = in_child(["resume", str(out), "--json", "--quiet"])
        if resumed[0] == 2:  # killed before there was anything to go on with: the same command starts it
            resumed = in_child(edit(out))
        found = json.loads(resumed[1])
        left = sorted(p.name for p in out.iterdir())
        row = {"point": point, "code": resumed[0], "left": left}
        print(json.dumps(row | {k: found.get(k) for k in ("state_hash", "prompts", "state", "error")}), flush=True)
        point += 1


if __name__ == "__main__":
    main()
