"""What a fact accepts, and how its subject is placed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from editlab.facts import LONGEST, Fact, Question

OWN = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}


def made(**changes: object) -> Fact:
    return Fact.model_validate(OWN | changes)


def test_white_space_around_texts_is_not_part_of_them() -> None:
    fact = made(subject=" France ", target_new=" Rome ", target_true=" ", prompt="On {}: ")
    assert (fact.subject, fact.target_new, fact.target_true, fact.prompt) == ("France", "Rome", None, "On {}:")


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("The set {a, b} of {} is", "France", "The set {a, b} of France is"),
        ("f({x}) in {} }{", "{0}", "f({x}) in {0} }{"),
        ("A {name} of France", "France", "A {name} of France"),
        ("The {} is", "{}", "The {} is"),
        ("Say {}%s%d\\n", "100%", "Say 100%%s%d\\n"),
    ],
)
def test_braces_elsewhere_do_no_harm(prompt: str, subject: str, text: str) -> None:
    assert made(prompt=prompt, subject=subject).text == text


def test_a_long_text_is_taken_up_to_the_limit() -> None:
    assert made(target_new="x" * LONGEST).target_new == "x" * LONGEST
    with pytest.raises(ValidationError, match="has 100,001 characters"):
        made(target_new="x" * (LONGEST + 1))


def test_tabs_and_line_ends_are_text_and_other_control_characters_are_not() -> None:
    assert made(target_new="a\tb\nc\r\u2028\x85d").target_new == "a\tb\nc\r\u2028\x85d"
    with pytest.raises(ValidationError, match=r"control character U\+0000"):
        made(target_new="a\0b")


@pytest.mark.parametrize("field", ["paraphrases", "neighbours", "attributes", "generation_prompts"])
def test_no_prompt_is_empty(field: str) -> None:
    with pytest.raises(ValidationError, match="must not be empty"):
        made(**{field: ["fine", " "]})
    with pytest.raises(ValidationError, match="must not be empty"):
        made(locality=[{"prompt": " "}])


def test_facts_and_questions_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        made().subject = "d"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        Question(prompt="a").prompt = "b"  # type: ignore[misc]


def test_a_neighbour_is_a_text_or_a_question_with_answers_of_its_own_and_is_written_as_it_was_given() -> None:
    berlin = {"prompt": "The capital of Germany is", "answers": ["Berlin"]}
    fact = made(neighbours=["The capital of Spain is", berlin, Question(prompt="The capital of Peru is")])
    assert [q.prompt for q in fact.neighbours] == [f"The capital of {c} is" for c in ("Spain", "Germany", "Peru")]
    assert [q.answers for q in fact.neighbours] == [(), ("Berlin",), ()]
    written = fact.model_dump(mode="json", exclude_defaults=True)["neighbours"]
    assert written == ["The capital of Spain is", berlin, "The capital of Peru is"]
    assert Fact.model_validate_json(fact.model_dump_json()) == fact
    assert made().model_copy(update={"neighbours": ["The capital of Spain is"]}).neighbours == fact.neighbours[:1]
    with pytest.raises(ValidationError, match="valid string"):
        made(neighbours=[3])


def test_a_fact_may_have_no_subject() -> None:
    fact = Fact.model_validate({"prompt": "The capital of France is", "target_new": "Rome"})
    assert (fact.text, fact.before, fact.subject, fact.has_subject) == (fact.prompt, fact.prompt, "", False)
    assert fact.label == "The capital of France is" and fact.text_within == "the capital of France is"
    assert Fact.model_validate(fact.model_dump(mode="json")) == fact
    assert Fact.model_validate({"prompt": "It is", "subject": None, "target_new": "x"}).subject == ""
    for row in (
        {"prompt": "The capital of {} is"},
        {"prompt": "The capital of {} is", "subject": " "},
        {"prompt": " "},
    ):
        with pytest.raises(ValidationError):
            Fact.model_validate({"target_new": "Rome", **row})
