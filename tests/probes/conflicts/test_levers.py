"""The rivals: identities of contrasted decoding and dual runs, all levers in one table; evidence; edits as memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conflict_items import known_items, made_items
from scipy import stats
from tiny_lm import make_lm

from editlab import LM
from editlab.data.conflicts.evidence import questions_of_file
from editlab.errors import RequestError
from editlab.evaluation.scorer import force
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts.contrast import adacad, cad, contrast_generate, divergence
from editlab.probes.conflicts.evidence import KINDS, ask, evidence_preference, questions_of_items
from editlab.probes.conflicts.heads import map_heads
from editlab.probes.conflicts.items import Items
from editlab.probes.conflicts.juice import DualRun, select
from editlab.probes.conflicts.levers import compare
from editlab.probes.conflicts.prune import PruneSettings
from editlab.probes.conflicts.readout import Prompts
from editlab.runs.edited_conflicts import edited_conflicts

PROMPTS = ["The old town by the sea", "The river"]
QUERIES = ["old town", "the sea and river"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LM]:
    patch = pytest.MonkeyPatch()
    patch.setenv("EDITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 2)
    yield LM.from_pretrained("factworld-gpt2")  # the one that a context unsettles
    patch.undo()


@pytest.fixture(scope="module")
def items(world: LM) -> Items:
    return known_items(world, subjects=20)


def test_contrasts_at_their_ends() -> None:
    torch.manual_seed(0)
    context, closed = torch.randn(3, 11), torch.randn(3, 11)
    assert torch.allclose(cad(context, closed, 0.0), context.log_softmax(-1))
    assert torch.allclose(cad(context, closed, -1.0), closed.log_softmax(-1))
    assert (
        torch.allclose(adacad(context, context), context.log_softmax(-1)) and divergence(context, context).max() < 1e-15
    )
    apart = divergence(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]]))
    assert float(apart) == pytest.approx(np.log(2))
    a = divergence(context, closed).float()
    assert torch.allclose(adacad(context, closed), cad(context, closed, a)) and (a > 0).all()


@pytest.mark.filterwarnings("error:`past_key_values`:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_contrasted_generation_is_step_by_step_contrast(family: str) -> None:
    lm = make_lm(family)
    assert contrast_generate(lm, PROMPTS, QUERIES, a=0.0) == lm.generate(PROMPTS, 10)
    assert contrast_generate(lm, PROMPTS, QUERIES, a=-1.0) == lm.generate(QUERIES, 10)
    assert contrast_generate(lm, PROMPTS, PROMPTS, a=None) == lm.generate(PROMPTS, 10)
    for a in (0.7, None):
        said = contrast_generate(lm, PROMPTS, QUERIES, a=a, max_new_tokens=4)
        for prompt, query, text in zip(PROMPTS, QUERIES, said, strict=True):
            ids = [lm.tokens(t)[0] for t in (prompt, query)]
            new: list[int] = []
            for _ in range(4):
                context, closed = (Prompts(lm, [[*part, *new]]).every() for part in ids)
                scores = adacad(context, closed) if a is None else cad(context, closed, a)
                new.append(int(scores.argmax()))
            stop = new.index(lm.tokenizer.eos_token_id) if lm.tokenizer.eos_token_id in new else 4
            assert lm.tokenizer.decode(new[:stop], skip_special_tokens=True) == text


def test_a_dual_run_is_a_gain_in_one_layer_and_not_in_two() -> None:
    lm = make_lm("llama")
    rows = [item.ids for item in made_items(lm)]
    prompts = Prompts(lm, rows)
    one = {(1, 0): -1.0, (1, 3): 2.0}
    gains = HeadGains({head: 1 + alpha for head, alpha in one.items()})
    assert torch.allclose(DualRun(lm, rows, list(one)).every(one), prompts.every(gains), atol=1e-4)
    pruned = prompts.every(HeadGains.pruning([(1, 0)]))
    assert torch.allclose(DualRun(lm, rows, [(1, 0)]).every({(1, 0): -1.0}), pruned, atol=1e-4)
    two = {(0, 0): -1.0, (1, 3): -1.0}
    single = prompts.every(HeadGains.pruning(list(two)))
    assert (DualRun(lm, rows, list(two)).every(two) - single).abs().max() > 1e-3
    assert torch.equal(DualRun(lm, rows, list(two)).every({}), prompts.every())


def test_selected_heads_gain_on_every_level(world: LM, items: Items) -> None:
    heads = map_heads(world, items.split("discovery"))
    found = select(world, items.split("discovery"), heads, "memory", k=3, candidates=8)
    assert found.levels == ("conflict", "no context", "paragraph") and found.items == 4
    assert not set(found.enlarge) & set(found.suppress)
    for kind, chosen in (("enlarge", found.enlarge), ("suppress", found.suppress)):
        assert len(chosen) <= 3 and all(found.gains[kind][head] > 0 for head in chosen)
    alphas = found.alphas(2.0, 1.0)
    assert all(alphas[h] == 2.0 for h in found.enlarge) and all(alphas[h] == -1.0 for h in found.suppress)


def test_all_levers_are_compared_on_the_same_test_subjects(world: LM, items: Items) -> None:
    heads = map_heads(world, items.split("discovery"))
    settings = PruneSettings(controls=0, grid=(1, 3))
    found = compare(world, items, heads, "memory", settings=settings, juice=True)
    table = found.to_pandas().set_index("lever")
    assert {"plain", "instruction", "CAD", "AdaCAD", "PH3-style", "closed-book"} <= set(table.index)
    assert (table["items"] == len(items.split("test"))).all()
    assert table.loc["closed-book", "memory"] == 1 > table.loc["plain", "memory"]
    # Contrast towards the closed book cannot be worse than the prompt that it contrasts with (measured: 100 %).
    assert table.loc["CAD", "memory"] > table.loc["plain", "memory"] and table.loc["CAD", "passes"] == 2
    assert np.isnan(table.loc["plain", "rise"]) and table.loc["CAD", "rise_low"] <= table.loc["CAD", "rise"]
    tried = table.dropna(subset=["p"])
    assert tried["q"].tolist() == pytest.approx(stats.false_discovery_control(tried["p"]).tolist()) and len(tried) > 4
    assert "plain" in found.headline and len(found.plot().data[0].x) == len(table)


def test_evidence_questions_are_about_the_first_conflict_of_each_subject(items: Items) -> None:
    subjects = [item.case.subject for item in items.items]
    firsts = [items.items[subjects.index(subject)] for subject in dict.fromkeys(subjects)]
    assert len(firsts) < len(items)
    assert [q.answers for q in questions_of_items(items)] == [(item.case.memory, item.answer) for item in firsts]


def test_evidence_is_weighed_by_probability_alone(world: LM, items: Items) -> None:
    questions = questions_of_items(items)[:5]
    found = evidence_preference(world, questions)
    table = found.to_pandas().set_index("evidence")
    assert list(table.index) == list(KINDS) and found.kept + found.unstable + found.unchecked == found.asked == 5
    assert table.loc["closed-book", "memorization_ratio"] == 1  # by what memory means here
    assert table["memorization_ratio"].between(0, 1).all() and found.accuracy is not None
    swapped = [
        q.__class__(
            q.asks, q.neutral, q.answers[::-1], q.passages[::-1], q.claims[::-1], q.irrelevant, q.subject, q.popularity
        )
        for q in questions
    ]
    again = evidence_preference(world, swapped).to_pandas().set_index("evidence")
    assert np.allclose(again["margin"], table["margin"], atol=1e-5)  # the order of the two answers does not matter
    # By hand: two questions, the counter claim in front, what is preferred after a prompt about nothing taken off.
    by_hand = []
    for q in questions[:2]:
        pairs = [(ask(q, (q.claims[1],), 0), a) for a in q.answers] + [(q.neutral, a) for a in q.answers]
        first, second, n1, n2 = (f.nll for f in force(world, pairs))
        by_hand.append((second - first) - (n2 - n1))
    two = evidence_preference(world, questions[:2]).to_pandas().set_index("evidence")
    assert two.loc["counter claim", "margin"] == pytest.approx(np.mean(by_hand), abs=1e-5)
    q = questions[0]
    assert ask(q, ("A.", "B."), 0) == f"Information: A.\nInformation: B.\n{q.asks[0]}"


def test_conflictqa_files_are_questions_and_facts_are_not(tmp_path: Path) -> None:
    row = (
        '{"question": "Is %s in Elst?", "popularity": %d, "ground_truth": ["True"], "memory_answer": "It is in Elst.", '
        '"parametric_memory": "A port of Elst.", "counter_answer": "It is not in Elst.", "counter_memory": "Of Dorn."}'
    )
    (tmp_path / "q.jsonl").write_text("\n".join(row % (name, n) for n, name in enumerate(("Aa", "Bb", "Cc"))))
    questions = questions_of_file(tmp_path / "q.jsonl")
    assert [q.correct for q in questions] == [0, 0, 0] and questions[2].popularity == 2
    assert questions[0].passages == (("A port of Elst.",), ("Of Dorn.",)) and questions[0].irrelevant
    (tmp_path / "f.jsonl").write_text('{"prompt": "{} is", "subject": "a", "target_new": "b"}')
    with pytest.raises(RequestError, match="not questions with evidence"):
        questions_of_file(tmp_path / "f.jsonl")


def test_an_edit_is_asked_against_the_same_contexts(world: LM, items: Items) -> None:
    state = world.state_hash
    found = edited_conflicts(world, items.split("discovery"), "ft", {"layer": 2, "steps": 12}, facts=2)
    assert world.state_hash == state and not world.ledger.active
    table = found.to_pandas().set_index("condition")
    assert list(table.index) == ["closed-book, before", "closed-book, after", "conflict, before", "conflict, after"]
    assert table.loc["closed-book, before", "memory"] == 1 and (table["items"] == table["items"].iloc[0]).all()
    assert found.facts == 2 and found.shielded is None and -1 <= found.agreement <= 1
    assert len(found.plot().data) == 4 and found.method in found.headline
