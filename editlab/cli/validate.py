"""`editlab validate`: everything wrong with a file of records or of settings, without loading a model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from editlab.cli.console import Output, printable
from editlab.cli.options import spread
from editlab.errors import RequestError


def validate(
    out: Output,
    file: Annotated[
        Path,
        typer.Argument(
            help="Records in any layout of 'editlab ls formats', text, settings (.yaml), or a run or pack folder."
        ),
    ],
    method: Annotated[str, typer.Option("--method", help="Whose settings a .yaml file holds.")] = "rome",
) -> None:
    """Check a file and list all its problems; exit code 2 if there is one."""
    if os.path.isdir(file):  # noqa: PTH112 - False, not an error, of a name that no file can have
        from editlab.state.packs import read_pack

        pack = read_pack(file)
        out.result(
            {"file": str(file), "kind": "pack", "edits": len(pack)},
            printable(f"{file}: an edit pack with {len(pack)} edits for {pack.base_name}."),
        )
    elif file.suffix in (".yaml", ".yml"):
        from editlab import registry
        from editlab.config import build, load_yaml

        build(registry.get(method).Config, load_yaml(file), f"method '{method}'")
        out.result({"file": str(file), "kind": "settings"}, printable(f"{file}: settings of {method} are valid."))
    else:
        _records(out, file)


def register(app: typer.Typer) -> None:
    app.command()(spread(validate))


def _records(out: Output, file: Path) -> None:
    from editlab.data.formats import check, layouts

    report = check(file)
    data: dict[str, Any] = {
        "file": str(file),
        "kind": report.holds,
        "layout": report.layout or None,
        "rows": report.rows,
        "records": report.records,
        "notes": report.remarks(),
        "same_place": [list(rows) for rows in report.same_place],
    }
    if report.is_ok:
        title = f" ({layouts()[report.layout].title})" if report.layout else ""
        lines = [f"{file}: {report.records} {report.holds} are valid{title}.", *report.remarks(), *report.places()]
        out.result(data, printable("\n".join(lines)))
        return
    problem = RequestError(report.text(), "Correct them, or leave the rows out.")
    if not out.as_json:
        raise problem
    error = {"what": problem.what, "fix": problem.fix, "code": problem.exit_code}
    out.result(data | {"problems": [asdict(p) for p in report.problems], "error": error})
    raise typer.Exit(problem.exit_code)
