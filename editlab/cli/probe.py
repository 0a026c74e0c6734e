"""`editlab probe NAME`: an analysis of prompts, any of `editlab ls probes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import EditedCheckpoint, new_folder, spread
from editlab.errors import ConfigError


def probe(
    out: Output,
    checkpoint: EditedCheckpoint,
    name: Annotated[str, typer.Argument(help="See 'editlab ls probes'.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings of the probe.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A prompt a line, or facts in any layout.")] = None,
    run: Annotated[Path | None, new_folder("Run folder; default runs/TIME-NAME-HASH.")] = None,
) -> None:
    """Look at what a model does with prompts: a table, a figure, and a run folder with both."""
    from editlab import registry
    from editlab.config import build, parse_overrides
    from editlab.data.prompts import read_prompts

    settings = parse_overrides(overrides or [])
    build(registry.get(name, "probes").Config, settings, f"probe '{name}'")
    prompts = [*(prompt or []), *(read_prompts(file) if file else [])]
    if not prompts:
        raise ConfigError("There is no prompt.", "Give --prompt, or --file with a prompt a line.")
    from editlab.runs import run_folder, run_probe

    lm = checkpoint.open(out.on_step)
    folder = run or run_folder(name, lm.base_hash)
    found = run_probe(lm, prompts, name, settings, folder, out.on_step)
    out.show(found.table())
    out.result(
        {"run": str(folder), "headline": found.headline, "rows": found.to_pandas().to_dict("records")},
        f"{found.headline}\nRun: {folder}",
    )


def register(app: typer.Typer) -> None:
    app.command()(spread(probe))
