"""`editlab runs`: look at results that are already on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.eval import show as show_evaluation
from editlab.cli.options import Seed, spread

Folder = Annotated[Path, typer.Argument(help="Folder that 'editlab eval' wrote.")]


def show(out: Output, folder: Folder) -> None:
    """Show an evaluation again."""
    from editlab.evaluation.results import Evaluation

    found = Evaluation.load(folder)
    show_evaluation(out, found)
    out.result({"folder": str(folder), **found.to_json()})


def compare(out: Output, a: Folder, b: Folder, seed: Seed = 0) -> None:
    """Compare two evaluations metric by metric, with a paired test over the facts that both have."""
    from editlab.evaluation.compare import compare as compare_evaluations
    from editlab.evaluation.results import Evaluation

    found = compare_evaluations(Evaluation.load(a), Evaluation.load(b), seed=seed)
    for remark in found.remarks:
        out.warn(remark)
    out.show(found.table())
    different = {name: list(values) for name, values in found.settings.items()}
    out.result(
        {
            "a": str(a),
            "b": str(b),
            "differences": [d.to_record() for d in found.differences],
            "settings": different,
        },
        "".join(f"{name}: {x} | {y}\n" for name, (x, y) in found.settings.items()).rstrip(),
    )


def register(app: typer.Typer) -> None:
    runs = typer.Typer(help="Show and compare results on disk.", no_args_is_help=True)
    app.add_typer(runs, name="runs")
    runs.command()(spread(show))
    runs.command()(spread(compare))
