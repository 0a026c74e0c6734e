"""The batched scorer gives the numbers of the obvious one, however rows are batched and padded."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from slow_scorer import counterfact, greedy, nll, split
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.evaluation.questions import asked
from editlab.evaluation.scorer import _carriers, continuations, force, score, score_again, score_facts
from editlab.facts import Question

WORDS = [
    "the",
    "and",
    "then",
    "is",
    "in",
    "Vinland",
    "Thule",
    "river",
    "capital",
    "of",
    "a",
    "king",
    "who",
    "Rome",
    "Paris",
]


def pairs(n: int = 24, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts of very different length, each with several targets, some of which begin others."""
    rng = random.Random(seed)
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) for _ in range(n)]
    return [(p, t) for p in prompts for t in ("Rome", "Romeo and the", "a", "a king")]


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama-bos", "factworld-gpt2", "factworld-llama"])
def lm(request: Any) -> LM:
    if request.param.startswith("factworld"):
        return LM.from_pretrained(request.param)
    family, _, bos = request.param.partition("-")
    return make_lm(family, add_bos=bool(bos))


@pytest.fixture(scope="module")
def reference(lm: LM) -> list[float]:
    return [nll(lm.model, lm.tokenizer, p, t) for p, t in pairs()]


@pytest.mark.parametrize("batch_tokens", [1, 64, 700, 100_000])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_the_slow_scorer(lm: LM, reference: list[float], batch_tokens: int, side: str) -> None:
    lm.tokenizer.padding_side = side  # must not matter
    found = force(lm, pairs(), batch_tokens=batch_tokens)
    assert [f.nll for f in found] == pytest.approx(reference, abs=1e-4)


def test_predicted_tokens_are_what_greedy_decoding_says(lm: LM) -> None:
    for (prompt, target), f in zip(pairs()[:20], force(lm, pairs()[:20]), strict=True):
        ids, wanted = split(lm.tokenizer, prompt, target)
        assert list(f.target) == wanted
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids + wanted[:-1]])).logits[0, len(ids) - 1 :]
        assert list(f.predicted) == logits.argmax(-1).tolist()
        assert f.token_accuracy == pytest.approx(
            sum(a == b for a, b in zip(f.predicted, wanted, strict=True)) / len(wanted)
        )
        assert f.is_argmax == (list(f.predicted) == wanted)


@pytest.mark.parametrize("batch_rows", [1, 5, 64])
def test_free_answers_are_those_of_the_slow_scorer(lm: LM, batch_rows: int) -> None:
    prompts = [p for p, _ in pairs()[::4]]
    expected = [greedy(lm.model, lm.tokenizer, p, 6) for p in prompts]
    assert continuations(lm, prompts, max_new_tokens=6, batch_rows=batch_rows) == expected


def test_greedy_decoding_says_the_target_exactly_when_every_token_is_the_argmax(lm: LM) -> None:
    prompts = [p for p, _ in pairs()[::4]][:8]
    said = continuations(lm, prompts, max_new_tokens=3)
    own = [(p, s.strip()) for p, s in zip(prompts, said, strict=True) if s.startswith(" ") and s.strip()]
    for (prompt, target), f in zip(own, force(lm, own), strict=True):
        _, wanted = split(lm.tokenizer, prompt, target)
        says = lm.generate_ids(lm.encode([prompt]), len(wanted))[0] == wanted
        assert f.is_argmax == says


def test_a_sink_in_front_changes_the_row_and_nothing_else(lm: LM) -> None:
    (f,) = force(lm, [("The capital of Vinland is", "Rome")], sink=True)
    ids, wanted = split(lm.tokenizer, "The capital of Vinland is", "Rome")
    ids = [lm.sink, *(ids[1:] if lm.adds_bos else ids)]
    with torch.no_grad():
        log_probs = lm.model(torch.tensor([ids + wanted[:-1]])).logits[0, len(ids) - 1 :].double().log_softmax(-1)
    assert f.nll == pytest.approx(-float(log_probs[range(len(wanted)), wanted].mean()), abs=1e-5)


def test_a_row_that_begins_another_is_not_run_again() -> None:
    short, longer, longest = (2, (1, 2, 3)), (2, (1, 2, 3, 4)), (2, (1, 2, 3, 4, 5))
    # The same tokens behind a shorter prompt: a side memory may answer that prompt from elsewhere.
    other_prompt, other_target = (1, (1, 2, 3)), (2, (1, 2, 7))
    carrier = _carriers([short, longer, longest, other_prompt, other_target, longer])
    assert carrier[short] == carrier[longer] == carrier[longest] == longest
    assert carrier[other_target] == other_target and carrier[other_prompt] == other_prompt


def test_one_token_targets_of_one_prompt_share_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("gpt2")
    rows = 0
    forward = lm.forward

    def counted(batch: Any, read: Any = "all") -> Any:
        nonlocal rows
        rows += batch.n_rows
        return forward(batch, read=read)

    monkeypatch.setattr(lm, "forward", counted)
    # With a space in front these are two tokens each: one row carries both, up to the first letter.
    force(lm, [("x is", target) for target in "abc"])
    assert rows == 1


def test_every_question_gets_its_scores(lm: LM) -> None:
    fact = Fact(
        prompt="The capital of {} is",
        subject="Vinland",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("Vinland has the capital",),
        neighbours=tuple(Question(prompt=f"The capital of {c} is", answers=("Paris",)) for c in ("Thule", "Anna")),
    )
    questions = asked([fact])
    scored = score(lm, questions, max_new_tokens=4)
    assert [s.asked for s in scored] == questions
    for s in scored:
        for role, target in s.asked.targets.items():
            assert s.forced[role].nll == pytest.approx(nll(lm.model, lm.tokenizer, s.asked.prompt, target), abs=1e-4)
        assert s.answer == greedy(lm.model, lm.tokenizer, s.asked.prompt, 4)
    # And the metrics agree with their definitions written out.
    found = lm.evaluate([fact], metrics="counterfact", max_new_tokens=4)
    for name, value in counterfact(lm.model, lm.tokenizer, fact).items():
        assert found[name].base.mean == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("checkpoint", ["factworld-llama"])
def test_a_neighbour_without_an_answer_has_the_one_that_the_unedited_model_says(checkpoint: str) -> None:
    lm = LM.from_pretrained(checkpoint)
    fact = Fact(
        prompt="The capital of {} is",
        subject="France",
        target_new="Rome",
        target_true="Paris",
        neighbours=("The capital of Germany is", "The capital of Japan is"),
    )
    before = score_facts(lm, [fact])
    assert [q.asked.own for q in before[0]] == ["Paris", "Berlin", "Tokyo"]
    near = before[0][1]
    assert near.forced["own"].nll == pytest.approx(nll(lm.model, lm.tokenizer, near.asked.prompt, "Berlin"), abs=1e-4)
    # The questions stay those of the unedited model, whatever is said later.
    lm.edit({**fact.model_dump(), "prompt": "The capital of {} is", "subject": "Germany", "target_new": "Oslo"}, "ft")
    after = score_again(lm, before)
    assert [q.asked for q in after[0]] == [q.asked for q in before[0]]
    # P(Rome) is compared with P(Berlin) and P(Tokyo), not with P(Paris).
    lm.undo()
    found = lm.evaluate([fact], metrics=("neighbourhood", "neighbourhood_magnitude"))
    by_hand = [
        math.exp(-nll(lm.model, lm.tokenizer, q.prompt, own)) - math.exp(-nll(lm.model, lm.tokenizer, q.prompt, "Rome"))
        for q, own in zip(fact.neighbours, ("Berlin", "Tokyo"), strict=True)
    ]
    assert found["neighbourhood_magnitude"].base.mean == pytest.approx(sum(by_hand) / 2, abs=1e-4)
