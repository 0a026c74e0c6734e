"""A fact in other words: only its own words, the packaged prose and fixed openings go in."""

from __future__ import annotations

from editlab import Fact
from editlab.edits.rewordings import OPENINGS, behind_prose, sentences, with_other_openings, with_words_left_out

FACT = Fact(
    prompt="In the city, {}'s main job is", subject="Ann Lee", target_new="baker", paraphrases=("Ann Lee is a",)
)


def test_left_out_words_leave_the_subject_and_the_order() -> None:
    made = with_words_left_out(FACT, 30, seed=0)
    assert len({f.prompt for f in made}) > 10
    for fact in made:
        left = iter(FACT.prompt.split())
        assert all(word in left for word in fact.prompt.split())
        assert "Ann Lee's" in fact.text and fact.target_new == "baker"
    assert made == with_words_left_out(FACT, 30, seed=0) != with_words_left_out(FACT, 30, seed=1)


def test_openings_name_the_subject_and_differ() -> None:
    made = with_other_openings(FACT, 5, seed=0)
    assert len({f.prompt for f in made}) == 5 and all("Ann Lee" in f.text for f in made)
    assert len(with_other_openings(FACT, 1000, seed=0)) == len(OPENINGS)


def test_prose_is_short_sentences_without_their_full_stop() -> None:
    texts = behind_prose(FACT, 4, seed=0)
    assert len(set(texts)) == 4 and texts == behind_prose(FACT, 4, seed=0)
    assert all(5 <= len(s.split()) <= 9 and not s.endswith(".") for s in sentences())
