"""What one browser session owns: a view of the model with a ledger of its own, and its work under way.

The base model is shared by all sessions of the process and is never handed out: sessions get forks of it, which share
its tensors until an edit replaces one. The ledger lives in `st.session_state`, and nowhere else.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from editlab.errors import EditlabError
from editlab.facts import Fact
from editlab.lm import LM

from . import errors
from .examples import EXAMPLES
from .jobs import Job, JobManager, Work
from .models import Loaded, Source, job_manager, models
from .sharing import is_shared

LAB, FAILURE, COMING = "editlab.lab", "editlab.failure", "editlab.coming"
MOMENT = 0.2  # seconds that a script run waits for a model
EVERY = "0.5s"


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
        example, parity: see `models.Loaded`.
        outcomes: of the last job of each slot. working_on: the slot of the latest job.
        reports: of the edits that were kept, by entry.
        saved, drafted: the states that were last written to a run folder and to a draft.
    """

    lm: LM
    plain: LM
    source: Source
    jobs: JobManager
    example: Fact = EXAMPLES[0]
    parity: float = 0.0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    saved: str = ""
    drafted: str = ""
    job: Job | None = None
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


def begin() -> None:
    """At the top of every run: have the model loaded if there is none yet, and take over what has come."""
    if not {LAB, FAILURE, COMING} & st.session_state.keys():
        load(Source(os.environ.get("EDITLAB_MODEL") or None, os.environ.get("EDITLAB_REVISION") or None))
    _take_model()
    if LAB in st.session_state:
        st.session_state[LAB].collect()


def load(source: Source) -> None:
    """Make `source` this session's model as soon as it has been read in; its ledger starts empty."""
    st.session_state[COMING] = (source, models().ask(source))


def _take_model() -> None:
    if COMING not in st.session_state:
        return
    source, job = st.session_state[COMING]
    if not job.wait(MOMENT):
        return
    del st.session_state[COMING]
    st.session_state.pop(FAILURE, None)
    if job.error is not None:
        st.session_state[FAILURE] = job.error
        return
    loaded: Loaded = job.result
    lm = loaded.base.fork()
    st.session_state[LAB] = Lab(lm, lm.fork(), source, job_manager(), loaded.example, loaded.parity)


def wait_for_model() -> None:
    """While a model is on its way the page ends here, and says how far it is; other pages can be opened meanwhile."""
    if COMING in st.session_state:
        st.header("Loading the model")
        st.fragment(_coming, run_every=EVERY)(st.session_state[COMING][1])
        st.stop()


def _coming(job: Job) -> None:
    if not job.is_live:
        st.rerun()
    st.progress(job.share or 0.0, text=errors.said(job.text))
    found: Lab | None = st.session_state.get(LAB)
    if found is not None and st.button(f"Stay with {errors.plain(found.lm.name)}"):
        del st.session_state[COMING]
        st.rerun()


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
