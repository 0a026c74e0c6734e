"""conflictQA: questions with evidence for and against a model's own answer (Xie et al. 2024, arXiv 2305.13300)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt

from editlab.data.formats.base import Layout, Note, Row, build, identity, texts
from editlab.facts import Prompt, Text


class ConflictQuestion(BaseModel):
    """A question, the answer from a model's memory, and an answer against it, each with a passage.

    Attributes:
        popularity: monthly views of the subject's page.
        ground_truth: the right answers. memory_answer, counter_answer: the two claims.
        parametric_memory, counter_memory: a passage for each claim, written by a model.
        parametric_memory_aligned_evidence, counter_memory_aligned_evidence: a passage for each claim from a source.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="forbid")

    id: Text = ""
    question: Prompt
    popularity: StrictInt | StrictFloat | None = None
    ground_truth: tuple[Prompt, ...]
    memory_answer: Prompt
    parametric_memory: Prompt
    counter_answer: Prompt
    counter_memory: Prompt
    parametric_memory_aligned_evidence: Text = ""
    counter_memory_aligned_evidence: Text = ""


def _matches(row: Row) -> bool:
    return {"parametric_memory", "counter_memory"} <= set(row) or {"memory_answer", "counter_answer"} <= set(row)


def _convert(row: Row, note: Note) -> ConflictQuestion:
    values = {name: row[name] for name in ConflictQuestion.model_fields if row.get(name) is not None}
    values |= {"id": identity(row, "id"), "ground_truth": texts(row.get("ground_truth"))}
    popularity = row.get("popularity")
    if isinstance(popularity, str) and popularity.isdecimal() and len(popularity) < 16:
        values["popularity"] = int(popularity)  # as a table's cell has it
    return build(ConflictQuestion, values, row, {"ground_truth": "ground_truth"})


LAYOUT = Layout(
    name="conflictqa",
    title="conflictQA",
    source="https://github.com/OSU-NLP-Group/LLM-Knowledge-Conflict",
    marks=("parametric_memory", "counter_memory", "memory_answer", "counter_answer"),
    nested=frozenset({"ground_truth"}),
    record=ConflictQuestion,
    matches=_matches,
    convert=_convert,
    holds="questions with conflicting evidence",
    use="They are for asking whether a model follows its context or its memory; they are not for editing.",
)
