"""What a study will cost, before it begins: memory by counting, time by trying one update and one probe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import psutil

from editlab.probes.memory.reading import read
from editlab.runs.memory.course import Course
from editlab.runs.memory.learner import Learner, memory_needed
from editlab.runs.memory.settings import TrainingSettings

if TYPE_CHECKING:
    from editlab.lm import LM


@dataclass(frozen=True)
class Cost:
    """The cost of a study on this machine, as busy as it is now.

    Attributes:
        seconds: training and probing. memory: bytes of this process at most. tokens: that are trained on.
    """

    updates: int
    probes: int
    tokens: int
    seconds: float
    memory: int

    def to_record(self) -> dict[str, float | int]:
        """Plain values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """One sentence."""
        took = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} minutes"
        return (
            f"{self.updates} updates and {self.probes} probes: about {took} and {self.memory / 1e9:.1f} GB of memory "
            "on this machine as busy as it is now."
        )


def memory_of(lm: LM, settings: TrainingSettings, longest: int) -> int:
    """Bytes of this process while it trains: what it has, the learner, and the logits of a batch three times over."""
    logits = 3 * max(512, settings.batch * longest) * lm.model.config.vocab_size * 4
    return int(psutil.Process().memory_info().rss + memory_needed(lm, settings.scope) + logits)


def cost(lm: LM, settings: TrainingSettings, courses: Sequence[Course], probed: int) -> Cost:
    """Time one update and a probe of a few texts, and scale up; the model is left as it is.

    Args:
        probed: texts that a probe reads.

    Raises:
        ConfigError: the model cannot be trained here.
    """
    batches = [batch for course in courses for phase in course.phases for batch in phase.batches]
    longest = max((len(row) for batch in batches for row in batch), default=16)
    memory = memory_of(lm, settings, longest)
    learner = Learner(lm, settings.optimiser, settings.scope)
    learner.step(batches[0], settings.lr)  # the first one allocates
    began = time.perf_counter()
    learner.step(batches[0], settings.lr)
    fixed_and_tokens = time.perf_counter() - began
    sample = [row for batch in batches[:4] for row in batch]
    began = time.perf_counter()
    read(learner.lm, sample)
    each = (time.perf_counter() - began) / len(sample)
    updates, probes = sum(c.updates for c in courses), sum(len(c.probes) for c in courses)
    return Cost(
        updates=updates,
        probes=probes,
        tokens=sum(c.tokens for c in courses),
        seconds=updates * fixed_and_tokens + probes * probed * each,
        memory=memory,
    )
