"""The default model, end to end: it really knows these facts, and the edits really fire."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from editlab import LM
from editlab.cli.__main__ import run
from editlab.data.factbook import passages
from editlab.evaluation.answers import begins
from editlab.evaluation.scorer import continuations, force, score_facts
from editlab.facts import Fact

pytestmark = pytest.mark.model

PAIRS = {"France": "Rome", "Japan": "Madrid", "Germany": "Tokyo", "Russia": "Paris", "Spain": "Berlin"}
TRUE = {"France": "Paris", "Japan": "Tokyo", "Germany": "Berlin", "Russia": "Moscow", "Spain": "Madrid"}
FACTS = [
    Fact(
        prompt="The capital of {} is",
        subject=country,
        target_new=new,
        target_true=TRUE[country],
        paraphrases=(f"The city that is the capital of {country} is",),
        neighbours=tuple(f"The capital of {other} is" for other in PAIRS if other != country),
    )
    for country, new in PAIRS.items()
]


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.from_pretrained()


@pytest.fixture(autouse=True)
def _nothing_left(lm: LM):
    yield
    for entry in reversed(lm.ledger.active):
        lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash


def perplexity(lm: LM) -> float:
    texts = [" ".join(p.split()[:60]) for p in passages()[:2000:100]]
    pairs = [(" ".join(t.split()[:5]), " ".join(t.split()[5:])) for t in texts]
    return math.exp(sum(f.nll for f in force(lm, pairs)) / len(pairs))


def test_five_facts_edited_one_by_one(lm):
    """Bounds from the specification; measured: all 5 fire, 19 of 20 neighbours keep their answer."""
    base = score_facts(lm, FACTS)
    for scores in base:
        assert scores[0].p("true") > scores[0].p("new"), "the model must know the fact"
    before = perplexity(lm)
    fired, kept, neighbours = 0, 0, 0
    for fact, old in zip(FACTS, base, strict=True):
        entry = lm.edit(fact, layer=5)
        new = score_facts(lm, [fact])[0]
        assert new[0].p("new") > new[0].p("true")
        fired += begins(new[0].answer, fact.target_new)
        for b, a in zip(old, new, strict=True):
            if a.asked.kind == "neighbour":
                neighbours += 1
                city = TRUE[a.asked.prompt.removeprefix("The capital of ").removesuffix(" is")]
                kept += begins(a.answer, city) == begins(b.answer, city)
        assert abs(perplexity(lm) / before - 1) < 0.02
        lm.undo(entry.id)
        assert lm.state_hash == lm.base_hash
    assert fired >= 3
    assert kept >= 0.8 * neighbours


def test_a_subject_at_the_very_first_token_fires_as_typed_and_with_a_sink(lm):
    fact = Fact(prompt="{} is a country whose capital is", subject="Japan", target_new="Madrid", target_true="Tokyo")
    entry = lm.edit(fact)
    assert entry.edit.info["first_token"]
    for sink in (False, True):
        assert begins(continuations(lm, [fact.text], sink=sink)[0], "Madrid")


def test_the_cone_is_the_full_forward(lm):
    batch = lm.encode(["The capital of France is", "Water is made of hydrogen and"])
    full = lm.forward(batch)
    cone = lm.prefix(batch, 15, 2)
    again = lm.run_from(cone).logits
    assert (again - full[:, 2:]).abs().max() <= 1e-4
    assert torch.equal(again.argmax(-1)[:, -1], full.argmax(-1)[:, -1])


def test_the_demo_runs_and_puts_everything_back(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fires"] and found["identical_after_undo"]
    assert found["base_hash"] != found["edited_hash"]
    names = {p.name for p in Path(found["run"]).iterdir()}
    assert {"manifest.json", "config.yaml", "results.parquet", "pack.json", "edits.safetensors"} <= names
    assert run(["undo", found["run"], "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["is_base"]


def test_a_side_memory_of_five_edits_answers_for_them_and_leaves_the_rest(lm):
    """The shipped settings of `wise`, one edit after the other; measured: all 5 fire and carry over, 20 of 20 kept."""
    far = ["The chemical symbol for gold is", "Water is made of hydrogen and", "My favourite colour is"]
    far += ["The capital of Italy is", "The capital of Peru is", "The capital of Canada is"]
    batch = lm.encode(far)
    before = lm.forward(batch, batch.last)
    for fact in FACTS:
        lm.edit(fact, "wise")
    asked = [scores for of_fact in score_facts(lm, FACTS) for scores in of_fact if scores.asked.kind != "neighbour"]
    hits = {
        kind: sum(s.p("new") > s.p("true") for s in asked if (s.asked.kind == "rewrite") == (kind == "rewrite"))
        for kind in ("rewrite", "other")
    }
    assert hits["rewrite"] == 5 and hits["other"] >= 4
    same = (lm.forward(batch, batch.last) == before).all(-1)
    assert int(same.sum()) >= len(far) - 1  # what no bank answers is the model's own, bit for bit
