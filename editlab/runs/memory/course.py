"""A course: what a learner is trained on, update by update, and when it is asked what it knows.

Everything a course does is a function of its settings: batches are laid out before it begins, and no step depends on a
generator that ran before. So a course that was interrupted is gone on with by

1. reading the probes that the journal has;
2. taking the newest checkpoint, if there is one of this course, else beginning again;
3. training on to the next probe that is missing,

and ends with the weights and the rows of an unbroken one, bit for bit (same machine, threads and libraries).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from editlab.errors import ConfigError, EditFailed, RequestError
from editlab.hooks.batch import positions_of
from editlab.progress import OnStep, StepInfo, silent
from editlab.runs.journal import Journal
from editlab.runs.memory.learner import Diverged, Learner

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.memory.reading import Ids

Row = dict[str, Any]
OptState = Literal["reset", "carry", "warmup"]
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY = 120.0  # seconds of training that may have to be done again
WARMUP = 5  # updates over which the rate rises after a reset, if asked for


@dataclass(frozen=True)
class Phase:
    """Updates of one kind.

    Attributes:
        batches: the rows of each update. opt_state: whether the optimiser begins afresh here ("warmup": and its rate
            rises over five updates) or goes on.
    """

    batches: tuple[tuple[Ids, ...], ...]
    lr: float
    opt_state: OptState = "reset"


@dataclass(frozen=True)
class Course:
    """One way of a learner.

    Attributes:
        name: unique in its run. phases: one after the other. probes: numbers of updates after which `measure` is asked,
            ascending; it gets the learner and that number.
        begin: gives the model it starts from; default the learner's source. A course whose model cannot be made is
            over before its first probe.
        forbidden: rows that must be in no batch (foils, controls, probes).
        reads: tokens of the longest text that a probe reads, answers included.
        spoilt: says why the course must end, from the rows of a probe, or "".
    """

    name: str
    phases: tuple[Phase, ...]
    probes: tuple[int, ...]
    measure: Callable[[Learner, int], list[Row]]
    begin: Callable[[], LM] | None = None
    forbidden: frozenset[Ids] = frozenset()
    reads: int = 0
    spoilt: Callable[[list[Row]], str] = field(default=lambda rows: "")

    def __post_init__(self) -> None:
        studied = {row for phase in self.phases for batch in phase.batches for row in batch}
        leaked = studied & self.forbidden
        assert not leaked, f"{len(leaked)} foils or controls of '{self.name}' would be trained on"

    @property
    def updates(self) -> int:
        """In all."""
        return sum(len(phase.batches) for phase in self.phases)

    @property
    def tokens(self) -> int:
        """That are trained on."""
        return sum(len(row) for phase in self.phases for batch in phase.batches for row in batch)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is trained on or read."""
        trained = (len(row) for phase in self.phases for batch in phase.batches for row in batch)
        return max(self.reads, max(trained, default=0))

    def step(self, learner: Learner, update: int) -> float:
        """Carry out one update."""
        for phase in self.phases:
            if update < len(phase.batches):
                if update == 0 and phase.opt_state != "carry":
                    learner.forget_moments()
                rise = min(1.0, (update + 1) / WARMUP) if phase.opt_state == "warmup" else 1.0
                return learner.step(phase.batches[update], phase.lr * rise)
            update -= len(phase.batches)
        raise IndexError(update)


def check_fits(lm: LM, courses: Sequence[Course], shorter: str) -> None:
    """Refuse courses with a text that the model has no positions for, before anything is promised or begun.

    Args:
        shorter: what makes the texts shorter.

    Raises:
        ConfigError: there is such a text.
    """
    most, longest = positions_of(lm.model), max((course.longest for course in courses), default=0)
    if most is not None and longest > most:
        raise ConfigError(
            f"The longest text of this study has {longest:,} tokens, and {lm.name} reads {most:,} at most.", shorter
        )


def run_courses(
    lm: LM, learner: Learner, courses: Sequence[Course], journal: Journal, on_step: OnStep = silent
) -> list[Row]:
    """Run what the journal lacks of the courses; all rows, in the courses' order.

    Each row carries `course` and `update`; the journal also has the mean training loss since the probe before.
    """
    total = sum(course.updates for course in courses)
    before = 0
    rows: list[Row] = []
    for course in courses:
        _run(lm, learner, course, journal, on_step, before, total)
        before += course.updates
        for event in _probed(journal, course):
            rows += [{"course": course.name, "update": event["update"], **row} for row in event["rows"]]
    on_step(StepInfo("training", total, total, "updates"))
    return rows


def _probed(journal: Journal, course: Course) -> list[dict[str, Any]]:
    return [e for e in journal.events if e["event"] == "probed" and e["course"] == course.name]


def _run(lm: LM, learner: Learner, course: Course, journal: Journal, on_step: OnStep, before: int, total: int) -> None:
    if any(e["event"] == "aborted" and e["course"] == course.name for e in journal.events):
        return
    early = _train(lm, learner, course, journal, on_step, before, total)
    if early:
        # Whoever tells it ends the sentence.
        journal.add("aborted", course=course.name, update=early[0], reason=early[1].rstrip("."))


def _train(
    lm: LM, learner: Learner, course: Course, journal: Journal, on_step: OnStep, before: int, total: int
) -> tuple[int, str] | None:
    """Train on to the last probe that the journal lacks; the update at which the course had to end, and why."""
    probed = _probed(journal, course)
    if probed and (reason := course.spoilt(probed[-1]["rows"])):  # killed before it could say so
        return probed[-1]["update"], reason
    missing = set(course.probes) - {e["update"] for e in probed}
    if not missing:
        return None
    path = journal.path.parent / CHECKPOINT
    try:
        learner.restore(course.begin() if course.begin else lm)
    except (EditFailed, RequestError) as error:
        return 0, str(error)
    start = _checkpointed(path, course)
    if start and start <= min(missing):
        learner.load(path)
    else:
        start = 0
    losses: list[float] = []
    saved = time.perf_counter()
    last = max(course.probes)
    for update in range(start, last + 1):
        on_step(StepInfo("training", before + update, total, "updates", course.name))
        if update in missing:
            began = time.perf_counter()
            found = course.measure(learner, update)
            loss = sum(losses) / len(losses) if losses else None
            if not all(math.isfinite(v) for row in found for v in row.values() if isinstance(v, float)):
                return update, "the model gives no finite numbers any more, use a smaller lr"
            journal.add(
                "probed", course=course.name, update=update, train_loss=loss, rows=found,
                seconds=time.perf_counter() - began,
            )  # fmt: skip
            if reason := course.spoilt(found):
                return update, reason
        if update in course.probes:
            losses = []
            if update < last and time.perf_counter() - saved > CHECKPOINT_EVERY:
                learner.save(path, {"course": course.name, "update": str(update)})
                saved = time.perf_counter()
        if update < last:
            try:
                losses.append(course.step(learner, update))
            except Diverged as error:
                return update, error.what
    path.unlink(missing_ok=True)
    return None


def _checkpointed(path: Path, course: Course) -> int:
    """The update that the checkpoint of this course stands at; 0 without one."""
    try:
        with safe_open(path, "pt") as f:
            note = f.metadata()
    except (OSError, SafetensorError):
        return 0
    return int(note["update"]) if note and note.get("course") == course.name else 0
