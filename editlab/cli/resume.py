"""`editlab resume`: go on with a batch of edits, a study of memory, or a study of runs that was stopped or killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.edit import finish, interruptible
from editlab.cli.options import Checkpoint, spread


def resume(
    out: Output,
    checkpoint: Checkpoint,
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    force: Annotated[
        bool, typer.Option("--force", help="Go on although the model, library or another thing has changed.")
    ] = False,
) -> None:
    """Go on with a run of 'edit --file', 'memory' or 'study': what is done is put back, not done again."""
    from editlab.runs import drop_single_packs, is_finished, read_run, run_batch

    if _resume_memory(out, checkpoint, run, force) or _resume_study(out, run, force):
        return
    plan, name, facts = read_run(run)
    if is_finished(run):
        _say_finished(out, run)
        drop_single_packs(run)  # a kill may have come between
        return
    lm = checkpoint.open(out.on_step, name)
    with interruptible(run):
        result = run_batch(lm, facts, plan, run, out.on_step, force=force)
    finish(out, lm, plan.method, run, list(result.reports), list(result.failed), result.stopped)


def register(app: typer.Typer) -> None:
    app.command()(spread(resume))


def _say_finished(out: Output, run: Path) -> None:
    from editlab.runs.records import finished_state

    data = {"run": str(run), "state": "finished", "state_hash": finished_state(run)}
    out.result(data, f"'{run}' is finished; there is nothing to go on with.")


def _resume_memory(out: Output, checkpoint: Checkpoint, run: Path, force: bool) -> bool:
    """Go on with a study of memory; False if the folder is none."""
    from editlab.runs import is_finished
    from editlab.runs.memory.run import read_planned
    from editlab.runs.memory.verbs import VERBS

    planned = read_planned(run, VERBS)
    if planned is None:
        return False
    if is_finished(run):
        _say_finished(out, run)
        return True
    from editlab.cli.memory import Target, carry_out

    lm = checkpoint.open(out.on_step, planned.model)
    if planned.edits is not None:
        lm.load_edits(planned.edits)
    carry_out(out, lm, planned.verb.name, planned.settings, Target(run), force=force)
    return True


def _resume_study(out: Output, run: Path, force: bool) -> bool:
    """Go on with a study, where its file says; False if the folder is none."""
    from editlab.cli.study import carry_out
    from editlab.studies.run import read_planned

    plan = read_planned(run)
    if plan is None:
        return False
    carry_out(out, plan, run, {}, force=force)
    return True
