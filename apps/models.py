"""The process's base model: read in beside the pages, once for all sessions that ask for it.

A session waits for the job that reads it (`Models.ask`), and gets forks of what comes, never the base itself. Only the
model that was asked for last is kept here; sessions that forked an older one keep that alive themselves.
"""

from __future__ import annotations

import gc
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from editlab.facts import Fact
from editlab.lm import LM
from editlab.probes.parity import parity
from editlab.progress import OnStep, StepInfo

from . import work
from .examples import example_for
from .jobs import Job, JobManager
from .sharing import shareable


@dataclass(frozen=True)
class Source:
    """Which model was asked for; None is the default one."""

    name: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def stamp(self) -> tuple[Any, ...]:
        """Tells it from other models, and from the same folder with other contents."""
        folder = Path(self.name) if self.name else None
        files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
        return (self, *(path.stat().st_mtime_ns for path in files))


@dataclass(frozen=True)
class Loaded:
    """A model that was read in.

    Attributes:
        example: a fact that it knows. parity: largest difference of a logit to transformers without hooks.
    """

    base: LM
    example: Fact
    parity: float


class Models:
    """The base model, come or on its way."""

    def __init__(self, heavy: JobManager) -> None:
        """`heavy` does what pays off later, while it has nothing else to do."""
        self._lock = threading.Lock()
        self._worker, self._heavy = JobManager(), heavy
        self._stamp: tuple[Any, ...] | None = None
        self._job: Job | None = None

    def ask(self, source: Source) -> Job:
        """The job that reads a model in, or has done so; its result is a `Loaded`."""
        with self._lock:
            stamp = source.stamp
            if self._job is None or self._job.error is not None or self._stamp != stamp:
                self._stamp = stamp
                self._job = self._worker.submit(uuid.uuid4().hex, "Loading the model", self._work(source))
            return self._job

    def _work(self, source: Source) -> Any:
        def work_on(on_step: OnStep) -> Loaded:
            base = LM.from_pretrained(
                source.name, revision=source.revision, dtype=source.dtype, device=source.device, on_step=on_step
            )
            on_step(StepInfo("checking the structure", 0))
            # An unsupported structure is refused here, and every session's fork knows the rest.
            _ = base.adapter, base.base_hash, base.tokenizer_hash, base.sink
            base.name = shareable(base.name)
            on_step(StepInfo("checking against transformers", 0))
            difference = parity(base)
            on_step(StepInfo("trying an example", 0))
            loaded = Loaded(base, example_for(base), difference)
            self._heavy.when_idle(work.prepare(base.fork()))
            return loaded

        return work_on


@st.cache_resource(show_spinner=False)
def job_manager() -> JobManager:
    """The process's worker for what takes long."""
    return JobManager()


@st.cache_resource(show_spinner=False)
def models() -> Models:
    """The process's base model."""
    # What has been imported by now is half a million objects that stay. The collector would walk through them for a
    # quarter of a second, in whichever script run its turn comes; frozen, they cost it nothing.
    gc.collect()
    gc.freeze()
    return Models(job_manager())
