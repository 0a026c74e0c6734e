"""What models say to prompts: worked out beside the page, and kept by the state of the model that said it.

1. A page asks (`ask`). What is kept is there at once; else a worker begins on it, which no long job holds up.
2. The page waits for a moment, in which a short answer may come; after that it goes on without.
3. `watch` stands where the answer will be, says how far it is, and draws the page anew when it has come.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass

import streamlit as st

from editlab.lm import LM
from editlab.probes.prompts.next_token import NextTokens, next_tokens
from editlab.progress import OnStep

from . import errors
from .jobs import Job, JobManager, Work
from .session import Lab

MOMENT = 0.1  # seconds that a script run waits
KEPT = 256
EVERY = "0.4s"


@dataclass(frozen=True)
class Answer:
    """A continuation, and how probable its alternatives were at the first token."""

    text: str
    tokens: NextTokens


Place = tuple[str, str]  # a session, and where on its page


class Answers:
    """The process's answers, the latest ones kept, and the worker that works them out."""

    def __init__(self) -> None:
        self._jobs = JobManager()
        self._kept: OrderedDict[str, Job] = OrderedDict()
        self._awaited: dict[Place, Job] = {}
        self._lock = threading.Lock()

    def of(self, place: Place, key: str) -> Job | None:
        """The answer under this key, come or on its way; then the place waits for it and for no other."""
        with self._lock:
            job = self._find(key)
            if job is not None:
                self._kept.move_to_end(key)
                self._wait(place, job)
            return job

    def begin(self, place: Place, key: str, work: Work) -> Job:
        """Have an answer worked out for a place, unless another session has asked for the same meanwhile."""
        with self._lock:
            job = self._find(key)
            if job is None:
                # An owner of its own, because one that was cancelled may not have ended yet.
                job = self._kept[key] = self._jobs.submit(uuid.uuid4().hex, "Answering", work)
            self._wait(place, job)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return job

    def awaited(self, session: str) -> dict[str, Job]:
        """What a session waits for, by place; what has come is not among it."""
        with self._lock:
            return {place: job for (owner, place), job in self._awaited.items() if owner == session and job.is_live}

    def _find(self, key: str) -> Job | None:
        job = self._kept.get(key)
        return None if job is None or (job.is_cancelled and job.state != "done") else job

    def _wait(self, place: Place, job: Job) -> None:
        before = self._awaited.get(place)
        awaited = {p: j for p, j in self._awaited.items() if j.is_live}  # sessions may have gone
        self._awaited = awaited | {place: job}
        if before is not None and before not in self._awaited.values():
            before.cancel()


@st.cache_resource(show_spinner=False)
def answers() -> Answers:
    """The process's answers."""
    return Answers()


def ask(
    lab: Lab, place: str, lm: LM, prompt: str, max_new_tokens: int, *, first: int | None = None, sample: int = 0
) -> Answer | None:
    """What `lm` says, or None if that takes longer than a moment.

    Args:
        place: where on the page it stands; what was asked for there before is cancelled, unless it has come or stands
            somewhere else too.
        first: only this many of the active edits are in force.
        sample: 0 for the most probable tokens, else which sample.

    Raises:
        RequestError: the prompt is empty.
    """
    count = len(lm.ledger.active) if first is None else first
    order = [entry.id for entry in lm.ledger.active[:count]]
    key = repr((lm.name, lm.tokenizer_hash, lm.state_hash, order, prompt, max_new_tokens, sample))
    here = (lab.id, place)
    job = answers().of(here, key) or answers().begin(here, key, _work(lm.fork(), count, prompt, max_new_tokens, sample))
    if not job.wait(MOMENT):
        return None
    if job.error is not None:
        raise job.error
    answer: Answer = job.result
    return answer


def watch(lab: Lab, *places: str) -> None:
    """Stand in for answers that are on their way."""
    st.fragment(_watch, run_every=EVERY)(lab, places)


def _watch(lab: Lab, places: tuple[str, ...]) -> None:
    live = [job for place, job in answers().awaited(lab.id).items() if place in places]
    if not live:
        st.rerun()
    st.caption(errors.plain("; ".join(job.text for job in live)))


def _work(twin: LM, count: int, prompt: str, max_new_tokens: int, sample: int) -> Work:
    def work(on_step: OnStep) -> Answer:
        for entry in twin.ledger.active[count:][::-1]:
            twin.undo(entry.id)
        tokens = next_tokens(twin, prompt)
        options = {"do_sample": True} if sample else {}
        return Answer(twin.generate(prompt, max_new_tokens, on_step=on_step, **options)[0], tokens)

    return work
