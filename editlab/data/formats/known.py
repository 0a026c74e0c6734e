"""known_1000: prompts whose answer GPT-2 XL knows (Meng et al. 2022, arXiv 2202.05262)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from editlab.data.formats.base import Flaw, Layout, Malformed, Note, Row, build, identity
from editlab.errors import short
from editlab.facts import Prompt, Text


class KnownFact(BaseModel):
    """One prompt with the answer that a model is expected to know.

    Attributes:
        prompt: complete; what the model is asked. It may go on after where `template` ends.
        subject: occurs in the prompt. attribute: the right answer.
        template: the relation's wording, with {} for the subject, as published. prediction: what GPT-2 XL went on with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = ""
    prompt: Prompt
    subject: Prompt
    attribute: Prompt
    template: Text = ""
    prediction: Text = ""
    relation: Text = ""


def _matches(row: Row) -> bool:
    return "known_id" in row or {"attribute", "prediction"} <= set(row)


def _convert(row: Row, note: Note) -> KnownFact:
    values = {name: row.get(name) for name in ("prompt", "subject", "attribute")}
    values |= {name: row.get(name) or "" for name in ("template", "prediction")}
    values |= {"id": identity(row, "known_id"), "relation": row.get("relation_id") or ""}
    made = build(KnownFact, values, row, {"relation": "relation_id"})
    if made.subject not in made.prompt:
        what = f"subject '{short(made.subject)}' does not occur in the prompt '{short(made.prompt)}'"
        raise Malformed(Flaw("prompt", what, "Correct the subject or the prompt."))
    return made


LAYOUT = Layout(
    name="known",
    title="known_1000",
    source="https://rome.baulab.info/data/dsets/known_1000.json",
    marks=("known_id", "attribute", "prediction"),
    record=KnownFact,
    matches=_matches,
    convert=_convert,
    holds="known facts",
    use="They are for causal tracing and for asking what a model knows; they have no new target to edit.",
)
