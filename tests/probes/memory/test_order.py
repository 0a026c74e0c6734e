"""Sequence order recall: what the letters weigh cancels, and whoever knows the order is found out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from tiny_lm import make_lm

from editlab.data.stimuli.segments import ordered_pairs
from editlab.errors import ConfigError
from editlab.lm import LM
from editlab.probes.memory.order import ANSWER, Letters, association, letters_of, question, read_order
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.study import ids_of

PAIRS = ordered_pairs(16, 3)
ASKED = re.compile(r"Segment A: (?P<a>.*)\n\nSegment B: (?P<b>.*)\n")


def always_a(questions: Sequence[str]) -> list[Letters]:
    return [(-0.1, -3.0)] * len(questions)


def oracle(questions: Sequence[str]) -> list[Letters]:
    """Looks the passages up in the text of the question, and likes A by 5 nats all the same."""
    found = []
    for text in questions:
        said = ASKED.search(text)
        assert said is not None
        excerpt = text.partition("\n\n")[0]
        first_is_a = 0 <= excerpt.find(said["a"]) < excerpt.find(said["b"])
        found.append((-1.0, -2.0) if first_is_a else (-2.0, -1.0))
    return found


def test_who_always_says_a_gets_one_half_and_ties() -> None:
    for shown in (True, False):
        found = read_order(always_a, PAIRS, shown=shown)
        assert {r.raw for r in found} == {r.debiased for r in found} == {0.5}
        assert all(r.says_a == 1 and r.bias == pytest.approx(2.9) for r in found)


def test_an_oracle_is_right_on_both() -> None:
    found = read_order(oracle, PAIRS, shown=True)
    assert all(r.raw == r.debiased == 1 and r.says_a == 0.5 and r.bias == 0 for r in found)


def test_a_letter_bias_hides_knowledge_from_raw_accuracy_alone() -> None:
    def biased(questions: Sequence[str]) -> list[Letters]:
        return [(a + 5, b) for a, b in oracle(questions)]

    found = read_order(biased, PAIRS, shown=True)
    assert all(r.raw == 0.5 and r.debiased == 1 and r.says_a == 1 for r in found)


def test_the_text_is_in_the_question_only_if_it_is_shown() -> None:
    p = PAIRS[0]
    assert p.excerpt in question(p.first, p.second, p.excerpt)
    hidden = question(p.first, p.second)
    assert p.excerpt not in hidden and p.first in hidden and p.second in hidden


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama", max_position_embeddings=1024)


def test_letters_are_the_next_token_by_hand(lm: LM) -> None:
    questions = [question("one thing", "another"), "x?", question("b", "a", "b and then a")]
    for asked, (a, b) in zip(questions, letters_of(lm, questions), strict=True):
        # Byte-level: the space before the letter is a token of its own, and belongs to what is asked.
        ids = torch.tensor([lm.tokens(f"{asked}\n{ANSWER} ")[0]])
        with torch.no_grad():
            log_p = lm.model(ids).logits[0, -1].log_softmax(-1)
        letters = [lm.tokens(letter)[0][0] for letter in "AB"]
        assert [a, b] == pytest.approx(log_p[letters].tolist(), abs=1e-5)


def test_a_conversation_is_used_if_there_is_a_template(lm: LM) -> None:
    plain = letters_of(lm, ["x?"])
    assert letters_of(lm, ["x?"], chat=False) == plain
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    try:
        (said,) = letters_of(lm, ["x?"])
        assert said != plain[0]
        assert letters_of(lm, ["[user] x?\n[assistant] " + ANSWER], chat=False) != [said]
        assert letters_of(lm, ["x?"], chat=False) == plain
    finally:
        lm.tokenizer.chat_template = None


def test_a_tokenizer_without_the_letters_is_refused(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "tokens", lambda text, special=True: ([1, 2, 3], ()))
    with pytest.raises(ConfigError, match="no single token"):
        letters_of(lm, ["x?"])


def test_association_follows_what_was_learnt_in_sequence(lm: LM) -> None:
    """A model that has learnt that some passages follow others says so; read backwards it says the contrary."""
    pairs = ordered_pairs(4, 1, words=100, length=8)
    learner = Learner(lm)
    rows = [ids_of(lm, f"{p.first} {p.second}", 512) for p in pairs]
    for _ in range(40):
        learner.step(rows, 1e-2)
    forward = association(learner.lm, pairs)
    swapped = [type(p)(p.index, p.excerpt, p.second, p.first, p.distance, p.bin) for p in pairs]
    backward = association(learner.lm, swapped)
    assert sum(a for a, _ in forward) >= 3
    assert [a for a, _ in backward] == [1 - a for a, _ in forward]
    assert [r for _, r in backward] == [1 - r for _, r in forward]
