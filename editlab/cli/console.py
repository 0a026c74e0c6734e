"""What a command says, and where: results on stdout, everything else on stderr.

A command is handed one `Output`, reports progress through its `on_step`, and ends with one `result`. It does
not catch errors: `__main__` turns whatever is raised into a sentence and an exit code with `describe` and
`show_problem`, so the wording is the same for every command.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from editlab.cli.options import Json, Quiet
from editlab.errors import EditlabError, Interrupted, is_disk_full
from editlab.jsonable import finite
from editlab.progress import StepInfo

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from editlab.facts import Fact
    from editlab.lm import LM

SCHEMA_VERSION = 1
LINE_EVERY = 10.0  # seconds between progress lines where no bar can be drawn


@dataclass(kw_only=True)
class Output:
    """The voice of one command; the options that it brings are those of `options.spread`.

    with Output(as_json=True) as out:
        done = work(on_step=out.on_step)
        out.result({"path": str(done)}, text=f"Written to {done}")
    """

    as_json: Json = False
    quiet: Quiet = False
    _warnings: list[str] = field(default_factory=list, init=False)
    _steps: _Bars | _Lines | None = field(default=None, init=False)
    _remarks: _Remarks = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self._remarks = _Remarks(self.warn)

    def __enter__(self) -> Output:
        logging.getLogger("editlab").addHandler(self._remarks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("editlab").removeHandler(self._remarks)
        self._close_steps()
        if kind is KeyboardInterrupt:
            # Raised on as ours, because typer would turn the original into a silent exit.
            raise Interrupted("Interrupted.") from None

    def on_step(self, step: StepInfo) -> None:
        """Show progress; pass this method to the library."""
        if self.quiet:
            return
        if self._steps is None:
            self._steps = _Bars() if sys.stderr.isatty() else _Lines()
        self._steps.show(step)

    def say(self, message: str) -> None:
        """Tell a person something that is not a result."""
        if not self.quiet:
            self._print(sys.stderr, message)

    def warn(self, message: str) -> None:
        """Like `say`, and part of the JSON result."""
        self._warnings.append(message)
        self.say(f"warning: {message}")

    def show(self, view: Any) -> None:
        """A rich table or text for people, on stdout."""
        if not self.as_json:
            from rich.console import Console

            self._close_steps()
            # Into a file or pipe a table keeps its full width.
            Console(width=None if sys.stdout.isatty() else 160).print(view)

    def result(self, data: Mapping[str, Any], text: str = "") -> None:
        """End the command with its result: `data` as one JSON object, or `text` for people."""
        self._close_steps()
        if self.as_json:
            whole = {"schema_version": SCHEMA_VERSION, **data}
            if self._warnings:
                whole["warnings"] = self._warnings
            _print_json(whole)
        elif text:
            self._print(sys.stdout, text)

    def _print(self, stream: TextIO, text: str) -> None:
        if self._steps is not None:
            self._steps.pause()
        print(text, file=stream, flush=True)

    def _close_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def read_facts(out: Output, file: Path, skip_malformed: bool, target_prefix: str | None = None) -> list[Fact]:
    """The facts of a file; what was skipped, and what is odd about rows that were not, is said."""
    from editlab.data.formats import facts_of, load_records

    loaded = load_records(file, skip_malformed=skip_malformed, target_prefix=target_prefix)
    if not loaded.report.is_ok:
        out.warn(f"{loaded.report.text()}\nThey were skipped.")
    for remark in loaded.report.remarks():
        out.say(f"{file.name}: {remark}")
    return facts_of(loaded)


def settle_prefixes(out: Output, lm: LM, facts: list[Fact], file: Path) -> list[Fact]:
    """The facts of a file with the model's choice between a space and none where it takes one; doubts are said once."""
    from editlab.evaluation.prefixes import doubts, settle

    facts = settle(lm, facts, out.on_step)
    for doubt in doubts(lm, facts, out.on_step):
        out.warn(f"{file.name}: {doubt}.")
    return facts


def printable(text: str) -> str:
    """The text with what a terminal would act upon, and not show, spelled out; a file name may hold such a thing."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def size_text(size: int) -> str:
    """Bytes for people: "538.1 MB"."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


@dataclass(frozen=True)
class Problem:
    """An error as the user sees it."""

    what: str
    fix: str
    code: int


def describe(error: BaseException) -> Problem:
    """Turn anything raised into a sentence, advice and an exit code."""
    from editlab.models.load import is_out_of_memory

    if isinstance(error, EditlabError):
        return Problem(error.what, error.fix, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Problem("Interrupted.", "", Interrupted.exit_code)
    if _is_usage_error(error):
        return _describe_usage(error)
    if is_out_of_memory(error):
        return Problem(
            "Memory ran out.",
            "Try a smaller batch, --dtype bfloat16, a smaller model, or closing other programs.",
            6,
        )
    if is_disk_full(error):
        where = f": {error.filename}" if isinstance(error, OSError) and error.filename is not None else "."
        return Problem(f"The disk is full{where}", "Free some space, and run the command again.", 1)
    if isinstance(error, OSError) and error.filename is not None:
        return Problem(f"{error.strerror}: {error.filename}", "Check the path, its permissions and the disk.", 1)
    report = _write_report(error)
    where = f"The details are in {report}." if report else "Run again with -v for the details."
    return Problem("Something broke inside editlab.", where, 1)


def show_problem(problem: Problem, *, as_json: bool) -> None:
    """Print an error: one JSON object on stdout, or "error: what" and the advice on stderr."""
    if as_json:
        error = {"what": problem.what, "fix": problem.fix, "code": problem.code}
        _print_json({"schema_version": SCHEMA_VERSION, "error": error})
    else:
        print(
            f"error: {printable(problem.what)}",
            *([printable(problem.fix)] if problem.fix else []),
            sep="\n",
            file=sys.stderr,
            flush=True,
        )


class _Remarks(logging.Handler):
    """What the library warns of, said by the command."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self._warn(record.getMessage())


class _Bars:
    """Progress on a terminal: a bar for each task under way, gone when the work ends."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, step: StepInfo) -> None:
        progress = self._progress or self._start()
        amount = _amount(step)
        task = self._tasks.get(step.task)
        if task is None:
            task = self._tasks[step.task] = progress.add_task(
                step.task, total=step.total, amount=amount, note=step.note
            )
        progress.update(task, completed=step.done, total=step.total, amount=amount, note=step.note)
        if step.total is not None and step.done >= step.total:
            progress.remove_task(task)
            del self._tasks[step.task]

    def pause(self) -> None:
        # Lines printed while bars are up would be overwritten by the next redraw.
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        return self._progress


class _Lines:
    """Progress into a file or pipe: the latest step, as one plain line every `LINE_EVERY` seconds."""

    def __init__(self) -> None:
        self._latest: StepInfo | None = None
        self._began: dict[str, float] = {}
        self._ended = threading.Event()
        # A thread, because a long step makes no report in the meantime.
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()

    def show(self, step: StepInfo) -> None:
        self._began.setdefault(step.task, time.monotonic())
        self._latest = step

    def pause(self) -> None:
        """Lines do not disturb other lines."""

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _speak(self) -> None:
        while not self._ended.wait(LINE_EVERY):
            if self._latest is not None:
                print(self._line(self._latest), file=sys.stderr, flush=True)

    def _line(self, step: StepInfo) -> str:
        amount = _amount(step)
        parts = [f"{step.task}: {amount}" if amount else step.task]
        spent = time.monotonic() - self._began[step.task]
        if step.total and 0 < step.done < step.total:
            parts.append(f"about {spent * (step.total - step.done) / step.done:.0f} s left")
        if step.note:
            parts.append(step.note)
        return ", ".join(parts)


def _amount(step: StepInfo) -> str:
    if step.total == 1 or (step.total is None and step.done == 0):
        return ""  # one piece of work: there is nothing to count
    if step.unit == "bytes":
        done, total = size_text(step.done), size_text(step.total or 0)
        return done if step.total is None else f"{done} of {total}"
    return f"{step.done} {step.unit}" if step.total is None else f"{step.done} of {step.total} {step.unit}"


def _print_json(value: Mapping[str, Any]) -> None:
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(finite(value), allow_nan=False, default=_plain)
    print(text, flush=True)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _is_usage_error(error: BaseException) -> bool:
    # Typer's own classes, by what they offer: older versions use click's, newer ones a private copy.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _describe_usage(error: Any) -> Problem:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    command = context.command_path if context is not None else "editlab"
    return Problem(" ".join(message.split()), f"See '{command} --help'.", error.exit_code)


def _write_report(error: BaseException) -> Path | None:
    from editlab.models.cache import cache_root

    folder = cache_root() / "reports"
    report = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        with suppress(OSError):
            report.unlink(missing_ok=True)  # half of it would look like all of it
        return None
    return report
