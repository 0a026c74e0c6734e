"""Questions with evidence for two opposite answers, from conflictQA files (Xie et al., arXiv 2305.13300)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from editlab.data.formats import load_records
from editlab.data.formats.conflictqa import ConflictQuestion
from editlab.errors import RequestError

NEGATED = re.compile(r"\b(?:not|no|never|cannot|n't|neither|nor)\b|n't\b", re.IGNORECASE)


@dataclass(frozen=True)
class EvidenceQuestion:
    """One question, two answers, and passages for each.

    Attributes:
        asks: the question in two wordings, each ending where the answer begins. neutral: one about nothing, whose
            preference between the answers is taken off.
        answers: the two, in no order that matters. passages: for each answer, the longest-winded first.
        claims: for each answer, one sentence that asserts it.
        irrelevant: passages about something else.
        correct: which answer is right, 0 or 1; None if unknown.
        group: what results are also split by. subject: what intervals resample.
    """

    asks: tuple[str, str]
    neutral: str
    answers: tuple[str, str]
    passages: tuple[tuple[str, ...], tuple[str, ...]]
    claims: tuple[str, str]
    irrelevant: tuple[str, ...]
    subject: str
    popularity: float | None = None
    correct: int | None = None
    group: str = ""


def questions_of_file(path: Path) -> tuple[EvidenceQuestion, ...]:
    """The questions of a conflictQA file. Irrelevant passages are other questions' own.

    The answer called memory there is another model's; which one is memory here is for our model to say.

    Raises:
        RequestError: the file has another layout, or fewer than two questions.
    """
    loaded = load_records(path)
    rows = [record for record in loaded.records if isinstance(record, ConflictQuestion)]
    if len(rows) < 2:
        raise RequestError(
            f"'{path.name}' holds {loaded.layout.holds}, not questions with evidence for two answers.",
            "Use a conflictQA file; for facts, leave the evidence probe out.",
        )
    out = []
    for i, row in enumerate(rows):
        other = rows[(i + len(rows) // 2) % len(rows)]
        memory = tuple(t for t in (row.parametric_memory, row.parametric_memory_aligned_evidence) if t.strip())
        counter = tuple(t for t in (row.counter_memory, row.counter_memory_aligned_evidence) if t.strip())
        out.append(
            EvidenceQuestion(
                asks=(f"Question: {row.question}\nAnswer:", f"Q: {row.question}\nA:"),
                neutral="Question: N/A\nAnswer:",
                answers=(row.memory_answer, row.counter_answer),
                passages=(memory, counter),
                claims=(row.memory_answer, row.counter_answer),
                irrelevant=(other.parametric_memory,),
                subject=row.id or row.question,
                popularity=None if row.popularity is None else float(row.popularity),
                correct=_correct(row),
            )
        )
    return tuple(out)


def is_negated(text: str) -> bool:
    """Whether a claim says no, by its words."""
    return bool(NEGATED.search(text))


def _correct(row: ConflictQuestion) -> int | None:
    """Which claim a yes-or-no ground truth supports: the one with or without a negation, if exactly one has it."""
    truth = row.ground_truth[0].strip().lower() if row.ground_truth else ""
    negated = [is_negated(text) for text in (row.memory_answer, row.counter_answer)]
    if truth not in ("true", "false", "yes", "no") or negated[0] == negated[1]:
        return None
    return negated.index(truth in ("false", "no"))
