"""Conflict items of a model that knows facts: what is kept, what is left out, and where its parts stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from conflict_items import known_items

from editlab import LM
from editlab.data.conflicts import FORMATS, Case, cases_of_relation
from editlab.errors import RequestError
from editlab.evaluation.scorer import force
from editlab.probes.conflicts import items as module
from editlab.probes.conflicts.items import ItemSettings, build_items


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> LM:
    patch = pytest.MonkeyPatch()
    patch.setenv("EDITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield LM.from_pretrained("factworld-llama")
    patch.undo()


def text_of(lm: LM, ids: tuple[int, ...], span: tuple[int, int]) -> str:
    return lm.tokenizer.decode(ids[slice(*span)])


@pytest.mark.parametrize("name", FORMATS)
def test_items_are_what_they_say(world: LM, name: str) -> None:
    found = known_items(world, format=name)
    by_split: dict[str, set[str]] = {}
    for item in found.items:
        by_split.setdefault(item.split, set()).add(item.case.subject)
        assert item.tok_mem != item.tok_ctx
        assert tuple(world.tokens(item.prompt)[0]) == item.ids and item.prompt.endswith(item.query)
        assert item.case.subject in text_of(world, item.ids, item.spans["subj2"])
        assert item.answer in text_of(world, item.ids, item.spans["obj_ctx"])
        about = item.other if name == "irrelevant" else item.case.subject
        assert about in text_of(world, item.ids, item.spans["subj1"])
        assert item.spans["last"] == (len(item.ids) - 1, len(item.ids))
        for partner in item.partners:
            assert partner.subject != item.case.subject
            changed = item.corrupted("both", partner)
            assert item.answer not in changed and partner.answer in changed
            assert item.case.subject in item.corrupted("context", partner)
            assert item.answer in item.corrupted("subject", partner)
    assert set(by_split) == {"discovery", "validation", "test"}
    assert sum(map(len, by_split.values())) == len(set.union(*by_split.values()))  # nobody is in two splits
    said = force(world, [(item.query, item.case.memory) for item in found.items])
    assert all(f.predicted[0] == item.tok_mem for f, item in zip(said, found.items, strict=True))
    assert "facts known" in found.headline


def test_the_answer_of_a_context_is_another_subject_s_of_the_same_split(world: LM) -> None:
    found = known_items(world)
    memory = {item.case.subject: (item.case.memory, item.split) for item in found.items}
    answers = dict(memory.values())
    assert all(answers[item.answer] == item.split for item in found.items)


def test_seeds_draw_and_repeat(world: LM) -> None:
    one, two, other = (known_items(world, seed=seed) for seed in (0, 0, 1))
    assert one.items == two.items and [i.id for i in one.items] != [i.id for i in other.items]


def test_reasons_are_counted(world: LM) -> None:
    found = known_items(world, "nationality", subjects=None)
    assert found.rejected[module.COPIED] > 10  # "Guatemalan" begins as Guatemala does
    language = known_items(world, "language", subjects=None)
    assert language.rejected[module.GUESSED] > 5 and language.known < language.cases


def test_files_have_items_too_and_too_few_are_refused(world: LM) -> None:
    cases = [
        Case("file", c.subject, c.memory, c.aliases, "The capital of {} is", "Paris")
        for c in cases_of_relation("capital")[:12]
    ]
    found = build_items(world, cases)
    assert {item.answer for item in found.items} == {"Paris"}
    with pytest.raises(RequestError, match="at least six known subjects"):
        build_items(world, cases[:2])
    with pytest.raises(RequestError, match=r"knows 0.*does not say the answer"):
        build_items(world, [c.__class__("file", c.subject, "Nowhere", stem=c.stem) for c in cases])


def test_rare_answers_are_those_that_the_model_does_not_know(world: LM, tmp_path: Path) -> None:
    cases = cases_of_relation("language")
    found = build_items(world, cases, ItemSettings(pool="rare", subjects=20))
    known = {item.case.subject for item in known_items(world, "language", subjects=None).items}
    rare = {case.memory for case in cases if case.subject not in known}
    assert {item.answer for item in found.items} <= rare
