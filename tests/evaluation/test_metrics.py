"""Every metric against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import nltk
import numpy as np
import pytest

from editlab import Fact
from editlab.errors import UnknownName
from editlab.evaluation import metrics
from editlab.evaluation.answers import (
    begins,
    first_sentence,
    is_exactly,
    is_kept,
    normalised,
    position,
    prefers,
    said_first,
)
from editlab.evaluation.cards import FactMetric, JointMetric, ModelMetric
from editlab.evaluation.metrics.counterfact import harmonic
from editlab.evaluation.metrics.fluency import ngram_entropy
from editlab.evaluation.questions import KINDS, Asked, asked, negated
from editlab.evaluation.scorer import Forced, Scored
from editlab.evaluation.words import words

FACT = Fact(
    prompt="The capital of {} is",
    subject="France",
    target_new="Rome",
    target_true="Paris",
    paraphrases=("France has the capital",),
    neighbours=("The capital of Gaul is",),
    attributes=("The capital of Italy is",),
    locality=({"prompt": "The river of France is the", "answers": ["Seine", "Loire"], "name": "river"},),
    portability=({"prompt": "The mayor of the capital of France works in", "answers": ["Rome"], "name": "hop"},),
)


def forced(p: float, target: tuple[int, ...] = (1,), predicted: tuple[int, ...] | None = None) -> Forced:
    return Forced(-math.log(p), target, target if predicted is None else predicted)


def scored(kind: Any, answer: str | None = None, name: str = "", accepted: tuple[str, ...] = (), **p: Any) -> Scored:
    roles = {role: value if isinstance(value, Forced) else forced(value) for role, value in p.items()}
    texts = {"new": "Rome", "true": "Paris", "own": accepted[0] if accepted else "Seine", "yes": "true", "no": "false"}
    return Scored(Asked(0, kind, "?", {r: texts[r] for r in roles}, accepted, name), roles, answer)


def value(name: str, now: dict[Any, list[Scored]], base: dict[Any, list[Scored]] | None = None) -> float | None:
    metric = metrics.find(name)
    assert isinstance(metric, FactMetric)
    return metric.value(now, now if base is None else base)


def test_counterfact_on_three_records_by_hand() -> None:
    # P(new), P(true) at the rewrite prompt, at two paraphrases and at two neighbours.
    records = [
        ((0.6, 0.1), [(0.5, 0.2), (0.1, 0.2)], [(0.1, 0.4), (0.3, 0.2)]),
        ((0.2, 0.3), [(0.3, 0.1), (0.3, 0.1)], [(0.1, 0.2), (0.1, 0.9)]),
        ((0.9, 0.05), [(0.7, 0.1), (0.2, 0.1)], [(0.6, 0.2), (0.5, 0.4)]),
    ]
    facts = [
        {
            kind: [scored(kind, new=new, **{"own" if kind == "neighbour" else "true": true}) for new, true in found]
            for kind, found in (("rewrite", [rewrite]), ("paraphrase", paraphrases), ("neighbour", neighbours))
        }
        for rewrite, paraphrases, neighbours in records
    ]
    by_hand = {
        "ES": [1, 0, 1],
        "PS": [0.5, 1, 1],
        "NS": [0.5, 1, 0],
        "EM": [0.5, -0.1, 0.85],
        "PM": [0.1, 0.2, 0.35],
        "NM": [0.1, 0.45, -0.25],
    }
    for name, expected in by_hand.items():
        assert [value(name, f) for f in facts] == pytest.approx(expected), name
    es, ps, ns = 2 / 3, 2.5 / 3, 1.5 / 3
    assert float(harmonic(*map(np.array, (es, ps, ns)))) == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))


def test_the_harmonic_mean_is_zero_if_any_term_is() -> None:
    assert float(harmonic(np.array(1.0), np.array(0.0), np.array(0.9))) == 0


def test_a_tie_is_no_success_either_way() -> None:
    tie = {"rewrite": [scored("rewrite", new=0.3, true=0.3)], "neighbour": [scored("neighbour", new=0.3, own=0.3)]}
    assert value("efficacy", tie) == value("neighbourhood", tie) == 0


def test_argmax_needs_every_token_and_token_accuracy_gives_credit() -> None:
    half = forced(0.2, (5, 6), (5, 9))
    now = {"rewrite": [scored("rewrite", new=half)]}
    assert value("efficacy_argmax", now) == 0
    assert value("rewrite_acc", now) == value("zsre_efficacy", now) == 0.5


def test_facts_without_the_questions_have_no_value() -> None:
    bare = {"rewrite": [scored("rewrite", new=0.2)]}
    for name, metric in metrics.all_metrics().items():
        if isinstance(metric, FactMetric) and name not in (
            "efficacy_argmax",
            "efficacy_exact",
            "efficacy_said",
            "zsre_efficacy",
            "rewrite_acc",
        ):
            assert metric.value(bare, bare) is None, name


def test_locality_compares_with_the_model_before_and_not_with_the_truth() -> None:
    before = {"locality": [scored("locality", own=forced(0.1, (1, 2, 3), (7, 8, 9)))]}
    after = {"locality": [scored("locality", own=forced(0.1, (1, 2, 3), (7, 2, 9)))]}
    assert value("locality_acc", after, before) == pytest.approx(2 / 3)
    assert value("zsre_specificity", before) == 0
    assert value("zsre_specificity", after) == pytest.approx(1 / 3)


def test_teacher_forced_right_and_freely_wrong_is_shown_as_such() -> None:
    # Every target token is the argmax after the right ones, yet the free answer is another word, and no exact match.
    now = {"rewrite": [scored("rewrite", "Romeo and Juliet.", new=forced(0.9), true=0.1)]}
    assert value("efficacy_argmax", now) == value("rewrite_acc", now) == value("efficacy", now) == 1
    assert value("efficacy_exact", now) == value("efficacy_said", now) == 0


@pytest.mark.parametrize(
    ("answer", "exact", "said"),
    [
        (" Rome.", 1, 1),
        (" Rome\nParis", 1, 0),
        ("rome", 1, 1),
        (" Rome, the old city", 0, 1),
        (" the city of Rome", 0, 1),
        (" Rome, no longer Paris", 0, 0),
        (" Paris", 0, 0),
        (" Romeo", 0, 0),
        ("", 0, 0),
    ],
)
def test_free_answers(answer: str, exact: float, said: float) -> None:
    now = {"rewrite": [scored("rewrite", answer, new=0.5, true=0.5)]}
    assert (value("efficacy_exact", now), value("efficacy_said", now)) == (exact, said)


def test_a_question_without_an_answer_has_no_value_where_one_is_needed() -> None:
    bare = {kind: [scored(kind, "Rome.", **({"new": 0.2} if kind == "neighbour" else {}))] for kind in KINDS[2:6]}
    bare["rewrite"] = [scored("rewrite", "Rome.", new=0.2)]
    of_kinds = {"neighbourhood_same": 1, "locality_same": 1}
    for name, metric in metrics.all_metrics().items():
        if isinstance(metric, FactMetric) and set(metric.kinds) <= {"neighbour", "locality", "portability"}:
            assert metric.value(bare, bare) == of_kinds.get(name), name


def test_a_neighbour_is_scored_by_its_own_answer() -> None:
    germany = {"prompt": "The capital of Germany is", "answers": ["Berlin", "West Berlin"]}
    gaul = {"prompt": "The capital of Gaul is", "answers": ["Paris"]}
    fact = FACT.model_copy(update={"neighbours": [germany, gaul, "The capital of Spain is"]})
    berlin, paris, madrid = asked([fact], {"neighbour"})
    assert berlin.targets == {"new": "Rome", "own": "Berlin"} and berlin.accepted == ("Berlin", "West Berlin")
    assert paris.targets == {"new": "Rome", "true": "Paris", "own": "Paris"}
    assert madrid.targets == {"new": "Rome"} and madrid.with_answer("Madrid").own == "Madrid"
    # P(Rome) 0.3 lies between P(Paris) and P(Berlin): only the comparison with the own answer is a success.
    scores = Scored(berlin, {"new": forced(0.3), "own": forced(0.5)})
    now: dict[Any, list[Scored]] = {"neighbour": [scores]}
    assert value("NS", now) == 1 and value("NM", now) == pytest.approx(0.2) and value("NA", now) == 1


def test_neighbours_that_show_nothing_are_no_part_of_neighbourhood() -> None:
    def near(**of: Any) -> Scored:
        targets = {"new": "Rome", "own": "Paris"} | of.pop("targets", {})
        roles = {role: forced(0.2 if role == "new" else 0.1) for role in targets}
        return Scored(Asked(0, "neighbour", "?", targets, **of), roles)

    for name in ("NS", "NM", "NA"):
        assert value(name, {"neighbour": [near(targets={"own": "rome"})]}) is None, name
        assert value(name, {"neighbour": [near(is_edited=True)]}) is None, name
        # Those that share the true answer count whatever else was edited, as in the published metric.
        assert value(name, {"neighbour": [near(targets={"true": "Paris"}, is_edited=True)]}) is not None, name


def test_any_accepted_answer_counts_freely() -> None:
    q = scored("portability", " Loire.", accepted=("Seine", "Loire"), own=0.1)
    assert value("portability_exact", {"portability": [q]}) == 1


def test_neighbours_are_compared_word_for_word_up_to_the_natural_end() -> None:
    before = {"neighbour": [scored("neighbour", " Paris. It is", new=0.1), scored("neighbour", " Lyon", new=0.1)]}
    after = {"neighbour": [scored("neighbour", "Paris. But", new=0.1), scored("neighbour", " Rome", new=0.1)]}
    assert value("neighbourhood_same", after, before) == 0.5


def test_negative_forms() -> None:
    now = {
        "negated": [scored("negated", " Rome", new=0.4), scored("negated", " Paris", new=0.2)],
        "unrelated": [scored("unrelated", " six, Rome", new=0.1)],
        "fact_check": [
            scored("fact_check", name="new", yes=0.3, no=0.2),
            scored("fact_check", name="true", yes=0.5, no=0.4),
        ],
    }
    assert value("negated_said", now) == 0.5
    assert value("negated_probability", now) == pytest.approx(0.3)
    assert value("unrelated_said", now) == 0
    assert value("fact_check", now) == 1  # 0.3 / 0.2 is more than 0.5 / 0.4


def test_questions_are_made_and_kept_apart() -> None:
    found = asked([FACT])
    assert {q.kind for q in found} == set(KINDS)
    by_kind = {kind: [q for q in found if q.kind == kind] for kind in KINDS}
    assert [q.prompt for q in by_kind["rewrite"]] == ["The capital of France is"]
    assert by_kind["locality"][0].targets == {"own": "Seine"}
    assert by_kind["locality"][0].accepted == ("Seine", "Loire")
    assert [q.name for q in by_kind["fact_check"]] == ["new", "true"]
    assert all("France" in q.prompt for q in by_kind["unrelated"])
    assert asked([FACT], {"neighbour"}) == by_kind["neighbour"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The capital of {} is", ("It is not true that the capital of France is", "The capital of France is not")),
        ("{} debuted on", ("It is not true that France debuted on",)),
        ("What is the capital of {}?", ("Give a wrong answer to the question: What is the capital of France?",)),
    ],
)
def test_negations(prompt: str, expected: tuple[str, ...]) -> None:
    assert negated(FACT.model_copy(update={"prompt": prompt})) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  São  Paulo! ", "sao paulo"),
        ("N'Djamena", "n djamena"),
        ("東京です", "東 京 て す"),
        ("हिन्दी", "हिन्दी"),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    # Combining marks that sit on a letter are dropped; vowel signs are part of the word.
    assert normalised(text) == normalised(expected)
    assert " " not in normalised("हिन्दी")


def test_whole_words_only() -> None:
    assert position("the state of Niger", "Niger") == 3
    assert position("Nigeria", "Niger") is None
    assert position("x", "!") is None
    assert begins(" Niger, which", "niger") and not begins("in Niger", "Niger")
    assert begins("東京です", "東京")
    assert prefers("Rome", "Rome", None)
    assert first_sentence(" a b. c") == "a b"
    assert not is_exactly("", ("",))


def test_an_answer_that_holds_full_stops_is_told_from_one_that_goes_on() -> None:
    for said in ("St. Louis", "St. Louis.", " St. Louis. It lies", "St. Louis\nIt lies", "St Louis. It"):
        assert is_exactly(said, ("St. Louis",))
    assert is_exactly("Washington, D.C. It is", ("Rome", "Washington, D.C."))
    assert is_exactly("Ys. It", ("Ys",))
    for said in ("St. Louis lies", "St", "St. Paul. It", "It is. St. Louis", "St.\nLouis"):
        assert not is_exactly(said, ("St. Louis",))
    assert not is_exactly("Rome and more. It", ("Rome",))
    assert first_sentence("St. Louis. It lies") == "St. Louis" != first_sentence("St. Paul. It lies")
    assert first_sentence("J. R. R. Tolkien. He") == "J. R. R. Tolkien"


@pytest.mark.parametrize(
    ("answer", "target", "is_same"),
    [
        (" C.", "C++", False),
        (" C++. It", "C++", True),
        (" C++", "C", False),
        (" C#, which", "C", False),
        (" C♯", "C#", True),
        (" NET", ".NET", False),
        (" .NET. It", ".NET", True),
        (" .NET", "the .NET", False),
        (" A-", "A", False),
        (" A−.", "A-", True),
        (" A+", "A-", False),
        (" O-", "O+", False),
        (" 50", "50 %", False),
        (" 50%.", "50 %", True),
        (" 20 °C", "20", False),
        (" 5", "-5", False),
        (" −5. So", "-5", True),
        (" 50", "$50", False),
        (" $50 now", "€50", False),
        (" US$ 50", "$50", False),
        (" 50 €.", "€50", True),
        (" -$1,000.50", "-1,000.50 $", True),
        (" 3.5", "3-5", False),
        (" 35", "3.5", False),
        (" 3", "3.5", False),
        (" 3.5 million", "3", False),
        (" +", "-", False),
        (" ≤ 5", "≥ 5", False),
        # What is form still does not count.
        (" Guinea Bissau.", "Guinea-Bissau", True),
        (" **D.C.**", "DC", False),
        (" d c", "D.C.", True),
        (" 1999-2000", "1999–2000", True),
        (" Curaçao!", "curacao", True),
        (" e-mail", "E mail", True),
        (" (Rome)", "Rome", True),
        (" 東京。日本", "東京", True),
    ],
)
def test_signs_that_change_what_is_meant_count(answer: str, target: str, is_same: bool) -> None:
    assert is_exactly(answer, (target,)) == is_same
    if not is_same:
        assert position(answer, target) is None or normalised(answer) != normalised(target)
    else:
        assert begins(answer, target)


def test_signs_count_where_a_target_is_looked_for() -> None:
    assert not begins(" C++ is", "C") and not begins(" C.", "C++") and not begins(" $50", "50")
    assert position("it costs $50", "50") is None and position("it is -5 now", "5") is None
    assert begins(" C. It", "C") and begins(" 50 percent", "50")
    assert first_sentence(".NET is. It") == ".NET is" and first_sentence("3.5 million. It") == "3.5 million"
    assert first_sentence("東京。日本") == "東京"


def test_entropy_of_repetition_is_lower_and_matches_its_formula() -> None:
    text = "a b a b a"
    # 2-grams: ab, ba, ab, ba; 3-grams: aba, bab, aba.
    h2, h3 = 1.0, -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert ngram_entropy(text) == pytest.approx(100 * (2 / 3 * h2 + 4 / 3 * h3) / 2)
    assert ngram_entropy("x x x x x x") == 0
    assert ngram_entropy("") == 0
    # Words keep their case and marks are words: A b . A c . has five 2-grams and four 3-grams, all different.
    assert ngram_entropy("A b. A c.") == pytest.approx(100 * (2 / 3 * math.log2(5) + 4 / 3 * math.log2(4)) / 2)
    assert ngram_entropy("A a A a") == pytest.approx(ngram_entropy("B b B b")) != ngram_entropy("a a a a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It isn't \"big\" (3.5 million).", ["It", "is", "n't", "``", "big", "''", "(", "3.5", "million", ")", "."]),
        ("Mr. J. R. Smith left. He ran!", ["Mr.", "J.", "R.", "Smith", "left", ".", "He", "ran", "!"]),
        ("He is in Rome. \"Why?\" she said.", ["He", "is", "in", "Rome", ".", "``", "Why", "?", "''", "she", "said",
         "."]),
        ("From the U.S. Army, e.g. Ohio... and so on", ["From", "the", "U.S.", "Army", ",", "e.g.", "Ohio", "...",
         "and", "so", "on"]),
    ],
)  # fmt: skip
def test_words_are_those_of_nltk(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_within_a_sentence_words_are_nltks_own() -> None:
    text = "Peru's capital, Lima (10,151,000), can't be 50% of it: it's on the coast -- and U.S.-built"
    assert words(text) == nltk.word_tokenize(text, preserve_line=True)


def test_every_metric_has_a_card_and_a_name_of_its_own() -> None:
    names: set[str] = set()
    for name, metric in metrics.all_metrics().items():
        card = metric.card
        assert card.name == name and card.title and card.formula and card.decoding and card.source
        for n in (name, *card.aliases):
            assert n.casefold() not in names
            names.add(n.casefold())
            assert metrics.find(n.upper()) is metric
        assert card.source in card.text() and card.formula in card.text()
        assert isinstance(metric, FactMetric | ModelMetric | JointMetric)


def test_unknown_metrics_are_named_with_a_hint() -> None:
    with pytest.raises(UnknownName, match=r"no metric 'eficacy'.*Did you mean 'efficacy'"):
        metrics.select(["eficacy"])


def test_names_families_and_groups_can_be_mixed() -> None:
    chosen = metrics.select(["NS", "drift"])
    assert "neighbourhood" in chosen and "perplexity" in chosen and "efficacy" not in chosen
    assert "fluency" not in metrics.select(["standard"]) and "fluency" in metrics.select(["all"])


# Which way is better, what guessing gives, whether free answers are needed, and of which questions: written down here
# once more, so that a slip in a card or in the wiring of a metric shows.
CARDS = {
    "efficacy": ("higher", 0.5, False, ["rewrite"]),
    "efficacy_magnitude": ("higher", 0.0, False, ["rewrite"]),
    "efficacy_argmax": ("higher", 0.0, False, ["rewrite"]),
    "paraphrase": ("higher", 0.5, False, ["paraphrase"]),
    "paraphrase_magnitude": ("higher", 0.0, False, ["paraphrase"]),
    "paraphrase_argmax": ("higher", 0.0, False, ["paraphrase"]),
    "neighbourhood": ("same", 0.5, False, ["neighbour"]),
    "neighbourhood_magnitude": ("same", 0.0, False, ["neighbour"]),
    "neighbourhood_argmax": ("same", 0.0, False, ["neighbour"]),
    "score": ("higher", 0.5),
    "attribute": ("same", 0.5, False, ["attribute"]),
    "control_kl": ("lower", 0.0),
    "control_same": ("higher", None),
    "perplexity": ("same", None),
    "norm_ratio": ("same", None),
    "fluency": ("same", None),
    "consistency": ("higher", None),
    "efficacy_exact": ("higher", 0.0, True, ["rewrite"]),
    "efficacy_said": ("higher", 0.0, True, ["rewrite"]),
    "paraphrase_exact": ("higher", 0.0, True, ["paraphrase"]),
    "paraphrase_said": ("higher", 0.0, True, ["paraphrase"]),
    "portability_exact": ("higher", 0.0, True, ["portability"]),
    "neighbourhood_same": ("higher", None, True, ["neighbour"]),
    "locality_same": ("higher", None, True, ["locality"]),
    "negated_said": ("lower", 0.0, True, ["negated"]),
    "negated_probability": ("lower", 0.0, False, ["negated"]),
    "unrelated_said": ("lower", 0.0, True, ["unrelated"]),
    "unrelated_probability": ("lower", 0.0, False, ["unrelated"]),
    "fact_check": ("higher", 0.5, False, ["fact_check"]),
    "zsre_efficacy": ("higher", 0.0, False, ["rewrite"]),
    "zsre_paraphrase": ("higher", 0.0, False, ["paraphrase"]),
    "zsre_specificity": ("same", 0.0, False, ["locality"]),
    "rewrite_acc": ("higher", 0.0, False, ["rewrite"]),
    "rephrase_acc": ("higher", 0.0, False, ["paraphrase"]),
    "locality_acc": ("higher", None, False, ["neighbour", "locality"]),
    "portability_acc": ("higher", 0.0, False, ["portability"]),
}


def test_directions_chances_and_questions_are_those_of_the_table() -> None:
    for name, metric in metrics.all_metrics().items():
        found: tuple[Any, ...] = (metric.card.better, metric.card.chance)
        if isinstance(metric, FactMetric):
            found += (metric.needs_answers, list(metric.kinds))
        assert CARDS[name] == found, name


def test_only_questions_of_its_own_kind_bear_on_a_metric() -> None:
    """Every fact metric answers the same with or without all the other kinds of questions."""
    everything = {
        kind: [
            scored(kind, "Rome.", name=name, new=0.4, true=0.3, own=0.2, yes=0.6, no=0.1) for name in ("new", "true")
        ]
        for kind in KINDS
    }
    for name, metric in metrics.all_metrics().items():
        if not isinstance(metric, FactMetric):
            continue
        own = {kind: everything[kind] for kind in metric.kinds}
        rest = {kind: found for kind, found in everything.items() if kind not in metric.kinds}
        assert value(name, own) == value(name, everything) is not None, name
        assert value(name, rest) is None, name


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        (" New York. He is a 45-", "New York"),
        (" London, England", "London"),
        (": Berlin; the", "Berlin"),
        (" 1,000 at 3:15 (and", "1,000 at 3:15"),
        (" Washington D.C. is", "Washington D.C. is"),
        ("東京。日本の", "東京"),
        ("\n\n", ""),
    ],
)
def test_what_is_said_first(answer: str, first: str) -> None:
    assert said_first(answer) == first


@pytest.mark.parametrize(
    ("before", "after", "accepted", "kept"),
    [
        (" New York.", " New York. He is a 45-", (), True),
        (" New York. He is", " New York", ("New York",), True),
        (" Paris, France", " Paris, the city", (), True),
        (" Paris, France", " Rome, Italy", (), False),
        (" New York City", " New Delhi", (), False),
        (" Burma", " Myanmar", ("Burma", "Myanmar"), True),  # both are right
        (" Siam", " Myanmar", ("Burma", "Myanmar"), False),  # another answer, if a right one
        ("\n", "\n", (), True),
        ("\n", " Rome", (), False),
    ],
)
def test_an_answer_is_kept_if_the_rule_of_firing_says_so(
    before: str, after: str, accepted: tuple[str, ...], kept: bool
) -> None:
    assert is_kept(before, after, accepted) is kept
