"""CounterFact and multi-CounterFact as published (Meng et al. 2022, arXiv 2202.05262 and 2210.07229)."""

from __future__ import annotations

from typing import Any

from editlab.data.formats.base import Flaw, Layout, Malformed, Note, Row, fact, identity, kind_of
from editlab.facts import Fact

_NAMES = {
    "prompt": "requested_rewrite.prompt",
    "subject": "requested_rewrite.subject",
    "target_new": "requested_rewrite.target_new.str",
    "target_true": "requested_rewrite.target_true.str",
    "relation": "requested_rewrite.relation_id",
    "paraphrases": "paraphrase_prompts",
    "neighbours": "neighborhood_prompts",
    "attributes": "attribute_prompts",
}


def _matches(row: Row) -> bool:
    return "requested_rewrite" in row


def _convert(row: Row, note: Note) -> Fact:
    rewrite = row.get("requested_rewrite")
    if rewrite is None:
        raise Malformed(Flaw("requested_rewrite", "Field required", "Give it prompt, subject and targets."))
    if not isinstance(rewrite, dict):
        # MQuAKE has a list of rewrites here: several facts in one row.
        raise Malformed(Flaw("requested_rewrite", f"is {kind_of(rewrite)}, not an object", "Give one rewrite a row."))
    values = {
        "id": identity(row, "case_id"),
        "prompt": rewrite.get("prompt"),
        "subject": rewrite.get("subject"),
        "target_new": _text(rewrite.get("target_new")),
        "target_true": _text(rewrite.get("target_true")),
        "paraphrases": row.get("paraphrase_prompts", []),
        "neighbours": row.get("neighborhood_prompts", []),
        "attributes": row.get("attribute_prompts", []),
        "generation_prompts": row.get("generation_prompts", []),
        "relation": rewrite.get("relation_id") or "",
    }
    made = fact(values, row, _NAMES, note)
    if made.target_true is None:
        return made
    # The authors chose subjects with the same true object, and score these prompts by it.
    shared = tuple(q.model_copy(update={"answers": (made.target_true,)}) for q in made.neighbours)
    return made.model_copy(update={"neighbours": shared})


def _text(target: Any) -> Any:
    return target.get("str") if isinstance(target, dict) else target


LAYOUT = Layout(
    name="counterfact",
    title="CounterFact, multi-CounterFact",
    source="https://rome.baulab.info/data/dsets/",
    marks=("requested_rewrite",),
    nested=frozenset(
        {
            "requested_rewrite",
            "paraphrase_prompts",
            "neighborhood_prompts",
            "attribute_prompts",
            "generation_prompts",
        }
    ),
    record=Fact,
    matches=_matches,
    convert=_convert,
)
