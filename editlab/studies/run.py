"""A study: its folder, its journal, and going on after a kill.

1. The first line of the journal has the plan and hashes of what the runs rest on beside their own journals.
2. Every run is a folder of its own under `runs/`, with the journal of an ordinary batch. Runs that are done are left
   alone; the others are handed to a launcher, and noted when they come back.
3. Then the runs' evaluations become one table, figures and a page. They are written again whenever a study is gone on
   with, from the folders alone, so the tables of a study that was killed are those of an unbroken one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from editlab import registry
from editlab.errors import ConfigError, ResumeRefused
from editlab.progress import OnStep, StepInfo, silent
from editlab.runs.batch import check_basis
from editlab.runs.folder import check_free, versions, write_config
from editlab.runs.journal import NAME as JOURNAL
from editlab.runs.journal import Journal, alone
from editlab.state.files import filled_or_removed, write_json, write_text
from editlab.studies.launchers import Launch, Lost, launch_settings
from editlab.studies.plan import StudyPlan
from editlab.studies.report import page
from editlab.studies.results import StudyResult, collect
from editlab.studies.work import Outcome, Task, carry_out, is_done

KIND = "study"
RUNS = "runs"


def run_study(
    plan: StudyPlan,
    folder: Path,
    on_step: OnStep = silent,
    *,
    launch: Mapping[str, Any] | None = None,
    force: bool = False,
) -> StudyResult:
    """Carry out a study, or go on with one.

    Args:
        folder: empty, or that of a study with the same runs.
        launch: launcher and settings, over the plan's.
        force: go on although something that the runs rest on has changed.

    Raises:
        ConfigError: the launcher or its settings, or the folder holds something else. ResumeRefused: the study rests on
            something else. RunBusy: another process works on it. Runs that fail do so alone, and are tried again by
            whoever goes on with the study.
    """
    name, settings = launcher_of(plan, launch or {})
    folder = folder.absolute()
    if not (folder / JOURNAL).is_file():
        check_free(folder)
    with alone(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        journal = Journal(folder)
        basis = _basis(plan, settings.threads_each)
        if not journal.events:
            config = plan.model_dump(mode="json") | {"launch": {"launcher": name, **settings.model_dump(mode="json")}}
            with filled_or_removed(folder):
                (folder / RUNS).mkdir()
                journal.add("planned", kind=KIND, basis=basis, plan=config, model=", ".join(plan.models))
                write_config(folder, config)
        else:
            settings = settings.model_copy(update={"threads": int(journal.events[0]["basis"]["threads"])})
            basis["threads"] = str(settings.threads)
            check_basis(journal, basis, force)
        failed = _carry_out(plan, folder, journal, name, settings, on_step, force)
        result = collect(plan, folder / RUNS, failed)
        _write(folder, result)
        if not failed and journal.last("finished") is None:
            journal.add("finished", runs=len(plan.runs))
    return result


def launcher_of(plan: StudyPlan, over: Mapping[str, Any]) -> tuple[str, Launch]:
    """The launcher's name and its settings.

    Raises:
        UnknownName: there is no such launcher. ConfigError: a setting is wrong.
    """
    given = {**plan.launch, **over}
    if "launcher" in over and over["launcher"] != plan.launch.get("launcher", "local"):
        # Settings of another launcher are not meant; how many and how wide is.
        given = {k: v for k, v in given.items() if k in Launch.model_fields or k in over}
    name = str(given.pop("launcher", "local"))
    return name, launch_settings(name, given)


def _carry_out(
    plan: StudyPlan, folder: Path, journal: Journal, name: str, settings: Launch, on_step: OnStep, force: bool
) -> dict[str, str]:
    """Do the runs that are left; reasons of those that failed, by name."""
    specs = plan.runs
    left = [spec for spec in specs if not is_done(folder / RUNS / spec.name)]
    tasks = [Task(spec, folder / RUNS / spec.name, settings.threads_each, force) for spec in left]
    done = len(specs) - len(tasks)

    def say(note: str = "") -> None:
        on_step(StepInfo("runs of the study", done, len(specs), "runs", note))

    is_here = name == "local" and settings.workers == 1
    work: Callable[[Task], Outcome] = partial(carry_out, on_step=on_step) if is_here else carry_out
    failed: dict[str, str] = {}
    say()
    for number, outcome in registry.get(name, "launchers").launch(work, tasks, settings) if tasks else ():
        run = left[number].name
        reason = outcome.reason if isinstance(outcome, Lost) else outcome.failed
        journal.add("ended", run=run, failed=reason or None)
        if reason:
            failed[run] = reason
        done += 1
        say(run)
    return failed


def _basis(plan: StudyPlan, threads: int) -> dict[str, str]:
    """Everything that the runs rest on which their own journals cannot know before they begin."""
    paths = [Path(source) for source in plan.facts if Path(source).is_file()]
    names = [path.name for path in paths]
    files = {path.name if names.count(path.name) == 1 else str(path): _sha(path) for path in paths}
    return {"plan": plan.sha256, "threads": str(threads), **files, **versions()}


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, result: StudyResult) -> None:
    """Tables, figures, the page, and the manifest last."""
    from editlab.viz.files import save_figures

    result.save(folder)
    figures = result.figures() if find_spec("plotly") and len(result.runs) else {}
    save_figures(folder, figures)
    write_text(folder / "report.html", page(result, folder.name, figures))
    write_json(folder / "manifest.json", _manifest(result))


def _manifest(result: StudyResult) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "schema_version": 1,
        "kind": KIND,
        "state": "stopped" if result.failed else "complete",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": result.plan.model_dump(mode="json"),
        "base": {"name": ", ".join(result.plan.models)},
        "edits": [],
        "failed": [{"run": name, "reason": reason} for name, reason in result.failed.items()],
        "headline": result.headline,
        "versions": versions(),
        "cores": os.cpu_count(),
    }


def read_planned(folder: Path) -> StudyPlan | None:
    """The plan of a study's folder; None if it is none.

    Raises:
        ResumeRefused: its plan is damaged.
    """
    events = Journal(folder).events if (folder / JOURNAL).is_file() else []
    if not events or events[0].get("kind") != KIND:
        return None
    try:
        return StudyPlan.model_validate(events[0]["plan"])
    except (ValueError, KeyError):
        raise ResumeRefused(f"The plan in '{folder}/{JOURNAL}' is damaged.", "Start a new study.") from None


def read_result(folder: Path) -> StudyResult:
    """What the runs of a study's folder have given so far.

    Raises:
        ConfigError: it is none.
    """
    plan = read_planned(folder)
    if plan is None:
        raise ConfigError(f"'{folder}' is no study.", "Name the folder that 'editlab study run' wrote.")
    ends = {e["run"]: e["failed"] for e in Journal(folder).events if e["event"] == "ended"}
    return collect(plan, folder / RUNS, {run: reason for run, reason in ends.items() if reason})
