"""What the model says about joining: it decides where the rule does not, and is heard where it contradicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_lm import make_lm

from editlab.evaluation import evaluate, prefixes
from editlab.evaluation.prefixes import advantages, doubts, settle
from editlab.evaluation.questions import asked
from editlab.facts import Fact
from editlab.lm import LM
from editlab.runs.batch import Plan, read_run, run_batch

UNSURE = Fact(prompt="{} 3", subject="Version", target_new="5", target_true="7", paraphrases=("Release 3", "It is"))
SURE = Fact(prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris")


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama")


def log_p(lm: LM, text: str) -> float:
    """Of a whole text, by plain transformers, from its second token on."""
    ids = lm.tokenizer(text)["input_ids"]
    with torch.no_grad():
        logs = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(1, len(ids)))


def test_the_advantage_is_that_of_the_whole_texts(lm: LM) -> None:
    only_new = UNSURE.model_copy(update={"target_true": None})
    found = advantages(lm, [UNSURE, SURE, only_new])
    texts = [("Version 3", "7"), ("The capital of France is", "Paris"), ("Version 3", "5")]
    expected = [log_p(lm, f"{p} {t}") - log_p(lm, f"{p}{t}") for p, t in texts]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.fixture(params=[5.0, -5.0])
def advantage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """A model that finds every text with a space that much likelier."""
    monkeypatch.setattr(prefixes, "advantages", lambda lm, facts, on_step=None: [request.param] * len(facts))
    yield request.param


def test_the_model_decides_where_the_rule_does_not(lm: LM, advantage: float) -> None:
    prefix = "space" if advantage > 0 else "none"
    unsure, sure = settle(lm, [UNSURE, SURE])
    assert (unsure.target_prefix, unsure.target_prefix_by) == (prefix, "model") and sure == SURE
    assert Fact.model_validate_json(unsure.model_dump_json(exclude_defaults=True)) == unsure
    (again,) = settle(lm, [unsure])
    assert again == unsure
    between = [q.prefixes["new"] for q in asked([unsure], ["rewrite", "paraphrase"])]
    assert between == [prefix, prefix, "auto"]  # the last prompt leaves no doubt


def test_a_contradiction_is_said_once_and_changes_nothing(lm: LM, advantage: float) -> None:
    facts = [SURE.model_copy(update={"id": str(i)}) for i in range(200)]
    assert settle(lm, facts) == facts
    said = doubts(lm, facts)
    if advantage > 0:
        assert said == []
    else:
        assert len(said) == 1 and "50 of 50 facts" in said[0]
        assert "'The capital of France is' and 'Paris' by 5.0 nats" in said[0]


def test_a_prompt_whose_last_token_changes_is_reported(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "advantages", lambda lm, facts, on_step=None: [9.0] * len(facts))
    changed = Fact(prompt="{} say t", subject="I", target_new="he", target_prefix="none")
    (said,) = doubts(lm, [SURE, changed])
    assert "in 1 of 2 facts" in said and "'I say t' by 'he'" in said


def test_what_was_settled_is_in_the_pack_in_the_run_and_in_what_is_asked(
    lm: LM, advantage: float, tmp_path: Path
) -> None:
    prefix = "space" if advantage > 0 else "none"
    view = lm.fork()
    run_batch(view, [UNSURE], Plan(method="ft", mode="batch", settings={"steps": 1, "layer": 1}), tmp_path / "run")
    assert read_run(tmp_path / "run")[2][0].target_prefix == prefix
    (request,) = lm.fork().load_edits(tmp_path / "run")[0].edit.requests
    assert (request["target_prefix"], request["target_prefix_by"]) == (prefix, "model")


def test_what_was_written_is_asked_for_as_it_was_written(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    view = lm.fork()
    view.edit(UNSURE.model_copy(update={"target_prefix": "none", "target_prefix_by": "model"}), "ft", steps=1, layer=1)
    seen = []
    score = evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda lm, asked, **kw: seen.extend(asked) or score(lm, asked, **kw))
    view.evaluate([UNSURE], metrics=("efficacy",))
    assert {q.prefixes["new"] for q in seen} == {"none"}
