"""Questions with answers of their own, in the shapes that the layouts of EasyEdit and KnowEdit have for them.

Answers are nested up to twice: `[[name, alias, ...], [name, alias, ...]]`. KnowEdit took this from RippleEdits, where
the outer list holds different answers and the inner ones the names of each. EasyEdit takes any of them as right (it
draws one at random in `wiki_recent.py`, and takes the very first in `run_knowedit_llama2.py`), so here they become one
flat list of acceptable answers, the usual one first.
"""

from __future__ import annotations

from typing import Any

from editlab.data.formats.base import Flaw, Malformed, Note, Row, build, kind_of
from editlab.facts import Question

ONE_HOP = "one_hop"  # EasyEdit's name for the question that follows from a zsRE or CounterFact edit


def answers(value: Any, field: str) -> list[str]:
    """All acceptable answers, each once, empty ones left out.

    Raises:
        Malformed: an answer is not text.
    """
    return list(dict.fromkeys(_flat(value, field, 3)))


def _flat(value: Any, field: str, depth: int) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list) and depth:
        return [answer for i, item in enumerate(value) for answer in _flat(item, f"{field}.{i}", depth - 1)]
    raise Malformed(Flaw(field, f"is {kind_of(value)}, not an answer", "Write text, or lists of texts."))


def asked(prompts: Any, given: Any, name: str, fields: tuple[str, str], note: Note) -> list[Question]:
    """Questions from one prompt or a list of them, with an answer, or answers, for each.

    Args:
        fields: what the two are called in the file.

    Raises:
        Malformed: there are not as many answers as prompts, or one of them is no text.
    """
    if prompts is None or prompts == []:
        return []
    if not isinstance(prompts, list):
        prompts, given, paths = [prompts], [given], [fields]
    else:
        if given is None:
            given = [None] * len(prompts)
        elif isinstance(given, str) and len(prompts) == 1:
            given = [given]
        if not isinstance(given, list) or len(given) != len(prompts):
            found = len(given) if isinstance(given, list) else 1
            raise Malformed(Flaw(fields[1], f"has {found} answers for {len(prompts)} prompts", "Give one for each."))
        paths = [(f"{fields[0]}.{i}", f"{fields[1]}.{i}") for i in range(len(prompts))]
    made = []
    for prompt, answer, path in zip(prompts, given, paths, strict=True):
        if isinstance(prompt, str) and not prompt.strip():
            note(path[0].split(".")[0], "an empty prompt is left out")
            continue
        right = answers(answer, path[1])
        if not right:
            note(path[1].split(".")[0], "a question has no answer; it is kept without")
        values = {"prompt": prompt, "answers": right, "name": name}
        made.append(build(Question, values, {}, {"prompt": path[0], "answers": path[1]}))
    return made


def by_kind(value: Any, field: str, note: Note) -> list[Question]:
    """Questions from KnowEdit's `{kind: [{"prompt", "ground_truth"}, ...]}`, or EasyEdit's lists in such an object.

    Raises:
        Malformed: something in it has another shape.
    """
    if value is None:
        return []
    if not isinstance(value, dict):
        raise Malformed(Flaw(field, f"is {kind_of(value)}, not an object", "Write {kind: [questions]}."))
    made: list[Question] = []
    for kind, items in value.items():
        path = f"{field}.{kind}"
        if items is None:
            continue
        if isinstance(items, dict):
            made += _one(items, path, str(kind), note)
        elif isinstance(items, list):
            for i, item in enumerate(items):
                made += _one(item, f"{path}.{i}", str(kind), note)
        else:
            raise Malformed(Flaw(path, f"is {kind_of(items)}, not a list of questions"))
    return made


def _one(item: Any, path: str, kind: str, note: Note) -> list[Question]:
    if not isinstance(item, dict) or "prompt" not in item:
        raise Malformed(Flaw(path, "is not an object with prompt and ground_truth"))
    fields = (f"{path}.prompt", f"{path}.ground_truth")
    prompts, given = item["prompt"], item.get("ground_truth")
    if isinstance(prompts, list) and len(prompts) == 1:
        # Where a list holds a single prompt, all answers are its own.
        prompts = prompts[0]
    return asked(prompts, given, kind, fields, note)


def follows(row: Row, note: Note) -> list[Question]:
    """EasyEdit's questions that follow from the edit: one object in `portability`, or the two flat fields.

    Raises:
        Malformed: something in it has another shape.
    """
    made = asked(
        row.get("portability_prompt"),
        row.get("portability_ground_truth"),
        ONE_HOP,
        ("portability_prompt", "portability_ground_truth"),
        note,
    )
    value = row.get("portability")
    if isinstance(value, dict) and is_hop(value):
        fields = ("portability.New Question", "portability.New Answer")
        return made + asked(value["New Question"], value.get("New Answer"), ONE_HOP, fields, note)
    return made + by_kind(value, "portability", note)


def is_hop(value: Any) -> bool:
    """Whether this is EasyEdit's single question: `{"Recalled Relation", "New Question", "New Answer"}`."""
    return isinstance(value, dict) and "New Question" in value
