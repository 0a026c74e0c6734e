"""The frame around the commands: discovery, exit codes, errors in words and in JSON, progress."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import editlab.cli
from editlab import errors
from editlab.cli import console
from editlab.cli.__main__ import build_app, run
from editlab.cli.console import Output, size_text
from editlab.display import text_table
from editlab.progress import StepInfo

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDITLAB_DEBUG", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a command `trial` whose body is the given lines, as a file that is only dropped in place."""

    def add(body: str) -> None:
        folder = tmp_path / "more"
        folder.mkdir(exist_ok=True)
        (folder / "trial.py").write_text(
            "from editlab import errors\n"
            "import typer\n"
            "from editlab.cli import options\n"
            "from editlab.cli.console import Output\n"
            "from editlab.progress import StepInfo\n"
            "def register(app: typer.Typer) -> None:\n"
            "    @app.command()\n"
            "    def trial(as_json: options.Json = False, quiet: options.Quiet = False) -> None:\n"
            '        """A command of the tests."""\n'
            "        with Output(as_json=as_json, quiet=quiet) as out:\n"
            + "".join(f"            {line}\n" for line in body.splitlines())
        )
        monkeypatch.setattr(editlab.cli, "__path__", [*editlab.cli.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, "editlab.cli.trial", raising=False)

    return add


def test_help_lists_the_commands_quickly_and_without_torch() -> None:
    script = (
        "import sys, time; began = time.process_time()\n"
        "from editlab.cli.__main__ import run\n"
        "code = run(['-h'])\n"
        "assert code == 0 and not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
        "print(time.process_time() - began)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pull" in ended.stdout
    # Measured 0.2 s of processor time, which a busy machine does not stretch much.
    assert float(ended.stdout.splitlines()[-1]) < 2


def test_no_command_shows_the_help_and_is_a_usage_error(capsys: Capture) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_every_command_and_option_has_help() -> None:
    group = typer.main.get_command(build_app())
    for name, found in group.commands.items():  # type: ignore[attr-defined]
        assert found.help, name
        for parameter in found.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_a_file_dropped_in_is_a_command(command: Callable[[str], None], capsys: Capture) -> None:
    command('out.result({"a": 1}, "one")')
    assert run(["trial"]) == 0
    assert capsys.readouterr().out == "one\n"
    assert run(["trial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "a": 1}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ('raise errors.ModelError("No model.", "Get one.")', 3, "error: No model.\nGet one.\n"),
        ('raise errors.ConfigError("Bad option.")', 2, "error: Bad option.\n"),
        ('raise errors.EditFailed("No change.")', 1, "error: No change.\n"),
        ("raise typer.Exit(4)", 4, ""),
        ("raise MemoryError", 6, "error: Memory ran out."),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 6, "error: Memory ran out."),
        ("raise KeyboardInterrupt", 130, "error: Interrupted.\n"),
        ('open("/none/such")', 1, "error: No such file or directory: /none/such"),
        ("1 / 0", 1, "error: Something broke inside editlab.\nThe details are in "),
    ],
)
def test_every_failure_is_a_sentence_and_an_exit_code(
    command: Callable[[str], None], capsys: Capture, body: str, code: int, words: str
) -> None:
    command(body)
    assert run(["trial"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(words)
    assert "Traceback" not in captured.err


def test_a_failure_in_json_is_one_object(command: Callable[[str], None], capsys: Capture) -> None:
    command('raise errors.ModelError("No model.", "Get one.")')
    assert run(["trial", "--json"]) == 3
    captured = capsys.readouterr()
    expected = {"what": "No model.", "fix": "Get one.", "code": 3}
    assert json.loads(captured.out) == {"schema_version": 1, "error": expected}
    assert captured.err == ""


@pytest.mark.parametrize("arguments", [["nothing"], ["ls"], ["ls", "models", "--colour"]])
def test_usage_errors_end_with_two_in_words_and_in_json(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "--help" in captured.err
    assert run([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == 2


def test_the_report_of_a_bug_holds_the_traceback(
    command: Callable[[str], None], capsys: Capture, own_cache: Path
) -> None:
    command("1 / 0")
    run(["trial"])
    (report,) = (own_cache / "reports").iterdir()
    assert str(report) in capsys.readouterr().err
    assert "ZeroDivisionError" in report.read_text()


def test_the_traceback_is_shown_on_request(
    command: Callable[[str], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("1 / 0")
    run(["-v", "trial"])
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("EDITLAB_DEBUG", "1")
    run(["trial"])
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_remarks_go_to_stderr_and_warnings_also_into_the_result(capsys: Capture) -> None:
    with Output(as_json=True) as out:
        out.say("working")
        out.warn("odd")
        out.result({"path": Path("x")})
    captured = capsys.readouterr()
    assert captured.err == "working\nwarning: odd\n"
    assert json.loads(captured.out) == {"schema_version": 1, "path": "x", "warnings": ["odd"]}


def test_quiet_leaves_only_the_result(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.01)
    with Output(quiet=True) as out:
        out.say("working")
        out.on_step(StepInfo("task", 1, 10))
        time.sleep(0.05)
        out.result({}, "done")
    assert capsys.readouterr() == ("done\n", "")


def test_progress_into_a_pipe_is_a_plain_line_now_and_then(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.1)
    with Output() as out:
        for done in range(5):
            out.on_step(StepInfo("tracing", done, 100, "cells", note="loss 0.3"))
        time.sleep(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("tracing: 4 of 100 cells, about ")
    assert lines[0].endswith("s left, loss 0.3")
    assert "\x1b" not in lines[0]


def test_short_work_into_a_pipe_says_nothing(capsys: Capture) -> None:
    with Output() as out:
        out.on_step(StepInfo("tracing", 1, 2))
        out.result({}, "done")
    assert capsys.readouterr() == ("done\n", "")


def test_progress_on_a_terminal_draws_bars_and_wipes_them(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Output() as out:
        out.on_step(StepInfo("downloading", 500_000, 1_000_000, "bytes"))
        out.on_step(StepInfo("thinking", 0))
        out.say("meanwhile")
        out.on_step(StepInfo("downloading", 1_000_000, 1_000_000, "bytes"))
        out.result({}, "done")
    captured = capsys.readouterr()
    assert captured.out == "done\n"
    assert "500.0 kB of 1.0 MB" in captured.err
    assert "meanwhile\n" in captured.err


def test_tables_and_sizes() -> None:
    assert text_table(["a", "name"], [[1, "x"], [22, ""]]) == "a   name\n1   x\n22"
    assert [size_text(n) for n in (0, 999, 1000, 538_090_408)] == ["0 B", "999 B", "1.0 kB", "538.1 MB"]


def test_errors_that_carry_codes_keep_them() -> None:
    assert errors.Interrupted("x").exit_code == 130
