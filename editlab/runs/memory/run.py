"""A run of the memory harness: its folder, its journal, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from editlab.config import build
from editlab.errors import ConfigError, EditFailed, ResumeRefused
from editlab.progress import OnStep, silent
from editlab.runs.batch import check_basis
from editlab.runs.folder import check_free, versions, write_config, write_table
from editlab.runs.journal import NAME as JOURNAL
from editlab.runs.journal import Journal, alone
from editlab.runs.memory.course import CHECKPOINT, Course, Row, check_fits, run_courses
from editlab.runs.memory.learner import Learner, memory_needed
from editlab.runs.memory.result import MemoryResult
from editlab.runs.memory.settings import TrainingSettings
from editlab.runs.memory.untouched import untouched
from editlab.state.files import filled_or_removed
from editlab.viz.files import save_figures

if TYPE_CHECKING:
    from editlab.lm import LM

KIND = "memory"
START = "start"  # the edits that the model began with, as a pack


@dataclass(frozen=True)
class Verb:
    """One kind of study.

    Attributes:
        settings: their class. courses: lays them out. result: makes sense of the rows; it gets them, the settings, the
            model's name, and the courses that were aborted. probed: about how many texts a probe reads. whole: a course
            that did not come to its end says nothing. live: makes the curves that are shown on the way (see
            `live_curves`), and what their values are. shorter: what makes its texts shorter.
    """

    name: str
    settings: type[TrainingSettings]
    courses: Callable[[LM, Any, OnStep], Sequence[Course]]
    result: Callable[[pd.DataFrame, Any, str, tuple[tuple[str, str], ...]], MemoryResult]
    probed: Callable[[Any], int]
    live: tuple[Callable[[pd.DataFrame], pd.DataFrame], str]
    whole: bool = False
    shorter: str = "Use a smaller 'block'."

    def laid_out(self, lm: LM, settings: Any, on_step: OnStep = silent) -> Sequence[Course]:
        """The courses of a study that the model can read.

        Raises:
            ConfigError: a setting or file is wrong, or the model has no positions for a text.
        """
        courses = self.courses(lm, settings, on_step)
        check_fits(lm, courses, self.shorter)
        return courses


def run_memory(
    lm: LM,
    verb: Verb,
    settings: TrainingSettings,
    folder: Path,
    on_step: OnStep = silent,
    *,
    force: bool = False,
    on_cost: Callable[[str], None] = lambda text: None,
) -> Any:
    """Carry out a study, or go on with one; the model itself is read and never written.

    Args:
        folder: empty, or that of a run of the same verb, settings and model.
        force: go on although something that the run rests on has changed.
        on_cost: is told before the first update what memory and how much training are ahead.

    Raises:
        ConfigError: a setting or file is wrong, the model cannot be trained here, or the folder holds something else.
        ResumeRefused: the run rests on something else. RunBusy: another process writes there.
        ModelTouched: the model is not what it was, to the bit. EditFailed: no course gave anything to report.
    """
    if not folder.exists() or not (folder / JOURNAL).exists():
        check_free(folder)
    courses = verb.laid_out(lm, settings, on_step)
    tokens = sum(course.tokens for course in courses)
    updates = sum(course.updates for course in courses)
    need = memory_needed(lm, settings.scope)
    on_cost(f"{updates} updates on {tokens:,} tokens; {need / 1e9:.1f} GB of memory beside the model.")
    learner = Learner(lm, settings.optimiser, settings.scope)
    with alone(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        journal = Journal(folder)
        basis = _basis(lm, settings, courses)
        if not journal.events:
            config = settings.model_dump(mode="json")
            with filled_or_removed(folder):
                if lm.ledger.active:
                    lm.save_edits(folder / START)
                journal.add("planned", kind=KIND, verb=verb.name, basis=basis, plan=config, model=lm.name)
                write_config(folder, {"verb": verb.name, "model": lm.name, **config})
        elif journal.last("finished"):
            raise ConfigError(f"The run in '{folder}' is finished.", "Choose another --out for a new one.")
        else:
            check_basis(journal, basis, force)
        with untouched(lm) as digest:
            found = run_courses(lm, learner, courses, journal, on_step)
        aborted = _aborted(journal)
        broken = {name for name, _ in aborted} if verb.whole else set()
        rows = pd.DataFrame([row for row in found if row["course"] not in broken])
        if rows.empty:
            raise EditFailed(
                f"There is nothing to report: '{aborted[0][0]}' ended early, {aborted[0][1]}.",
                "Use other settings in a new run.",
            )
        result = verb.result(rows, settings, lm.name, aborted)
        _write(folder, lm, settings, rows, result, {"verb": verb.name, "trained_tokens": tokens, "restored": digest})
        journal.add("finished", state=lm.state_hash, restored=digest)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _write(
    folder: Path, lm: LM, settings: TrainingSettings, rows: pd.DataFrame, result: MemoryResult, said: dict[str, Any]
) -> None:
    """Rows, figures and manifest."""
    extra = {"headline": result.headline, "remarks": result.remarks(), **said}
    if find_spec("plotly"):
        save_figures(folder, result.figures())
    write_table(folder, lm, KIND, settings.model_dump(mode="json"), rows, extra)


def _aborted(journal: Journal) -> tuple[tuple[str, str], ...]:
    return tuple((e["course"], e["reason"]) for e in journal.events if e["event"] == "aborted")


def _basis(lm: LM, settings: TrainingSettings, courses: Sequence[Course]) -> dict[str, str]:
    texts = hashlib.sha256()
    for course in courses:
        plan = [[phase.batches, phase.lr, phase.opt_state] for phase in course.phases]
        texts.update(json.dumps([course.name, course.probes, plan, sorted(course.forbidden)]).encode())
    return {
        "weights": lm.state_hash,
        "tokenizer": lm.tokenizer_hash,
        "settings": settings.sha256,
        "texts": texts.hexdigest(),
        "dtype": str(next(lm.model.parameters()).dtype),
        "threads": str(torch.get_num_threads()),
        **versions(),
    }


@dataclass(frozen=True)
class Planned:
    """What a folder says that it is a run of."""

    verb: Verb
    settings: TrainingSettings
    model: str
    edits: Path | None


def read_planned(folder: Path, verbs: dict[str, Verb]) -> Planned | None:
    """The plan of a memory run; None if the folder is none.

    Raises:
        ConfigError: its verb or settings are not known. ResumeRefused: its plan is damaged.
    """
    events = Journal(folder).events if (folder / JOURNAL).is_file() else []
    if not events or events[0].get("kind") != KIND:
        return None
    first = events[0]
    kinds = {"verb": str, "plan": dict, "model": str}
    if not all(isinstance(first.get(name), kind) for name, kind in kinds.items()):
        raise ResumeRefused(f"The plan in '{folder}/{JOURNAL}' is damaged.", "Start a new run.")
    if first["verb"] not in verbs:
        raise ConfigError(f"'{folder}' is a run of '{first['verb']}', which this editlab does not know.")
    verb = verbs[first["verb"]]
    settings = build(verb.settings, first["plan"], f"the run in '{folder}'")
    return Planned(verb, settings, first["model"], folder / START if (folder / START).is_dir() else None)


def rows_of(folder: Path) -> list[Row]:
    """The rows that a run has so far, in the order they were made; for curves that grow."""
    events = Journal(folder).events
    return [
        {"course": e["course"], "update": e["update"], **row}
        for e in events
        if e["event"] == "probed"
        for row in e["rows"]
    ]
