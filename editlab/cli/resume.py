"""`editlab resume`: go on with a batch of edits that was stopped or killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output
from editlab.cli.edit import finish, interruptible


def register(app: typer.Typer) -> None:
    @app.command()
    def resume(
        run: Annotated[Path, typer.Argument(help="The run's folder.")],
        model: options.Model = None,
        force: Annotated[
            bool, typer.Option("--force", help="Go on although the model, library or another thing has changed.")
        ] = False,
        dtype: options.Dtype = "float32",
        device: options.Device = "cpu",
        threads: options.Threads = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Go on with a run of 'editlab edit --file': edits that are done are put back, not done again."""
        from editlab.runs import drop_single_packs, is_finished, read_run, run_batch

        with Output(as_json=as_json, quiet=quiet) as out:
            plan, name, facts = read_run(run)
            if is_finished(run):
                drop_single_packs(run)  # a kill may have come between
                state = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["state_hash"]
                data = {"run": str(run), "state": "finished", "state_hash": state}
                out.result(data, f"'{run}' is finished; there is nothing to go on with.")
                return
            from editlab.lm import LM

            lm = LM.from_pretrained(model or name, dtype=dtype, device=device, on_step=out.on_step)
            with interruptible(run):
                result = run_batch(lm, facts, plan, run, out.on_step, force=force)
            finish(out, lm, plan.method, run, list(result.reports), list(result.failed), result.stopped)
