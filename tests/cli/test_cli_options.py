"""Groups of options that arrive as one object."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, EditedCheckpoint, Seed, new_folder, spread
from editlab.errors import ConfigError, Interrupted


@dataclass(frozen=True)
class Size:
    """Sides; the first has no default."""

    width: Annotated[int, typer.Option("--width", help="Of it.")]
    height: Annotated[int, typer.Option("--height", help="Of it.")] = 2


def runner(command: Any) -> typer.Typer:
    app = typer.Typer()
    app.command()(spread(command))
    return app


def test_a_dataclass_stands_for_its_fields() -> None:
    seen: list[Any] = []

    def trial(out: Output, checkpoint: EditedCheckpoint, size: Size, name: str, seed: Seed = 0) -> None:
        """A trial."""
        seen.append((out, checkpoint, size, name, seed))

    app = runner(trial)
    words = ["a", "--width", "3", "--edits", "pack", "--dtype", "float64", "-q", "--seed", "7"]
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ended.exit_code == 0
    wanted = EditedCheckpoint(dtype="float64", edits=Path("pack"))
    assert seen == [(Output(quiet=True), wanted, Size(3, 2), "a", 7)]
    assert "--width" in CliRunner().invoke(app, ["a"]).output  # said to be missing
    help = CliRunner().invoke(app, ["--help"]).output
    assert [help.index(o) for o in ("--seed", "--width", "--model", "--json")] == sorted(
        help.index(o) for o in ("--seed", "--width", "--model", "--json")
    )


def test_two_groups_with_one_field_are_refused() -> None:
    def trial(a: Checkpoint, b: EditedCheckpoint) -> None:
        """A trial."""

    with pytest.raises(ValueError, match="duplicate parameter name"):
        spread(trial)


def test_the_output_is_open_while_the_command_runs() -> None:
    def trial(out: Output) -> None:
        """A trial."""
        out.warn("odd.")
        out.result({"a": 1})

    ended = CliRunner().invoke(runner(trial), ["--json"], catch_exceptions=False)
    assert json.loads(ended.stdout) == {"schema_version": 1, "a": 1, "warnings": ["odd."]}
    with pytest.raises(Interrupted):
        CliRunner().invoke(runner(_interrupted), [], catch_exceptions=False)


def _interrupted(out: Output) -> None:
    """A trial."""
    raise KeyboardInterrupt


def test_a_folder_that_holds_something_is_refused_before_the_command(tmp_path: Path) -> None:
    ran = []

    def trial(out: Output, folder: Annotated[Path | None, new_folder("Folder.")] = None) -> None:
        """A trial."""
        ran.append(folder)

    def study(out: Output, folder: Annotated[Path | None, new_folder("Folder.", may_resume=True)] = None) -> None:
        """A trial."""
        ran.append(folder)

    free, begun = tmp_path / "free", tmp_path / "begun"
    begun.mkdir()
    (begun / "journal.jsonl").write_text('{"event": "planned"}\n')
    CliRunner().invoke(runner(trial), ["--out", str(free)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="is not empty"):
        CliRunner().invoke(runner(trial), ["--out", str(begun)], catch_exceptions=False)
    CliRunner().invoke(runner(study), ["--out", str(begun)], catch_exceptions=False)
    assert ran == [free, begun]
