"""WISE and GRACE: edits that answer their own prompts, and leave everything else alone in every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.edits.side_training import Inputs, Rows, inputs_of, margin_loss
from editlab.errors import EditlabError, PackError, RequestError
from editlab.evaluation.scorer import force
from editlab.memories.kinds.grace import Code, _add
from editlab.memories.kinds.wise import Layer, banks_of, mask_of, pack, shards_of, unpack
from editlab.rows import rewrite_row

FACTS = [
    Fact(prompt="The capital of {} is", subject="Vinland", target_new="Rome"),
    Fact(prompt="{} plays the", subject="The young Anna", target_new="harp"),
    Fact(prompt="In the sea by {} is", subject="Thule", target_new="green"),
    Fact(prompt="The people of {} speak", subject="Ys", target_new="Latin"),
]
FAR = ["the many years of stone", "by the river and the sea", "an old town is made new"]
FAMILIES = ["gpt2", "llama", "opt", "gemma2"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quick() -> dict[str, Any]:
    return {
        "layer": 1,
        "steps": 20,
        "lr": 0.05,
        "contexts": {4: 2},
        "pool": 8,
        "negatives": 4,
        "near": 2,
        "shard_size": 2,
    }


def layer_of(lm: LM) -> Any:
    (layer,) = lm.routes.layers.values()
    return layer


def written(lm: LM, quick: dict[str, Any], facts: list[Fact] = FACTS, **more: Any) -> LM:
    for fact in facts:
        lm.edit(fact, "wise", **(quick | more))
    return lm


@pytest.mark.parametrize("method", ["wise", "grace"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fact_becomes_likelier_and_undo_restores_every_bit(method: str, family: str, quick: dict[str, Any]) -> None:
    lm = make_lm(family)
    settings = quick if method == "wise" else {"layer": 1, "lr": 0.5, "steps": 20}
    pair = [(FACTS[0].text, FACTS[0].target_new)]
    before = force(lm, pair)[0].nll
    entry = lm.edit(FACTS[0], method, **settings)
    assert force(lm, pair)[0].nll < before - 0.3
    assert lm.state_hash != lm.base_hash
    assert not lm.model.get_submodule(entry.edit.routing["path"])._forward_hooks
    weights = dict(make_lm(family).model.state_dict())
    assert all(torch.equal(weights[name], t) for name, t in lm.model.state_dict().items())
    lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash
    assert force(lm, pair)[0].nll == before
    lm.redo(entry.id)
    assert force(lm, pair)[0].nll < before - 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sent_to_the_model_is_the_model_in_every_bit(
    family: str, dtype: torch.dtype, quick: dict[str, Any]
) -> None:
    lm = written(make_lm(family, dtype=dtype), quick, FACTS[:1])
    plain = make_lm(family, dtype=dtype)
    batch = lm.encode([FACTS[0].text, *FAR])
    layer_of(lm).force = "main"
    assert torch.equal(lm.forward(batch), plain.forward(batch))
    assert lm.generate(FAR, 5) == plain.generate(FAR, 5)
    layer_of(lm).force = "auto"
    layer_of(lm).__dict__["thresholds"] = torch.tensor([torch.inf])
    assert torch.equal(lm.forward(batch), plain.forward(batch))
    # A mixed batch: the first row alone is routed.
    scores = lm.route([FACTS[0].text, *FAR]).to_pandas()["margin"]
    assert scores.notna().all()
    lm.forward(batch)
    indicator = lm.routes.last[next(iter(lm.routes.layers))].scores[:, 0]
    layer_of(lm).__dict__["thresholds"] = (indicator.sort().values[-2:].mean())[None]
    got, base = lm.forward(batch), plain.forward(batch)
    best = int(indicator.argmax())
    for row in range(len(indicator)):
        assert torch.equal(got[row], base[row]) == (row != best)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forced_bank_is_its_change_folded_in(family: str, quick: dict[str, Any]) -> None:
    lm = written(make_lm(family), quick, FACTS[:2])
    layer = layer_of(lm)
    layer.force = 0
    folded = make_lm(family)
    ref = folded.adapter.down(folded.model, 1)
    with torch.no_grad():
        weight = folded.model.get_parameter(ref.name)
        weight += ref.oriented(layer.banks[0].change)
    batch = lm.encode([FACTS[0].text, *FAR])
    assert torch.allclose(lm.forward(batch), folded.forward(batch), atol=1e-4)


def test_masks_have_an_exact_size_and_survive_packing() -> None:
    a, again, b = (mask_of((40, 50), 0.2, seed, shard) for seed, shard in ((0, 0), (0, 0), (0, 1)))
    assert len(a) == round(0.2 * 2000)
    assert torch.equal(a, again)
    assert torch.equal(unpack(pack(a, 2000), 2000), a)
    overlap = len(set(a.tolist()) & set(b.tolist()))
    expected, sigma = 0.04 * 2000, (2000 * 0.04 * 0.96) ** 0.5
    assert abs(overlap - expected) < 5 * sigma


def test_nothing_off_the_mask_ever_changes(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:2], density=0.1)
    change = layer_of(lm).banks[0].change.flatten()
    mask = mask_of((lm.adapter.d_model, lm.adapter.d_mlp), 0.1, 0, 0)
    off = torch.ones(change.numel(), dtype=torch.bool).index_fill(0, mask, False)
    assert (change[off] == 0).all()
    assert (change[mask] != 0).float().mean() > 0.9


def test_the_margin_loss_by_hand() -> None:
    quiet, loud = torch.tensor([1.0, 7.0, 9.0]), torch.tensor([30.0, 15.0])
    # 7 - 5 and 9 - 5 exceed alpha: 3 on average. 20 - 15 is missing: 5. Gaps of 15 - 7 and 15 - 9 are below 10: 3.
    assert float(margin_loss(quiet, loud, 5, 20, 10)) == pytest.approx(3 + 5 + 3)
    assert float(margin_loss(torch.tensor([5.0]), torch.tensor([20.0]), 5, 20, 10)) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_rows_give_the_full_forward_s_loss_and_gradient(family: str) -> None:
    lm = make_lm(family)
    rows = [rewrite_row(lm, fact, context=text, sink=False) for fact in FACTS[:2] for text in ("", "the old town")]
    frozen = Rows(lm, 1, rows)
    g = torch.Generator().manual_seed(0)
    change = (0.05 * torch.randn(lm.adapter.d_model, lm.adapter.d_mlp, generator=g)).requires_grad_()
    found = frozen.nll(change, torch.arange(4))
    found.sum().backward()
    assert change.grad is not None
    ref = lm.adapter.down(lm.model, 1)
    other = change.detach().clone().requires_grad_()
    for i, row in enumerate(rows):
        ids = torch.tensor([row.ids])
        weight = lm.model.get_parameter(ref.name).detach() + ref.oriented(other)
        logits = torch.func.functional_call(lm.model, {ref.name: weight}, (ids,)).logits[0, list(row.reads)]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(row.targets))
        assert found[i].item() == pytest.approx(nll.item(), abs=1e-4)
        nll.backward()
    assert other.grad is not None
    assert torch.allclose(change.grad, other.grad, atol=1e-4 * float(other.grad.abs().max()) + 1e-6)


def test_rows_do_not_depend_on_what_shares_their_batch() -> None:
    lm = make_lm("llama")
    short, long = rewrite_row(lm, FACTS[0], sink=False), rewrite_row(lm, FACTS[1], context="the many years", sink=False)
    change = torch.full((lm.adapter.d_model, lm.adapter.d_mlp), 0.01)
    alone = [float(Rows(lm, 1, [row]).nll(change, torch.tensor([0]))) for row in (short, long)]
    together = Rows(lm, 1, [short, long]).nll(change, torch.tensor([0, 1])).tolist()
    assert together == pytest.approx(alone, abs=1e-5)


def test_indicators_of_some_texts_are_those_of_each_alone() -> None:
    lm = make_lm("gpt2")
    g = torch.Generator().manual_seed(0)
    change = torch.randn(lm.adapter.d_model, lm.adapter.d_mlp, generator=g)
    for relative in (True, False):
        alone = [float(inputs_of(lm, 1, [text]).indicator(change, relative=relative)[0]) for text in FAR]
        together = inputs_of(lm, 1, FAR, max_tokens=30)
        assert together.indicator(change, relative=relative).tolist() == pytest.approx(alone, rel=1e-4)
        some = together.some(torch.tensor([2, 0])).indicator(change, relative=relative).tolist()
        assert some == pytest.approx([alone[2], alone[0]], rel=1e-4)
    assert isinstance(together, Inputs)


@pytest.mark.parametrize("indicator", ["relative", "absolute", "reference"])
def test_every_stored_prompt_exceeds_its_threshold(indicator: str, quick: dict[str, Any]) -> None:
    margins = {"absolute": {"alpha": 1.0, "beta": 4.0, "gamma": 2.0, "margin_weight": 1.0}}.get(indicator, {})
    lm = written(make_lm("llama"), quick, indicator=indicator, **margins)
    routing = lm.route([f.text for f in FACTS]).to_pandas()
    assert (routing["margin"] > 1).all()
    assert not (routing["answers"] == "model").any()
    layer = layer_of(lm)
    layer.__dict__["thresholds"] = torch.full((len(layer.banks),), torch.inf)
    assert (lm.route([f.text for f in FACTS]).to_pandas()["answers"] == "model").all()


def test_the_indicator_on_a_prompt_is_the_kept_one(quick: dict[str, Any]) -> None:
    lm = written(make_lm("gpt2"), quick, FACTS[:2])
    layer = layer_of(lm)
    lm.forward(lm.encode([f.text for f in FACTS[:2]]))
    seen = lm.routes.last[next(iter(lm.routes.layers))].scores[:, 0]
    assert float(layer.thresholds[0]) == pytest.approx(0.8 * float(seen.min()), rel=1e-4)


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_shards_are_merged_when_they_are_full(mode: str, quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    names = []
    for fact in [*FACTS, FACTS[0].model_copy(update={"subject": "Atlantis"})]:
        lm.edit(fact, "wise", **(quick | {"mode": mode}))
        names.append([bank.name for bank in layer_of(lm).banks])
    merged = "shards up to 1" if mode == "merge" else "shards 0 to 1"
    waiting = ["shard 0", "shard 1"]
    assert names == [waiting[:1], waiting[:1], waiting, [merged], [merged, "shard 2"]]
    assert sum(len(bank.inputs) for bank in layer_of(lm).banks) == 5
    assert lm.route(FACTS[0].text).routes[0].margin > 1


def test_merging_again_weighs_what_was_merged(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:2], shard_size=1, merge_every=1)
    edits = [e.edit for e in lm.ledger.active]
    shards = shards_of(edits, (lm.adapter.d_model, lm.adapter.d_mlp))
    (bank,) = banks_of(shards, layer_of(lm).routing, 2)
    first, second = shards[0].change, shards[1].change
    only_first = (first != 0) & (second == 0)
    agree = first * second > 0
    assert torch.allclose(bank.change[only_first], first[only_first])
    assert torch.allclose(bank.change[agree], (0.6 * first + 0.4 * second)[agree], atol=1e-7)


def test_undoing_the_last_edit_is_the_state_before_it(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    hashes, changes = [], []
    for fact in FACTS:
        lm.edit(fact, "wise", **quick)
        hashes.append(lm.state_hash)
        changes.append([bank.change for bank in layer_of(lm).banks])
    lm.undo()
    assert lm.state_hash == hashes[-2]
    assert all(torch.equal(a, b.change) for a, b in zip(changes[-2], layer_of(lm).banks, strict=True))
    lm.edit(FACTS[-1], "wise", **quick)
    assert lm.state_hash == hashes[-1]


def test_undoing_one_edit_rebuilds_its_shard(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:3])
    lm.undo(lm.ledger.active[0].id, replay=True)
    without = written(make_lm("llama"), quick, FACTS[1:3])
    assert lm.state_hash == without.state_hash
    lm.ledger.clear()
    assert lm.state_hash == lm.base_hash
    assert not lm.routes.layers


def test_forks_keep_apart(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:1])
    twin = lm.fork()
    assert twin.state_hash == lm.state_hash
    twin.undo()
    twin.edit(FACTS[1], "wise", **quick)
    assert lm.route(FACTS[0].text).routes[0].answers == "shard 0"
    assert lm.ledger.active[0].edit.requests[0]["subject"] == "Vinland"
    assert not lm.pristine().routes.layers


@pytest.mark.parametrize("method", ["wise", "grace"])
def test_a_pack_brings_back_the_same_answers(method: str, quick: dict[str, Any], tmp_path: Path) -> None:
    settings = quick if method == "wise" else {"layer": 1, "lr": 0.5, "steps": 10}
    lm = make_lm("gpt2")
    for fact in FACTS[:3]:
        lm.edit(fact, method, **settings)
    lm.save_edits(tmp_path / "pack")
    other = make_lm("gpt2")
    other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash
    batch = lm.encode([f.text for f in FACTS])
    assert torch.equal(other.forward(batch), lm.forward(batch))
    assert other.route([f.text for f in FACTS]) == lm.route([f.text for f in FACTS])
    with pytest.raises(PackError, match="was made for"):
        make_lm("gpt2", seed=1).load_edits(tmp_path / "pack")


def test_a_saved_model_has_its_memories_when_it_is_loaded(quick: dict[str, Any], tmp_path: Path) -> None:
    lm = make_lm("llama")
    lm.edit(FACTS[0], "ft", layer=0, lr=0.01, norm_constraint=0.05, steps=3)
    lm.edit(FACTS[1], "wise", **quick)
    lm.save_pretrained(tmp_path / "model")
    again = LM.from_pretrained(tmp_path / "model")
    batch = lm.encode([f.text for f in FACTS] + FAR)
    assert torch.equal(again.forward(batch), lm.forward(batch))
    assert [e.edit.method for e in again.ledger] == ["wise"]
    again.undo()
    assert torch.equal(again.forward(batch), lm_without(lm).forward(batch))


def lm_without(lm: LM) -> LM:
    twin = lm.fork()
    twin.undo(twin.ledger.active[-1].id)
    return twin


def test_memories_and_weight_edits_share_a_model(quick: dict[str, Any]) -> None:
    lm = make_lm("llama", num_hidden_layers=4)
    lm.edit(FACTS[0], "wise", **quick)
    lm.edit(FACTS[1], "wise", **(quick | {"layer": 2}))
    lm.edit(FACTS[2], "ft", layer=1, lr=0.01, norm_constraint=0.05, steps=3)
    assert len(lm.routes.layers) == 2
    assert len(lm.route(FACTS[0].text).routes) == 2
    with pytest.raises(EditlabError, match="kinds grace and wise"):
        lm.edit(FACTS[3], "grace", layer=1)
    with pytest.raises(EditlabError, match="different settings"):
        lm.edit(FACTS[3], "wise", **(quick | {"shard_size": 7}))
    assert len(lm.ledger.active) == 3
    for entry in list(lm.ledger.active):
        lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash


def test_measuring_changes_nothing(quick: dict[str, Any]) -> None:
    measured, plain = make_lm("llama"), make_lm("llama")
    for fact in FACTS[:3]:
        measured.edit(fact, "wise", **quick)
        measured.evaluate(FACTS[:2], metrics=["efficacy_argmax", "efficacy_said"])
        plain.edit(fact, "wise", **quick)
    assert measured.state_hash == plain.state_hash


def test_many_facts_in_one_edit_are_a_sequence(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    entry = lm.edit(FACTS, "wise", **quick)
    assert {name for name in entry.edit.tensors if name.startswith("values")} == {"values.0", "values.1"}
    one_by_one = written(make_lm("llama"), quick)
    a, b = layer_of(lm).banks, layer_of(one_by_one).banks
    assert [x.name for x in a] == [x.name for x in b]
    assert torch.allclose(a[0].change, b[0].change, atol=1e-5)


def test_wishes_that_cannot_be_met_are_refused(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    with pytest.raises(RequestError, match="no merge 'average'"):
        lm.edit(FACTS[0], "wise", merge="average")
    with pytest.raises(RequestError, match="no fact"):
        lm.edit([], "wise")
    assert lm.state_hash == lm.base_hash


def test_the_router_s_layer_is_typed(quick: dict[str, Any]) -> None:
    assert isinstance(layer_of(written(make_lm("llama"), quick, FACTS[:1])), Layer)


def test_the_codebook_by_hand() -> None:
    def code(x: float, target: int, value: float = 0.0) -> Code:
        return Code(torch.tensor([float(x)]), torch.tensor([float(value)]), 1.0, (target,))

    codes: list[Code] = []
    _add(codes, code(0, 1))
    _add(codes, code(10, 2))  # far from the first: added
    assert [(float(c.key), c.radius) for c in codes] == [(0, 1.0), (10, 1.0)]
    _add(codes, code(1.5, 1, value=7))  # near, same target: the ball grows, the value is the new one
    assert [(float(c.key), c.radius, float(c.value)) for c in codes] == [(0, 1.5, 7.0), (10, 1.0, 0.0)]
    _add(codes, code(8.5, 3))  # near the second, another target: they share the way between them
    assert [c.radius for c in codes] == pytest.approx([1.5, 0.75, 0.75], abs=1e-4)


def test_a_codebook_answers_at_its_key_and_nowhere_else() -> None:
    lm = make_lm("llama")
    lm.edit(FACTS[0], "grace", layer=1, lr=0.5, steps=20, radius=1e-3)
    routing = lm.route([FACTS[0].text, *FAR]).to_pandas()
    assert routing["answers"].tolist() == ["key 0", "model", "model", "model"]
    batch = lm.encode(FAR)
    assert torch.equal(lm.forward(batch), make_lm("llama").forward(batch))
