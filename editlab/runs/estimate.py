"""What a batch run will cost, measured on its first facts: nothing is written and the model is left as it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from editlab.edits.engine import engine
from editlab.edits.value_store import afresh
from editlab.evaluation.scorer import score_facts
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM
    from editlab.runs.batch import Plan

TRIED = 4  # facts of the larger of the two edits that are timed


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        seconds: editing and scoring; statistics and contexts not included, which were made for this and are kept.
        memory: bytes of this process, highest. disk: bytes of the run folder while it is written.
        prepared: seconds that went into statistics and contexts now.
    """

    facts: int
    edits: int
    seconds: float
    memory: int
    disk: int
    prepared: float

    @property
    def text(self) -> str:
        """One sentence."""
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} minutes"
        return (
            f"{_count(self.facts, 'fact')} in {_count(self.edits, 'edit')}: about {minutes}, "
            f"{self.memory / 1e9:.2f} GB of memory, "
            f"{self.disk / 1e6:.1f} MB on disk (measured on the first facts; preparing took {self.prepared:.1f} s)."
        )


def _count(n: int, of: str) -> str:
    return f"{n} {of}{'' if n == 1 else 's'}"


def estimate(lm: LM, facts: Sequence[Fact], plan: Plan, on_step: OnStep = silent) -> Estimate:
    """Time one edit of one fact and one of several, and scale up.

    Raises:
        EditlabError: the first facts cannot be edited; that is what the run would say of them.
    """
    compute = engine(lm, plan.method, plan.settings)

    def timed(of: Sequence[Fact]) -> tuple[float, Edit]:
        started = time.perf_counter()
        with afresh():  # the facts of one time may be among those of another, and all of them in the store
            edit = compute(of, on_step)
        return time.perf_counter() - started, edit

    chunks = plan.chunks(facts)
    size = len(chunks[0])
    first, edit = timed(facts[:1])
    one, edit = timed(facts[-1:])
    fixed, each = 0.0, one
    if size > 1:
        n = min(TRIED, size)
        several, _ = timed(facts[:n])
        each = max(0.0, (several - one) / (n - 1)) if n > 1 else one
        fixed = max(0.0, one - each)
    n_scored = min(TRIED, len(facts))
    started = time.perf_counter()
    score_facts(lm, facts[:n_scored])
    score = (time.perf_counter() - started) / n_scored
    width = lm.adapter.d_mlp
    dense = sum(d.shape[0] * d.shape[1] * 4 for d in edit.deltas.values())
    low_rank = sum(t.nbytes for d in edit.deltas.values() for t in d.tensors.values())
    kept = sum(t.nbytes for t in edit.tensors.values()) * size
    per_edit = min(dense, low_rank * size) + kept
    return Estimate(
        facts=len(facts),
        edits=len(chunks),
        seconds=len(chunks) * fixed + len(facts) * (each + 2 * score),
        memory=psutil.Process().memory_info().rss + 8 * size * (4 * width + size),
        disk=2 * len(chunks) * per_edit,  # each edit's own pack, and the one of all
        prepared=max(0.0, first - one),
    )
