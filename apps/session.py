"""What one browser session owns: a view of the model with a ledger of its own, and its work under way.

The base model is shared by all sessions of the process and is never handed out: sessions get forks of it, which share
its tensors until an edit replaces one. The ledger lives in `st.session_state`, and nowhere else.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from editlab.errors import EditlabError
from editlab.facts import Fact
from editlab.lm import LM
from editlab.progress import OnStep, StepInfo, silent

from . import errors
from .examples import EXAMPLES, example_for
from .jobs import Job, JobManager, Work
from .sharing import is_shared, shareable

LAB, FAILURE = "editlab.lab", "editlab.failure"


@dataclass(frozen=True)
class Source:
    """Which model was asked for."""

    name: str | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def stamp(self) -> tuple[Any, ...]:
        """Tells it from other models, and from the same folder with other contents."""
        folder = Path(self.name) if self.name else None
        files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
        return (self, *(path.stat().st_mtime_ns for path in files))


class Models:
    """The base model that was loaded last; sessions that fork an older one keep that alive themselves."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stamp: tuple[Any, ...] | None = None
        self._base: LM | None = None
        self._example = EXAMPLES[0]

    def begin(self, source: Source, on_step: OnStep = silent) -> tuple[LM, Fact]:
        """A view of the model without edits, and a fact that it knows.

        Raises:
            EditlabError: it cannot be loaded, or is not supported.
        """
        with self._lock:
            return self.fork(source, on_step), self._example

    def fork(self, source: Source, on_step: OnStep = silent) -> LM:
        """A view of the model without edits, loading it if it is not the one that is there.

        Raises:
            EditlabError: it cannot be loaded, or is not supported.
        """
        with self._lock:
            stamp = source.stamp
            if self._base is None or stamp != self._stamp:
                base = LM.from_pretrained(source.name, dtype=source.dtype, device=source.device, on_step=on_step)
                # An unsupported structure is refused here, and every session's fork knows the rest.
                _ = base.adapter, base.base_hash, base.tokenizer_hash, base.sink
                base.name = shareable(base.name)
                on_step(StepInfo("trying an example", 0))
                self._base, self._stamp, self._example = base, stamp, example_for(base)
            return self._base.fork()


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    result: Any = None
    error: Exception | None = None


@dataclass
class Lab:
    """One session's model, edits and work.

    Attributes:
        lm: the view with the session's edits. plain: one without any, for comparison.
        outcomes: of the last job of each slot. working_on: the slot of the latest job.
        reports: of the edits that were kept, by entry.
        saved: the state that was last written to a run folder.
        asked: the latest answer of each place on a page, come or on its way.
    """

    lm: LM
    plain: LM
    source: Source
    jobs: JobManager
    example: Fact = EXAMPLES[0]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    saved: str = ""
    job: Job | None = None
    asked: dict[str, Job] = field(default_factory=dict)
    working_on: str = ""
    _then: Callable[[Any], None] | None = None

    @property
    def state(self) -> str:
        """Hash of the weights and side memories in force; every cached result has it in its key."""
        return self.lm.state_hash

    @property
    def is_unsaved(self) -> bool:
        """There are edits that no run folder holds."""
        return bool(self.lm.ledger.active) and self.saved != self.state

    @property
    def runs_root(self) -> Path:
        """Where this session's run folders go."""
        return Path("runs", self.id[:8]) if is_shared() else Path("runs")

    def start(self, slot: str, label: str, work: Work, then: Callable[[Any], None] | None = None) -> None:
        """Queue work; what it gives is in `outcomes[slot]` when it has ended, after `then` was called with it.

        Raises:
            EditlabError: this session has work under way.
        """
        self.job = self.jobs.submit(self.id, label, work)
        self.working_on, self._then = slot, then
        self.outcomes.pop(slot, None)

    def collect(self) -> None:
        """Take over the outcome of a job that has ended."""
        if self.job is None or self.job.is_live:
            return
        job, self.job = self.job, None
        error = job.error
        if error is None and self._then is not None:
            try:
                self._then(job.result)
            except EditlabError as refused:
                error = refused
        self.outcomes[self.working_on] = Outcome(None if error else job.result, error)

    def take_over(self, twin: LM, expected: str) -> None:
        """Go on with a fork that a job has changed.

        Raises:
            EditlabError: the ledger is no longer the one that the job began with.
        """
        if self.state != expected:
            raise EditlabError("The ledger has changed in the meantime, so the result was dropped.", "Run it again.")
        self.lm = twin


@st.cache_resource(show_spinner=False)
def models() -> Models:
    """The process's base model."""
    return Models()


@st.cache_resource(show_spinner=False)
def job_manager() -> JobManager:
    """The process's worker."""
    return JobManager()


def begin() -> None:
    """At the top of every run: load the model if there is none yet, and take over what has ended."""
    if LAB not in st.session_state and FAILURE not in st.session_state:
        load(Source(os.environ.get("EDITLAB_MODEL") or None))
    if LAB in st.session_state:
        st.session_state[LAB].collect()


def load(source: Source) -> None:
    """Make `source` this session's model, saying what is going on; its ledger starts empty."""
    place = st.empty()
    try:
        with place.status("Loading the model", expanded=True) as status:
            lm, example = models().begin(source, lambda step: status.update(label=step.task.capitalize()))
            st.session_state[LAB] = Lab(lm, lm.fork(), source, job_manager(), example)
        st.session_state.pop(FAILURE, None)
    except Exception as error:
        st.session_state[FAILURE] = error
    place.empty()


def lab() -> Lab:
    """This session's lab; without a model the page ends here, with a sentence and the way to one."""
    found: Lab | None = st.session_state.get(LAB)
    if found is None:
        st.info("This page needs a model.", title="No model is loaded.")
        st.page_link("views/overview.py", label="Choose one on the Overview page")
        st.stop()
    assert found is not None  # st.stop() does not return
    return found


def failure() -> Exception | None:
    """Why the last model was not loaded."""
    error: Exception | None = st.session_state.get(FAILURE)
    return error


def show_outcome_error(outcome: Outcome | None) -> bool:
    """Show the error of a job that gave none; whether there was one."""
    if outcome is None or outcome.error is None:
        return False
    errors.show(outcome.error)
    return True
