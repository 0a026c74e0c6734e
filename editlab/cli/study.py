"""`editlab study`: many runs from one file, crossed, carried out here or on a cluster, in one table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli import options
from editlab.cli.console import Output, table
from editlab.cli.edit import interruptible

if TYPE_CHECKING:
    from editlab.studies.plan import StudyPlan
    from editlab.studies.results import StudyResult

FAILED_RUNS = 5
Launcher = Annotated[str | None, typer.Option("--launcher", help="local, ray or slurm; default the file's, or local.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Runs at once; 1.")]
Launch = Annotated[
    list[str] | None,
    typer.Option("--launch", metavar="SETTING=VALUE", help="A setting of the launcher; repeatable."),
]


def register(app: typer.Typer) -> None:
    study = typer.Typer(help="Cross models, methods, settings and seeds into runs, and compare.", no_args_is_help=True)
    app.add_typer(study, name="study")

    @study.command()
    def run(
        file: Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="What is crossed; see editlab/studies.")],
        launcher: Launcher = None,
        workers: Workers = None,
        threads: options.Threads = None,
        launch: Launch = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="List the runs with what they will cost, and write nothing.")
        ] = False,
        out_folder: Annotated[
            Path | None, typer.Option("--out", "-o", help="The study's folder; default runs/TIME-study-HASH.")
        ] = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Carry out a study; 'editlab resume FOLDER' goes on with it after a kill."""
        from editlab.runs import check_free, run_folder
        from editlab.studies.plan import read_study
        from editlab.studies.run import launcher_of

        with Output(as_json=as_json, quiet=quiet) as out:
            plan = read_study(file)
            over = launch_settings(launcher, workers, threads, launch)
            launcher_of(plan, over)
            if out_folder is not None:
                check_free(out_folder)
            if dry_run:
                _dry_run(out, plan)
                return
            folder = out_folder or run_folder("study", plan.sha256)
            carry_out(out, plan, folder, over)

    @study.command()
    def show(
        folder: Annotated[Path, typer.Argument(help="Folder that 'study run' wrote.")],
        seeds: Annotated[bool, typer.Option("--seeds", help="A row a run, instead of a row over its seeds.")] = False,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Show the table of a study, finished or not."""
        from editlab.studies.run import read_result

        with Output(as_json=as_json, quiet=quiet) as out:
            finish(out, read_result(folder), folder, seeds=seeds, fails=False)


def launch_settings(
    launcher: str | None, workers: int | None, threads: int | None, launch: list[str] | None
) -> dict[str, Any]:
    """Where to carry out runs, as the options say it."""
    from editlab.config import parse_overrides

    given = {"launcher": launcher, "workers": workers, "threads": threads}
    return {k: v for k, v in given.items() if v is not None} | parse_overrides(launch or [])


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
    out.show(table(*result.cells(seeds=True)) if seeds else result.table())
    rows = {name: _plain(result.to_pandas(seeds=per_run)) for name, per_run in (("runs", True), ("points", False))}
    data = {"study": str(folder), "headline": result.headline, "failed": dict(result.failed), **rows}
    out.result(data, f"{result.headline}\nReport: {folder / 'report.html'}")
    if result.failed and fails:
        raise typer.Exit(FAILED_RUNS)


def _plain(rows: Any) -> list[dict[str, Any]]:
    return list(rows.astype(object).where(rows.notna(), None).to_dict("records"))


def _dry_run(out: Output, plan: StudyPlan) -> None:
    from editlab.studies.estimate import estimate_study

    found = estimate_study(plan, out.on_step)
    cells = [[name, "?" if e is None else f"{e.seconds:.0f} s", "?" if e is None else f"{e.memory / 1e9:.2f} GB", why]
             for name, e, why in found]  # fmt: skip
    seconds = sum(e.seconds for _, e, _ in found if e is not None)
    out.show(table(["run", "edits and scores", "memory", "problem"], cells))
    rows = [{"run": name, "problem": why or None, **(asdict(e) if e else {})} for name, e, why in found]
    out.result(
        {"dry_run": True, "runs": rows, "seconds": seconds},
        f"{len(found)} runs: about {seconds / 60:.1f} minutes with one worker, without drift and perplexity.",
    )
