"""EasyEdit's flat rows: CounterFact, zsRE, and WISE's two sets (Wang et al., arXiv 2308.07269)."""

from __future__ import annotations

from typing import Any

from editlab.data.formats.base import Layout, Note, Row, fact, first, identity, texts
from editlab.data.formats.places import place_subject
from editlab.data.formats.questions import asked, follows, is_hop
from editlab.facts import Fact, Question

_MARKS = (
    "ground_truth",
    "rephrase_prompt",
    "ood_rephrase",
    "locality_prompt",
    "locality_ground_truth",
    "portability_prompt",
    "portability_ground_truth",
)
_NAMES = {"target_true": "ground_truth", "neighbours": "locality_prompt"}
NEIGHBORHOOD = "neighborhood"  # EasyEdit's own name for these questions


def _matches(row: Row) -> bool:
    nested = [row.get(name) for name in ("locality", "portability") if isinstance(row.get(name), dict)]
    if any(not is_hop(value) for value in nested) or "src" in row:
        return False  # KnowEdit's, zsRE's
    has_marks = bool(nested) or any(mark in row for mark in _MARKS)
    return has_marks and ("prompt" in row or {"subject", "target_new"} <= set(row))


def _convert(row: Row, note: Note) -> Fact:
    prompt, subject = place_subject(row.get("prompt"), row.get("subject"), "prompt", note)
    theirs = "ood_rephrase" if "ood_rephrase" in row and "rephrase_prompt" not in row else "rephrase_prompt"
    true = first(row.get("ground_truth"))
    neighbours, locality = _split(
        [
            *_locality(row, "locality_prompt", "locality_ground_truth", note),
            *_locality(row, "loc", "loc_ans", note),
        ],
        true,
    )
    values = {
        "id": identity(row, "case_id", "id"),
        "prompt": prompt,
        "subject": subject,
        "target_new": first(row.get("target_new")),
        "target_true": true,
        "paraphrases": texts(row.get(theirs)),
        "neighbours": neighbours,
        "locality": locality,
        "portability": follows(row, note),
        "relation": row.get("relation_id") or "",
    }
    return fact(values, row, _NAMES | {"paraphrases": theirs}, note)


def _locality(row: Row, prompts: str, given: str, note: Note) -> list[Question]:
    return asked(row.get(prompts), row.get(given), NEIGHBORHOOD, (prompts, given), note)


def _split(questions: list[Question], true: Any) -> tuple[list[Question], list[Question]]:
    """Neighbours have the true answer of the fact itself, as CounterFact's do; the rest has another."""
    shared = [isinstance(true, str) and q.answers[:1] == (true,) for q in questions]
    neighbours = [
        q.model_copy(update={"name": ""}) for q, is_shared in zip(questions, shared, strict=True) if is_shared
    ]
    return neighbours, [q for q, is_shared in zip(questions, shared, strict=True) if not is_shared]


LAYOUT = Layout(
    name="easyedit",
    title="EasyEdit's CounterFact and zsRE",
    source="https://github.com/zjunlp/EasyEdit",
    marks=("prompt", "target_new", *_MARKS),
    nested=frozenset({*_MARKS, "portability"}),
    record=Fact,
    matches=_matches,
    convert=_convert,
)
