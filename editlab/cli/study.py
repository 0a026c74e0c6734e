"""`editlab study`: many runs from one file, crossed, carried out here or on a cluster, in one table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output
from editlab.cli.edit import interruptible
from editlab.cli.options import Threads, new_folder, spread
from editlab.display import text_table
from editlab.jsonable import records

if TYPE_CHECKING:
    from editlab.studies.plan import StudyPlan
    from editlab.studies.results import StudyResult

FAILED_RUNS = 5


@dataclass(frozen=True)
class Place:
    """Where runs are carried out; over what the study's file says."""

    launcher: Annotated[
        str | None, typer.Option("--launcher", help="local, ray or slurm; default the file's, or local.")
    ] = None
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Runs at once; 1.")] = None
    threads: Threads = None
    launch: Annotated[
        list[str] | None,
        typer.Option("--launch", metavar="SETTING=VALUE", help="A setting of the launcher; repeatable."),
    ] = None

    @property
    def values(self) -> dict[str, Any]:
        """What was given."""
        from editlab.config import parse_overrides

        given = {"launcher": self.launcher, "workers": self.workers, "threads": self.threads}
        return {k: v for k, v in given.items() if v is not None} | parse_overrides(self.launch or [])


def run(
    out: Output,
    place: Place,
    file: Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="What is crossed; see editlab/studies.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with what they will cost, and write nothing.")
    ] = False,
    out_folder: Annotated[Path | None, new_folder("The study's folder; default runs/TIME-study-HASH.")] = None,
) -> None:
    """Carry out a study; 'editlab resume FOLDER' goes on with it after a kill."""
    from editlab.runs import run_folder
    from editlab.studies.plan import read_study
    from editlab.studies.run import launcher_of

    plan = read_study(file)
    launcher_of(plan, place.values)  # refused before anything is loaded
    if dry_run:
        _dry_run(out, plan)
    else:
        carry_out(out, plan, out_folder or run_folder("study", plan.sha256), place.values)


def show(
    out: Output,
    folder: Annotated[Path, typer.Argument(help="Folder that 'study run' wrote.")],
    seeds: Annotated[bool, typer.Option("--seeds", help="A row a run, instead of a row over its seeds.")] = False,
) -> None:
    """Show the table of a study, finished or not."""
    from editlab.studies.run import read_result

    finish(out, read_result(folder), folder, seeds=seeds, fails=False)


def register(app: typer.Typer) -> None:
    study = typer.Typer(help="Cross models, methods, settings and seeds into runs, and compare.", no_args_is_help=True)
    app.add_typer(study, name="study")
    study.command()(spread(run))
    study.command()(spread(show))


def carry_out(out: Output, plan: StudyPlan, folder: Path, over: dict[str, Any], *, force: bool = False) -> None:
    """Run a study or go on with one, and show what it gave."""
    from editlab.studies.run import run_study

    out.say(f"{len(plan.runs)} runs in {folder}.")
    with interruptible(folder):
        result = run_study(plan, folder, out.on_step, launch=over, force=force)
    finish(out, result, folder)


def finish(out: Output, result: StudyResult, folder: Path, *, seeds: bool = False, fails: bool = True) -> None:
    """The table, and where everything is; failed runs end the command with their exit code."""
    for name, reason in result.failed.items():
        out.warn(f"{name}: {reason}")
    out.show(text_table(*result.cells(seeds=True)) if seeds else result.table())
    rows = {name: records(result.to_pandas(seeds=per_run)) for name, per_run in (("runs", True), ("points", False))}
    data = {"study": str(folder), "headline": result.headline, "failed": dict(result.failed), **rows}
    out.result(data, f"{result.headline}\nReport: {folder / 'report.html'}")
    if result.failed and fails:
        raise typer.Exit(FAILED_RUNS)


def _dry_run(out: Output, plan: StudyPlan) -> None:
    from editlab.studies.estimate import estimate_study

    found = estimate_study(plan, out.on_step)
    cells = [[name, "?" if e is None else f"{e.seconds:.0f} s", "?" if e is None else f"{e.memory / 1e9:.2f} GB", why]
             for name, e, why in found]  # fmt: skip
    seconds = sum(e.seconds for _, e, _ in found if e is not None)
    out.show(text_table(["run", "edits and scores", "memory", "problem"], cells))
    rows = [{"run": name, "problem": why or None, **(asdict(e) if e else {})} for name, e, why in found]
    out.result(
        {"dry_run": True, "runs": rows, "seconds": seconds},
        f"{len(found)} runs: about {seconds / 60:.1f} minutes with one worker, without drift and perplexity.",
    )
