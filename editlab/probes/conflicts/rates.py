"""Shares of answers from memory, from the context and from neither, with intervals over subjects.

Items of one subject are not independent, so every number is averaged by subject first, and intervals are over subjects
(Wilson for a single yes or no each, else a percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from editlab.evaluation.statistics import Estimate, Paired, estimate, paired
from editlab.probes.conflicts.readout import Answers


def by_subject(values: Sequence[float] | np.ndarray, subjects: Sequence[str]) -> np.ndarray:
    """(subjects,) means of each subject's items, in the order of first appearance."""
    index = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
    sums, counts = np.zeros(len(index)), np.zeros(len(index))
    for subject, value in zip(subjects, np.asarray(values, dtype=np.float64), strict=True):
        sums[index[subject]] += value
        counts[index[subject]] += 1
    return sums / counts


@dataclass(frozen=True)
class Rates:
    """One condition.

    Attributes:
        memory, context, other: shares of items whose greedy first token is that answer's; they add up to 1.
        closed_memory, closed_context: the same with the token chosen among the relation's answers, function words out.
        prefers_memory: share with LD > 0. difference: mean LD, in logits.
        items: how many; the estimates' n counts subjects.
    """

    condition: str
    items: int
    memory: Estimate
    context: Estimate
    other: Estimate
    closed_memory: Estimate
    closed_context: Estimate
    prefers_memory: Estimate
    difference: Estimate

    @property
    def memorization_ratio(self) -> float | None:
        """M_R = memory / (memory + context) (Longpre et al., arXiv 2109.05052); None if neither was said."""
        said = self.memory.mean + self.context.mean
        return self.memory.mean / said if said > 0 else None

    def to_record(self) -> dict[str, object]:
        """One table row of plain values."""
        row: dict[str, object] = {"condition": self.condition, "items": self.items, "subjects": self.memory.n}
        for name in ("memory", "context", "other"):
            found: Estimate = getattr(self, name)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        row["memorization_ratio"] = self.memorization_ratio
        for name in ("closed_memory", "closed_context", "prefers_memory", "difference"):
            row[name] = getattr(self, name).mean
        return row


def rates(condition: str, answers: Answers) -> Rates:
    """The rates of some answers."""

    def over(values: np.ndarray) -> Estimate:
        return estimate(by_subject(values.astype(float), answers.subjects).tolist())

    return Rates(
        condition,
        len(answers.subjects),
        over(answers.is_memory),
        over(answers.is_context),
        over(~(answers.is_memory | answers.is_context)),
        over(answers.closed == answers.tok_mem),
        over(answers.closed == answers.tok_ctx),
        over(answers.difference > 0),
        over(answers.difference),
    )


def moved(before: Answers, after: Answers, to: str) -> Paired:
    """How much the share of "memory" or "context" answers rose, paired by subject."""
    pairs = [
        by_subject((a.is_memory if to == "memory" else a.is_context).astype(float), a.subjects) for a in (before, after)
    ]
    return paired(pairs[0].tolist(), pairs[1].tolist())
