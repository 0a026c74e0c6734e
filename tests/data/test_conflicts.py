"""Conflicts as data: what contexts say, splits, and files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from editlab.data.conflicts import (
    FORMATS,
    Wording,
    cases_of_file,
    cases_of_relation,
    check_format,
    split_subjects,
    texts,
)
from editlab.data.relations import relations
from editlab.errors import ConfigError, RequestError, UnknownName


def test_every_relation_has_texts_that_say_what_they_promise() -> None:
    assert set(texts()) == set(relations())
    for name, found in texts().items():
        assert found.stem in relations()[name].stems
        assert len(set(found.paragraphs)) == len(found.paragraphs) >= 3
        for paragraph in found.paragraphs:
            assert paragraph.count("{answer}") == 2 and "{subject}" in paragraph
            assert paragraph.count(". ") == 2 and paragraph.endswith(".")
        assert found.sentence.count("{answer}") == 1 and found.question.endswith("?")


@pytest.mark.parametrize("name", FORMATS)
def test_a_context_asserts_the_answer_and_the_prompt_ends_as_without_it(name: str) -> None:
    found = texts()["capital"]
    wording = Wording(found.stem, check_format(name), found)
    prompt = wording.prompt("Bahamas", "Oslo", "Peru")
    assert prompt.count("Oslo") == (2 if name in ("repeated", "paragraph") else 1)
    assert prompt.endswith(wording.query("Bahamas")) and wording.query("Bahamas").endswith("the Bahamas is")
    assert ("Peru" in prompt) == (name == "irrelevant")
    assert prompt.replace("the Bahamas", "").count("Bahamas") == 0  # never without its article


def test_repetition_and_coherence_can_be_told_apart() -> None:
    found = texts()["capital"]
    words = {
        name: len(Wording(found.stem, check_format(name), found).evidence("Peru", "Oslo").split())
        for name in ("substitution", "repeated", "paragraph")
    }
    assert words["substitution"] < words["repeated"] < words["paragraph"] < 2 * words["repeated"]


def test_subjects_are_in_one_split_each_and_a_seed_decides() -> None:
    subjects = [f"s{i}" for i in range(40)]
    random.Random(1).shuffle(subjects)
    splits = split_subjects(subjects, 0)
    counts = [list(splits.values()).count(name) for name in ("discovery", "validation", "test")]
    assert counts == [12, 8, 20] and set(splits) == set(subjects)
    assert splits == split_subjects(sorted(subjects), 0) != split_subjects(subjects, 1)


def test_relations_have_cases_with_populations() -> None:
    cases = cases_of_relation("capital")
    assert len(cases) == len(relations()["capital"].rows)
    people = {case.subject: case.popularity for case in cases}
    assert people["Japan"] > people["Iceland"] > 1e5


def test_a_file_s_new_target_is_what_its_context_asserts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"},
        {"prompt": "{} lies in", "subject": "France", "target_new": "Asia", "target_true": "Europe"},
        {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"},
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (case,) = cases_of_file(tmp_path / "facts.jsonl")
    assert (case.memory, case.against, case.stem) == ("Paris", "Rome", "The capital of {} is")
    (tmp_path / "none.jsonl").write_text(json.dumps(rows[2]))
    with pytest.raises(RequestError, match="no memory to contradict"):
        cases_of_file(tmp_path / "none.jsonl")


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs sentences about the relation"):
        Wording("The capital of {} is", "paragraph")
    with pytest.raises(ConfigError, match="exactly one"):
        Wording("The capital is")
    with pytest.raises(UnknownName, match="'paragraph'"):
        check_format("paragraf")
