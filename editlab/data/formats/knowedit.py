"""KnowEdit: wiki_recent, wiki_counterfact, ZsRE, WikiBio (Zhang et al. 2024, arXiv 2401.01286)."""

from __future__ import annotations

from editlab.data.formats.base import Flaw, Layout, Malformed, Note, Row, fact, first, identity, texts
from editlab.data.formats.places import place_subject
from editlab.data.formats.questions import by_kind, follows, is_hop
from editlab.facts import Fact

# The two subsets that hold no fact, by their fields.
_NO_FACTS = (
    (
        {"ent", "pos", "neg"},
        "is a row of KnowEdit's ConvSent: opinions about a topic, without a prompt and a target",
    ),
    (
        {"question", "ground_truth", "target_new"},
        "is a row of KnowEdit's Sanitation: a question to be forgotten, without a subject",
    ),
)


def _matches(row: Row) -> bool:
    if _no_fact(row) or {"concept", "text", "labels"} <= set(row):
        return True
    questions = [row[name] for name in ("locality", "portability") if isinstance(row.get(name), dict)]
    return "src" not in row and any(not is_hop(value) for value in questions)


def _no_fact(row: Row) -> str:
    if "subject" in row or "prompt" in row:
        return ""
    return next((sentence for marks, sentence in _NO_FACTS if marks <= set(row)), "")


def _convert(row: Row, note: Note) -> Fact:
    sentence = _no_fact(row)
    if sentence:
        flaw = Flaw("", sentence, "Only rows with prompt, subject and target_new can be edited.")
        raise Malformed(flaw, whole_file=True)
    # WikiBio has other names for the three.
    ours = {"subject": "concept", "prompt": "text", "target_new": "labels"}
    names = {name: theirs if theirs in row and name not in row else name for name, theirs in ours.items()}
    prompt, subject = place_subject(row.get(names["prompt"]), row.get(names["subject"]), names["prompt"], note)
    theirs = "rephrase" if "rephrase" in row and "rephrase_prompt" not in row else "rephrase_prompt"
    values = {
        "id": identity(row, "case_id", "id"),
        "prompt": prompt,
        "subject": subject,
        "target_new": first(row.get(names["target_new"])),
        "target_true": first(row.get("ground_truth")),
        "paraphrases": texts(row.get(theirs)),
        "locality": by_kind(row.get("locality"), "locality", note),
        "portability": follows(row, note),
    }
    return fact(values, row, names | {"target_true": "ground_truth", "paraphrases": theirs}, note)


LAYOUT = Layout(
    name="knowedit",
    title="KnowEdit",
    source="https://huggingface.co/datasets/zjunlp/KnowEdit",
    marks=("locality", "portability", "concept", "text", "labels"),
    nested=frozenset({"locality", "portability", "ground_truth", "labels", "rephrase", "rephrase_prompt"}),
    record=Fact,
    matches=_matches,
    convert=_convert,
)
