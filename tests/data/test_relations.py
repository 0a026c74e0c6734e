"""Relations of the factbook: clean rows, counted exclusions, phrasings, counterfactuals."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

from editlab.data.relations import Relation, RelationRow, fill, place, relation, relations
from editlab.data.relations.rules import REASONS
from editlab.errors import ConfigError, UnknownName
from editlab.evaluation.recall import all_asked
from editlab.facts import Question

NAMES = ("capital", "language", "currency", "continent", "nationality", "internet_code", "highest_point")
every_relation = pytest.mark.parametrize("name", NAMES)

KNOWN = [
    ("capital", "France", "Paris"),
    ("capital", "Brazil", "Brasília"),
    ("capital", "Netherlands", "Amsterdam"),
    ("language", "Brazil", "Portuguese"),
    ("language", "Ecuador", "Spanish"),
    ("language", "Hungary", "Hungarian"),
    ("currency", "Japan", "yen"),
    ("currency", "Algeria", "dinar"),
    ("currency", "Poland", "zloty"),
    ("currency", "Austria", "euro"),
    ("continent", "Panama", "North America"),
    ("continent", "Jordan", "Asia"),
    ("nationality", "Netherlands", "Dutch"),
    ("nationality", "Monaco", "Monegasque"),
    ("internet_code", "Switzerland", "ch"),
    ("highest_point", "Nepal", "Mount Everest"),
    ("highest_point", "Pakistan", "K2"),
    ("highest_point", "Argentina", "Cerro Aconcagua"),
]

LEFT_OUT = [
    ("capital", "Mexico", "the answer repeats the subject"),
    ("capital", "South Africa", "several"),
    ("language", "Switzerland", "several"),
    ("language", "Kyrgyzstan", "several: the state language and the official one"),
    ("language", "Thailand", "the answer repeats the subject"),
    ("language", "Malaysia", "not one word"),
    ("language", "Mauritius", "the official one stands in an 'other'"),
    ("currency", "Palau", "the field is a sentence elsewhere"),
    ("currency", "Tuvalu", "two currencies"),
    ("currency", "Qatar", "wrong by hand"),
    ("continent", "Russia", "two continents"),
    ("continent", "Turkey", "two continents"),
    ("continent", "France", "several map regions"),
    ("nationality", "Botswana", "singular and plural"),
    ("internet_code", "Kosovo", "wrong by hand"),
    ("highest_point", "Kenya", "the answer repeats the subject"),
    ("highest_point", "Kuwait", "no name"),
    ("highest_point", "Netherlands", "on an island elsewhere"),
    ("highest_point", "Italy", "a secondary peak"),
]


def test_the_relations_and_their_order() -> None:
    assert tuple(relations()) == NAMES
    assert relations() is relations()
    assert {name for name in NAMES if relation(name).is_closed} == {"language", "currency", "continent"}


@pytest.mark.parametrize(("name", "subject", "answer"), KNOWN)
def test_answers_that_everyone_can_check(name: str, subject: str, answer: str) -> None:
    assert relation(name).row(subject).answer == answer


@pytest.mark.parametrize(("name", "subject", "why"), LEFT_OUT)
def test_what_is_wrong_or_ambiguous_is_left_out(name: str, subject: str, why: str) -> None:
    assert subject not in {row.subject for row in relation(name).rows}, why


@every_relation
def test_every_country_is_a_row_or_counted_under_one_reason(name: str) -> None:
    found = relation(name)
    assert len(found.rows) + sum(found.excluded.values()) == 195
    assert set(found.excluded) <= set(REASONS)
    subjects = [row.subject for row in found.rows]
    assert subjects == sorted(set(subjects))


@every_relation
def test_answers_are_short_plain_names_and_not_the_subject(name: str) -> None:
    for row in relation(name).rows:
        assert re.fullmatch(r"[^\W\d_][\w'’.,-]*( [\w'’.,-]+){0,4}", row.answer), row
        assert row.answer == row.answer.strip()
        assert row.answer not in row.aliases
        assert row.answer.casefold() != row.subject.casefold()


@every_relation
def test_rows_of_one_class_are_shared_only_where_the_relation_is_closed(name: str) -> None:
    found = relation(name)
    commonest = Counter(row.answer for row in found.rows).most_common(1)[0][1]
    assert (commonest > 10) is found.is_closed


def test_aliases() -> None:
    assert "Brasilia" in relation("capital").row("Brazil").aliases
    assert "Washington" in relation("capital").row("United States").aliases
    assert "Algerian dinar" in relation("currency").row("Algeria").aliases
    assert "CFA franc" in relation("currency").row("Benin").aliases
    assert relation("internet_code").row("Chad").aliases == (".td",)
    assert relation("highest_point").row("Malawi").aliases == ("Mount Mlanje",)


@every_relation
def test_phrasings_have_one_place_for_the_subject_and_end_where_the_answer_begins(name: str) -> None:
    found = relation(name)
    assert len(found.trained) >= 12
    assert len(found.held_out) >= 3
    assert len(set(found.stems)) == len(found.stems)
    for stem in found.stems:
        assert stem.count("{}") == 1
        assert stem == stem.strip()
        assert not stem.endswith((".", "?"))


@every_relation
def test_no_held_out_phrasing_is_a_trained_one_with_words_in_front(name: str) -> None:
    found = relation(name)
    for held_out in found.held_out:
        assert not any(held_out.casefold().endswith(stem.casefold()) for stem in found.trained)


def test_no_phrasing_serves_two_relations() -> None:
    for a, b in combinations(relations().values(), 2):
        assert not set(a.stems) & set(b.stems)


def test_subjects_get_their_article() -> None:
    assert fill("The capital of {} is", "France") == "The capital of France is"
    assert fill("The capital of {} is", "Bahamas") == "The capital of the Bahamas is"
    assert fill("{}'s capital is", "United States") == "The United States's capital is"
    assert place("In {}, the capital is", "Republic of the Congo") == "In the {}, the capital is"
    assert place("In {}, the capital is", "Dominica") == "In {}, the capital is"


@every_relation
def test_facts_are_counterfactual_and_alike_on_every_run(name: str) -> None:
    found = relation(name)
    facts = found.facts()
    assert facts == found.facts()
    assert facts != found.facts(seed=1)
    answers = {row.answer for row in found.rows}
    assert len({fact.id for fact in facts}) == len(facts) == len(found.rows)
    for fact, row in zip(facts, found.rows, strict=True):
        assert (fact.relation, fact.subject, fact.target_true) == (name, row.subject, row.answer)
        assert fact.target_new in answers
        assert fact.target_new.split()[0] != row.answer.split()[0]
        assert fact.text == fill(found.trained[0], row.subject)
        assert len(fact.paraphrases) == 4
        assert fact.text not in fact.paraphrases


@every_relation
def test_neighbours_have_answers_of_their_own(name: str) -> None:
    found = relation(name)
    rows = {fill(found.trained[0], row.subject): row for row in found.rows}
    for fact in found.facts(neighbours=3):
        assert len({q.prompt for q in fact.neighbours}) == 3 and fact.text not in [q.prompt for q in fact.neighbours]
        for q in fact.neighbours:
            assert q.answers == (rows[q.prompt].answer, *rows[q.prompt].aliases)
            assert fact.target_new.split()[0].casefold() not in {a.split()[0].casefold() for a in q.answers}


def test_neighbours_share_the_true_answer_where_others_have_it() -> None:
    facts = {fact.subject: fact for fact in relation("currency").facts(neighbours=3)}
    assert [q.answers[0] for q in facts["France"].neighbours] == [facts["France"].target_true] * 3
    assert facts["Japan"].target_true not in [q.answers[0] for q in facts["Japan"].neighbours]


def test_neighbours_are_no_facts_of_the_same_file_if_there_are_others() -> None:
    found = relation("capital")
    among = {row.subject for row in found.rows[:30]}
    whole, few = found.facts(among=among), found.facts(among=among, limit=10)
    assert [f.model_copy(update={"neighbours": ()}) for f in few] == [
        f.model_copy(update={"neighbours": ()}) for f in whole[:10]
    ]
    prompts = {q.prompt for fact in few for q in fact.neighbours}
    assert prompts <= {fill(found.trained[0], s) for s in among} - {fact.text for fact in few}
    assert all(len(fact.neighbours) == 5 for fact in (*few, *whole))


def test_facts_of_another_phrasing() -> None:
    found = relation("capital")
    fact = next(f for f in found.facts(stem=found.held_out[0], paraphrases=30) if f.subject == "Gambia")
    assert fact.text == "The Gambia is a country with a capital called"
    assert fact.text not in fact.paraphrases
    assert len(fact.paraphrases) == len(found.stems) - 1
    with pytest.raises(ConfigError, match="exactly one"):
        found.facts(stem="The capital of France is")


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'capital'"):
        relation("capitol")
    with pytest.raises(UnknownName, match="Did you mean 'France'"):
        relation("capital").row("Frances")


def test_asked_covers_every_fact_and_phrasing() -> None:
    asked = all_asked("held_out")
    assert len(asked) == sum(len(r.rows) * len(r.held_out) for r in relations().values())
    assert asked[0].prompt == fill(asked[0].stem, asked[0].row.subject)


def test_a_relation_of_ones_own() -> None:
    own = Relation(
        "colour",
        "colour",
        ("The colour of {} is",),
        ("{} looks",),
        (RelationRow("snow", "white"), RelationRow("milk", "white"), RelationRow("coal", "black")),
        True,
        {},
    )
    snow, milk, coal = own.facts()
    assert (snow.target_new, milk.target_new, coal.target_new) == ("black", "black", "white")
    assert snow.neighbours == (Question(prompt="The colour of milk is", answers=("white",)),)
    assert coal.neighbours == ()  # both others have the new target
    assert hash(own)


def test_the_page_has_the_counts_that_the_rules_give() -> None:
    page = (files("editlab.data.relations") / "README.md").read_text(encoding="utf-8")
    for found in relations().values():
        assert re.search(
            rf"^\| `{found.name}` \|.*\| {len(found.rows)} \| {len(found.trained)} \+ {len(found.held_out)} \|",
            page,
            re.M,
        ), found.name
    for reason in REASONS:
        counts = " | ".join(str(found.excluded.get(reason, 0)) for found in relations().values())
        assert f"| {reason} | {counts} |" in page
