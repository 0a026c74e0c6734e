"""Long work in the background: one worker thread, first come first served, with progress and cancelling.

1. `JobManager.submit` queues a function that takes `on_step`; the `Job` it returns is the only handle on the result.
2. The worker runs one job at a time. Each step that the function reports is kept for whoever looks.
3. Cancelling raises `Interrupted` at the next reported step, so the library unwinds as from Ctrl-C.
4. What only prepares for later work (`when_idle`) is cancelled when somebody wants something, and begun again after it.

Nothing here knows of streamlit: a job outlives the page that started it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from editlab.errors import EditlabError, Interrupted
from editlab.progress import OnStep, StepInfo

State = Literal["queued", "running", "done", "failed", "cancelled"]
Work = Callable[[OnStep], Any]
NOBODY = ""  # the owner of work that nobody waits for

log = logging.getLogger(__name__)


class Job:
    """One piece of work, from the moment it was asked for.

    Attributes:
        label: what it is, in words. result: what the work returned. error: what it raised.
    """

    def __init__(self, owner: str, label: str, work: Work) -> None:
        self.owner = owner
        self.label = label
        self.state: State = "queued"
        self.result: Any = None
        self.error: Exception | None = None
        self._work: Work | None = work
        self._turn = threading.Lock()  # between cancelling and beginning
        self._step: StepInfo | None = None
        self._task_began = self._began = time.monotonic()
        self._cancelled = threading.Event()
        self._ended = threading.Event()

    @property
    def is_live(self) -> bool:
        """Queued or running."""
        return not self._ended.is_set()

    @property
    def is_cancelled(self) -> bool:
        """It was told to end, and may still be doing so."""
        return self._cancelled.is_set()

    @property
    def step(self) -> StepInfo | None:
        """The latest step that was reported."""
        return self._step

    @property
    def elapsed(self) -> float:
        """Seconds since the work began, or since it was asked for."""
        return time.monotonic() - self._began

    @property
    def share(self) -> float | None:
        """How much of the present task is done, or None where that is not known."""
        step = self._step
        return None if step is None or not step.total else min(1.0, step.done / step.total)

    @property
    def left(self) -> float | None:
        """Seconds that the present task may still take, by its rate so far."""
        share = self.share
        return None if not share else (time.monotonic() - self._task_began) * (1 - share) / share

    @property
    def text(self) -> str:
        """Where it is, as a line: "tracing 41 of 180 cells, about 12 s left"."""
        if self.state == "queued":
            return f"{self.label}: waiting for other work"
        step, left = self._step, self.left
        if step is None:
            return self.label
        amount = f" {step.done} of {step.total} {step.unit}" if step.total and step.total > 1 else ""
        ahead = f", about {left:.0f} s left" if left is not None and left >= 1 else ""
        return f"{step.task}{amount}{ahead}"

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Have it end at its next step, or not begin; what has ended stays as it is."""
        with self._turn:
            if not self.is_live:
                return
            self._cancelled.set()
            if self.state == "queued":
                self._end("cancelled", Interrupted(f"{self.label}: cancelled before it began.", "Nothing was changed."))

    def on_step(self, step: StepInfo) -> None:
        """Note where the work is.

        Raises:
            Interrupted: it was cancelled.
        """
        if self._cancelled.is_set():
            at = f" after {step.done} of {step.total} {step.unit}" if step.total else ""
            raise Interrupted(f"{self.label}: cancelled{at}.", "Nothing was changed in the ledger.")
        if self._step is None or self._step.task != step.task:
            self._task_began = time.monotonic()
        self._step = step

    def run(self) -> None:
        """Do the work, here; for the worker."""
        with self._turn:
            if self._work is None:
                return
            work, self.state, self._began = self._work, "running", time.monotonic()
        try:
            self.result = work(self.on_step)
        except Interrupted as error:
            self._end("cancelled", error)
        except EditlabError as error:
            self._end("failed", error)
        except Exception as error:  # the worker must outlive whatever a method does
            log.exception("%s failed", self.label)
            self._end("failed", error)
        else:
            self._end("done", None)

    def _end(self, state: State, error: Exception | None) -> None:
        self.state, self.error = state, error
        self._work = None  # it may hold a model
        self._ended.set()


class JobManager:
    """The queue and its worker, shared by all sessions of a process."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._idle: Work | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, name="editlab-jobs", daemon=True).start()

    def submit(self, owner: str, label: str, work: Work) -> Job:
        """Queue work for a session.

        Raises:
            EditlabError: this session has work under way.
        """
        with self._changed:
            live = [job for job in (self._running, *self._queue) if job is not None and job.is_live]
            if any(job.owner == owner for job in live):
                raise EditlabError("Another job of this tab is under way.", "Wait for it, or cancel it.")
            job = Job(owner, label, work)
            self._queue.append(job)
            if self._running is not None and self._running.owner == NOBODY:
                self._running.cancel()
            self._changed.notify()
            return job

    def when_idle(self, work: Work) -> None:
        """Do this while there is nothing else to do; it replaces what was to be done then before."""
        with self._changed:
            self._idle = work
            self._changed.notify()

    def ahead_of(self, job: Job) -> int:
        """How many jobs are served before this one."""
        with self._changed:
            waiting = [other for other in self._queue if other.is_live]
            before = waiting.index(job) if job in waiting else 0
            busy = self._running is not None and self._running is not job and self._running.owner != NOBODY
            return before + busy

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._idle)
                idle = None if self._queue else self._idle
                job = self._queue.popleft() if idle is None else Job(NOBODY, "Preparing", idle)
                self._running = job
            job.run()
            with self._changed:
                self._running = None
                if idle is not None and not job.is_cancelled and self._idle is idle:
                    self._idle = None
