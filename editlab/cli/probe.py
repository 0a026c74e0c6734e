"""`editlab probe NAME`: an analysis of prompts, any of `editlab ls probes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output
from editlab.errors import ConfigError


def register(app: typer.Typer) -> None:
    @app.command()
    def probe(
        name: Annotated[str, typer.Argument(help="See 'editlab ls probes'.")],
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings of the probe.")
        ] = None,
        prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeatable.")] = None,
        file: Annotated[Path | None, typer.Option("--file", help="A prompt a line, or facts in any layout.")] = None,
        model: options.Model = None,
        edits: Annotated[Path | None, typer.Option("--edits", help="Run or pack whose edits are in force.")] = None,
        dtype: options.Dtype = "float32",
        device: options.Device = "cpu",
        threads: options.Threads = None,
        run: Annotated[
            Path | None, typer.Option("--out", "-o", help="Run folder; default runs/TIME-NAME-HASH.")
        ] = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Look at what a model does with prompts: a table, a figure, and a run folder with both."""
        from editlab import registry
        from editlab.config import build, parse_overrides
        from editlab.data.prompts import read_prompts

        with Output(as_json=as_json, quiet=quiet) as out:
            settings = parse_overrides(overrides or [])
            build(registry.get(name, "probes").Config, settings, f"probe '{name}'")
            prompts = [*(prompt or []), *(read_prompts(file) if file else [])]
            if not prompts:
                raise ConfigError("There is no prompt.", "Give --prompt, or --file with a prompt a line.")
            from editlab.runs import check_free, run_folder, run_probe

            if run is not None:
                check_free(run)
            from editlab.lm import LM

            lm = LM.from_pretrained(model, dtype=dtype, device=device, on_step=out.on_step)
            if edits is not None:
                lm.load_edits(edits)
            folder = run or run_folder(name, lm.base_hash)
            found = run_probe(lm, prompts, name, settings, folder, out.on_step)
            out.show(found.table())
            out.result(
                {"run": str(folder), "headline": found.headline, "rows": found.to_pandas().to_dict("records")},
                f"{found.headline}\nRun: {folder}",
            )
