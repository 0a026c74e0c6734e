"""`editlab`: find the command files, run one, and turn every failure into a sentence and an exit code.

Exit codes: 0 done; 1 unexpected; 2 usage or invalid configuration; 3 model or data missing or unsupported;
4 a requested threshold failed; 5 finished with failed rows; 6 out of memory; 7 resume refused; 8 another
process holds the run; 130 interrupted; 128 and its number ended by another signal.

A command is one module of this package that defines `register(app: typer.Typer) -> None`. No list names
them, and none may import torch at the top: `--help` imports them all.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import editlab.cli
from editlab.cli.console import describe, show_problem
from editlab.errors import Interrupted

_VERBOSE = "editlab.verbose"


def build_app() -> typer.Typer:
    """The application with every command that is found."""
    app = typer.Typer(
        name="editlab",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_top)
    for found in sorted(pkgutil.iter_modules(editlab.cli.__path__), key=lambda module: module.name):
        if found.name.startswith("_"):
            continue
        register = getattr(importlib.import_module(f"editlab.cli.{found.name}"), "register", None)
        if register is not None:
            register(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    state: dict[str, bool] = {_VERBOSE: os.environ.get("EDITLAB_DEBUG", "") not in ("", "0")}
    try:
        return _as_code(build_app()(list(arguments), prog_name="editlab", standalone_mode=False, obj=state))
    except BrokenPipeError:
        # The reader has gone (`editlab ls models | head -1`). Point stdout elsewhere, so that Python's flush
        # at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if state[_VERBOSE]:
            traceback.print_exception(error)
        problem = describe(error)
        show_problem(problem, as_json=_wants_json(arguments))
        return problem.code


def main() -> None:
    """Entry point of the `editlab` script and of `python -m editlab.cli`."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    ended_by: list[int] = []

    def end(number: int, frame: object) -> None:
        """As Ctrl-C does: what is begun is tidied up, and what can be gone on with says how."""
        ended_by.append(number)
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, end)
    code = run(sys.argv[1:])
    sys.exit(128 + ended_by[0] if ended_by and code == Interrupted.exit_code else code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("editlab"))
        raise typer.Exit


def _top(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Edit facts in causal language models, and look inside them."""
    if verbose:
        context.obj[_VERBOSE] = True
    if context.invoked_subcommand is None:
        # The overview is what is wanted, and a script that forgot the command must not take this for success.
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _wants_json(arguments: Sequence[str]) -> bool:
    # Looked up in the words themselves, because a usage error happens before they are parsed.
    words = list(arguments)
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _as_code(returned: object) -> int:
    # Commands return None; typer.Exit(n) arrives here as n.
    return returned if isinstance(returned, int) else 0


if __name__ == "__main__":
    main()
