"""Batch methods and side memories on a small model that truly knows facts, with its presets."""

from __future__ import annotations

from typing import Any

import pytest

from editlab import LM, Fact
from editlab.data.relations import fill, relation
from editlab.evaluation.known import known

# Few facts that share shards carry over best; a shard each, as the preset has it, is for long sequences.
SHARED = {"mode": "merge", "shard_size": 20, "merge_every": 2}


@pytest.mark.parametrize(
    ("method", "settings", "fires", "carries_over"),
    [
        ("memit", {}, 6, 0.4),
        ("emmet", {}, 6, 0.4),
        ("alphaedit", {}, 5, 0.4),
        ("wise", SHARED, 7, 0.8),
        ("wise", {}, 7, 0.5),
    ],
)
def test_eight_capitals_are_rewritten_and_others_stay(
    method: str, settings: dict[str, Any], fires: int, carries_over: float
) -> None:
    lm = LM.from_pretrained("factworld-llama")
    capitals = known(lm, relation("capital"))
    facts = capitals.facts(paraphrases=2)[::12][:8]
    others = [fill(relation("capital").stems[0], fact.subject) for fact in capitals.facts()[5::12][:8]]
    before = lm.generate(others, 3)
    lm.edit(facts, method, **settings)
    found = lm.evaluate(facts, metrics=("efficacy_said", "paraphrase_said"))
    assert found["efficacy_said"].base.mean == 0
    assert found["efficacy_said"].edited.mean >= fires / 8
    assert found["paraphrase_said"].edited.mean >= carries_over
    assert sum(a == b for a, b in zip(before, lm.generate(others, 3), strict=True)) >= 7
    for entry in lm.ledger.active:
        lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash
    assert lm.generate(others, 3) == before


@pytest.mark.parametrize("world", ["factworld-gpt2", "factworld-llama"])
def test_fine_tuning_with_the_preset_is_said_and_with_the_released_constraint_is_warned_of(world: str) -> None:
    lm = LM.from_pretrained(world)
    fact = Fact(prompt=relation("capital").stems[0], subject="Peru", target_new="Tokyo")
    entry = lm.edit(fact, "ft")
    assert lm.generate(fact.text, 6)[0].strip().startswith(fact.target_new)
    assert entry.edit.info["warnings"] == []
    lm.undo(entry.id)
    for method in ("ft", "ft-l"):
        entry = lm.edit(fact, method, norm_constraint=5e-4, lr=5e-4)
        assert not lm.generate(fact.text, 6)[0].strip().startswith(fact.target_new)
        assert "hardly any is said" in entry.edit.info["warnings"][0]
        lm.undo(entry.id)
