"""WISE and GRACE: edits that answer their own prompts, and leave everything else alone in every bit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import make_lm
from torch.overrides import TorchFunctionMode

from editlab import LM, Fact
from editlab.edits.methods.wise import Config
from editlab.edits.side_metric import EARLIER, NEAR, RIDGE, factor_of
from editlab.edits.side_training import Inputs, Quiet, Rows, Unknown, inputs_of, kept_inputs_of, margin_loss, train
from editlab.errors import ConfigError, EditlabError, PackError, RequestError
from editlab.evaluation.scorer import force
from editlab.memories.kinds.grace import Code, _add
from editlab.memories.kinds.wise import Bank, Layer, Part, Routing, banks_of, mask_of, pack, shards_of, unpack
from editlab.memories.sketch import Limits, Sketch
from editlab.rows import rewrite_row
from editlab.state.edit import Edit

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


WHITENED = {"whiten": True, "mask": "rows", "density": 0.5, "pooling": "max", "mode": "retrieve", "stats_tokens": 400}


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


def test_masks_of_rows_are_whole_rows() -> None:
    a, again, b = (mask_of((40, 50), 0.2, seed, shard, rows=True) for seed, shard in ((0, 0), (0, 0), (0, 1)))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    chosen = a[::50] // 50
    assert len(chosen) == len(chosen.unique()) == round(0.2 * 40)
    assert torch.equal(a, (chosen[:, None] * 50 + torch.arange(50)).flatten())


def test_nothing_off_the_mask_ever_changes(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:2], density=0.1)
    change = layer_of(lm).banks[0].change.flatten()
    mask = mask_of((lm.adapter.d_model, lm.adapter.d_mlp), 0.1, 0, 0)
    off = torch.ones(change.numel(), dtype=torch.bool).index_fill(0, mask, False)
    assert (change[off] == 0).all()
    assert (change[mask] != 0).float().mean() > 0.9


def test_a_step_in_the_metric_is_the_gradient_times_its_inverse() -> None:
    g = torch.Generator().manual_seed(0)
    near, earlier = torch.randn(5, 6, generator=g), torch.randn(3, 6, generator=g)
    covariance = torch.randn(30, 6, generator=g).double()
    covariance = covariance.T @ covariance / 30
    factor = factor_of(covariance, near, [earlier[:2], earlier[2:]])
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(6)
    m = covariance + ridge + NEAR * (near.T @ near).double() / 5 + EARLIER * (earlier.T @ earlier).double()
    assert torch.allclose(factor @ factor.T, m.float(), atol=1e-4)
    start = torch.randn(4, 6, generator=g)
    mask = mask_of((4, 6), 0.5, 0, 0, rows=True)
    unknown = Unknown(start, mask, factor)
    assert torch.equal(unknown.change, start)
    gradient = torch.randn(4, 6, generator=g)
    (unknown.change * gradient).sum().backward()
    assert unknown.values.grad is not None
    with torch.no_grad():
        unknown.values -= unknown.values.grad
    step = unknown.change.detach() - start
    expected = -(gradient.double() @ torch.linalg.inv(m)).float()
    off = torch.ones(4, dtype=torch.bool).index_fill(0, unknown.rows, False)
    assert torch.allclose(step[unknown.rows], expected[unknown.rows], rtol=1e-3, atol=1e-4)
    assert (step[off] == 0).all() and len(unknown.rows) == 2


@pytest.mark.parametrize("kept", ["near", "earlier"])
def test_in_the_metric_a_step_is_not_heard_where_it_should_not_be(kept: str) -> None:
    g = torch.Generator().manual_seed(0)
    other = torch.randn(1, 8, generator=g) * 30
    own = 0.9 * other + 10 * torch.randn(1, 8, generator=g)
    nothing = torch.zeros(0, 8)
    heard = []
    for near, earlier in ((nothing, []), (other, []) if kept == "near" else (nothing, [other])):
        unknown = Unknown(torch.zeros(2, 8), torch.arange(16), factor_of(torch.eye(8).double(), near, earlier))
        (unknown.change @ own.T).sum().backward()
        unknown.values.data -= unknown.values.grad  # type: ignore[operator]
        change = unknown.change.detach()
        heard.append(float((change @ other.T).norm() / (change @ own.T).norm()))
    assert heard[0] > 0.5 and heard[1] < 0.1


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


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_from_the_subject_on_leave_what_stands_before_it(family: str) -> None:
    lm = make_lm(family)
    rows = [rewrite_row(lm, fact, context=text, sink=False) for fact in FACTS[:2] for text in ("", "the old town")]
    assert rows[0].subject > 0 and rows[2].subject == 0
    found = Rows(lm, 1, rows, from_subject=True)
    g = torch.Generator().manual_seed(0)
    change = 0.05 * torch.randn(lm.adapter.d_model, lm.adapter.d_mlp, generator=g)
    nll = found.nll(change, torch.tensor([3, 0, 1, 2]))
    module = lm.model.get_submodule(lm.adapter.layers[1].down)
    for i, row in zip([3, 0, 1, 2], nll.tolist(), strict=True):
        first = rows[i].subject

        def add(module: Any, args: Any, output: torch.Tensor, first: int = first) -> torch.Tensor:
            added = args[0] @ change.T
            shape = output.shape
            at = (torch.arange(added.flatten(0, -2).shape[0]) >= first)[:, None]
            return output + torch.where(at, added.flatten(0, -2), 0).view(shape)

        handle = module.register_forward_hook(add)
        with torch.no_grad():
            logits = lm.model(torch.tensor([rows[i].ids])).logits[0, list(rows[i].reads)]
        handle.remove()
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(rows[i].targets))
        assert row == pytest.approx(expected.item(), abs=1e-4)
    # What is known of the prompt is all of it.
    assert len(found.prompts.some(torch.tensor([0])).x) == rows[0].reads[0] + 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_three_steps_are_those_of_full_forwards(family: str, quick: dict[str, Any]) -> None:
    lm = make_lm(family)
    config = Config(**(quick | {"steps": 4, "negatives": 2, "near": 0, "margin_weight": 0.0, "stop_nll": 0.0}))
    rows = [rewrite_row(lm, FACTS[0], context=text, sink=False) for text in ("", "the old town")]
    mask = mask_of((lm.adapter.d_model, lm.adapter.d_mlp), 0.2, 0, 0)
    start = torch.zeros(lm.adapter.d_model, lm.adapter.d_mlp)
    texts = inputs_of(lm, 1, FAR)
    nothing = texts.some(torch.arange(0))
    quiet = Quiet(texts, nothing, nothing, nothing)
    generator = torch.Generator().manual_seed(0)
    found = train(Unknown(start, mask, None), Rows(lm, 1, rows), 2, quiet, config, generator, lambda step: None)
    values = torch.zeros(len(mask), requires_grad=True)
    adam = torch.optim.Adam([values], lr=config.lr)
    ref = lm.adapter.down(lm.model, 1)
    for _ in range(3):
        change = start.flatten().scatter(0, mask, values).view_as(start)
        weight = lm.model.get_parameter(ref.name).detach() + ref.oriented(change)
        nll = []
        for row in rows:
            logits = torch.func.functional_call(lm.model, {ref.name: weight}, (torch.tensor([row.ids]),)).logits
            nll.append(torch.nn.functional.cross_entropy(logits[0, list(row.reads)], torch.tensor(row.targets)))
        adam.zero_grad()
        torch.stack(nll).mean().backward()
        adam.step()
    # Adam divides by the size of a gradient, so entries that have next to none may differ.
    assert len(found.losses) == 4
    assert torch.nn.functional.cosine_similarity(found.values, values.detach(), dim=0) > 0.999


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
        alone = [float(inputs_of(lm, 1, [text]).indicator(change, relative=relative, largest=True)[0]) for text in FAR]
        largest = together.indicator(change, relative=relative, largest=True).tolist()
        assert largest == pytest.approx(alone, rel=1e-4)
    assert isinstance(together, Inputs)


class OnADevice(TorchFunctionMode):
    """Refuses tensors that are made where torch's default is: on a GPU they would not meet the others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.arange, torch.full, torch.zeros, torch.ones, torch.tensor):
            assert kwargs and kwargs.get("device") is not None, func.__name__
        return func(*args, **(kwargs or {}))


def test_some_of_the_texts_are_chosen_on_the_device_of_all() -> None:
    inputs, which = inputs_of(make_lm("gpt2"), 1, FAR), torch.tensor([2, 0])
    with OnADevice():
        assert inputs.some(which).n == 2


def test_inputs_are_kept_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("gpt2")
    here = kept_inputs_of(lm, 1, FAR)
    assert kept_inputs_of(lm, 1, FAR) is here
    elsewhere = replace(here, n=1)
    monkeypatch.setattr("editlab.edits.side_training.inputs_of", lambda *args: elsewhere)
    monkeypatch.setattr(LM, "device", torch.device("meta"))
    assert kept_inputs_of(lm, 1, FAR) is elsewhere


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


def test_the_activation_that_the_router_rests_on_is_part_of_what_the_edit_is(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:1], indicator="reference")
    edit = lm.ledger.active[0].edit
    assert edit.routing is not None and edit.routing["activation"] == "silu"

    def scores(edit: Edit) -> list[float]:
        twin = make_lm("llama")
        twin.ledger.apply(edit)
        return twin.route([FACTS[0].text, *FAR]).to_pandas()["margin"].tolist()

    other = replace(edit, routing=edit.routing | {"activation": "relu"})
    assert scores(other) != scores(edit) and other.digest != edit.digest
    # A pack may have it in `info`, and goes on with edits that have it where it belongs.
    bare = {name: value for name, value in edit.routing.items() if name != "activation"}
    old = replace(edit, routing=bare, info={"activation": "silu"})
    assert scores(old) == scores(edit)
    twin = make_lm("llama")
    twin.ledger.apply(old)
    written(twin, quick, FACTS[1:2], indicator="reference")
    for wrong in (replace(edit, routing=bare | {"activation": "soft"}), replace(old, info={"activation": "soft"})):
        with pytest.raises(EditlabError, match="no activation 'soft'"):
            scores(wrong)
    # Other indicators do not ask for it: what is known of their edits stays as it is.
    plain = written(make_lm("llama"), quick, FACTS[:1]).ledger.active[0].edit
    assert plain.routing is not None and "activation" not in plain.routing
    assert scores(replace(plain, info={"activation": "soft"})) == scores(plain)
    assert scores(replace(plain, routing=plain.routing | {"activation": "soft"})) == scores(plain)


def test_the_indicator_on_a_prompt_is_the_kept_one(quick: dict[str, Any]) -> None:
    lm = written(make_lm("gpt2"), quick, FACTS[:2])
    layer = layer_of(lm)
    lm.forward(lm.encode([f.text for f in FACTS[:2]]))
    seen = lm.routes.last[next(iter(lm.routes.layers))].scores[:, 0]
    assert float(layer.thresholds[0]) == pytest.approx(0.8 * float(seen.min()), rel=1e-4)


MATRIX = torch.tensor([[2.0, 0.0], [0.0, 1.0]])


def by_hand(banks: list[torch.Tensor], own: list[torch.Tensor], matrix: torch.Tensor = MATRIX, **routing: Any) -> Layer:
    """The routed layer of a matrix (d_out, d_in), each bank with one prompt of its own."""
    module = torch.nn.Linear(matrix.shape[1], len(matrix), bias=False)
    with torch.no_grad():
        module.weight.copy_(matrix)
    given = {"path": "p", "layer": 0, "shard_size": 1, "merge_every": 1, "mode": "retrieve", "merge": "ties"}
    given |= {"density": 1.0, "indicator": "absolute", "ratio": 0.5, "seed": 0, "number": 0, "count": 1} | routing
    made = [
        Bank(f"bank {i}", Part.of(change), (x,), len(matrix))
        for i, (change, x) in enumerate(zip(banks, own, strict=True))
    ]
    return Layer(module, made, Routing.model_validate(given), torch.relu)


def decided(layer: Layer, x: torch.Tensor, prompt: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    with torch.no_grad():
        chosen, scores = layer.decide(prompt, layer.look(x, layer._module(x)))
    return chosen.tolist(), scores


def test_indicators_by_hand() -> None:
    change = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    prompt = torch.tensor([[True, True, False]])
    # Added: 3 and 4; the plain outputs have the lengths 2 and 1. The last token is none of the prompt's.
    expected = {
        ("absolute", "mean"): 3.5,
        ("absolute", "max"): 4.0,
        ("relative", "mean"): 7 / 3,
        ("relative", "max"): 4.0,
        ("reference", "mean"): 3.5,
    }
    for (indicator, pooling), value in expected.items():
        layer = by_hand([change], [x[0, :2]], indicator=indicator, pooling=pooling)
        chosen, scores = decided(layer, x, prompt)
        assert scores.tolist() == [[pytest.approx(value)]]
        assert layer.thresholds.tolist() == [pytest.approx(value / 2, rel=1e-4)]
        assert chosen == [0]


def test_the_bank_farthest_above_its_own_threshold_answers() -> None:
    strong, weak = torch.tensor([[10.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    # Thresholds are 5 and 1. The prompt gives 6 and 1.8: more, but 1.2 and 1.8 thresholds.
    x = torch.tensor([[[0.6, 0.9]], [[0.6, 0.1]], [[0.1, 0.1]]])
    everything = torch.ones(3, 1, dtype=torch.bool)
    layer = by_hand([strong, weak], [first, second])
    assert layer.thresholds.tolist() == pytest.approx([5.0, 1.0], rel=1e-4)
    assert decided(layer, x, everything)[0] == [1, 0, -1]
    # In another order the same ones answer; a bank that holds nothing never does.
    layer = by_hand([weak, torch.zeros(2, 2), strong], [second, first, first])
    assert decided(layer, x, everything)[0] == [0, 2, -1]
    # A higher threshold never adds a routed prompt.
    routed = []
    for limit in (-1.0, 0.5, 1.0, 5.5, torch.inf):
        layer.__dict__["thresholds"] = torch.full((3,), limit)
        routed.append({i for i, bank in enumerate(decided(layer, x, everything)[0]) if bank >= 0})
    assert routed[0] == {0, 1, 2} and routed[-1] == set()
    assert all(b <= a for a, b in pairwise(routed))


def test_an_edit_more_leaves_the_other_banks_as_they_are(quick: dict[str, Any]) -> None:
    lm = written(
        make_lm("llama"), quick | {"shard_size": 1, "merge_every": 1, "mode": "retrieve", "steps": 3}, FACTS[:2]
    )
    before = layer_of(lm).banks
    lm.edit(FACTS[2], "wise", **(quick | {"shard_size": 1, "merge_every": 1, "mode": "retrieve", "steps": 3}))
    after = layer_of(lm).banks
    assert len(after) == 3 and all(a is b for a, b in zip(before, after, strict=False))
    lm.undo(lm.ledger.active[0].id, replay=False)
    assert [bank.name for bank in layer_of(lm).banks] == ["shards 1 to 1", "shards 2 to 2"]


def test_rows_get_the_change_of_their_own_bank() -> None:
    banks = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -7.0]])]
    layer = by_hand(banks, [torch.eye(2)[:1], torch.eye(2)[1:]])
    x = torch.rand(4, 3, 2)
    with torch.no_grad():
        y = layer._module(x)
        got = layer.change(x, y, torch.tensor([1, -1, 0, 1]), None)
    for row, bank in enumerate([1, -1, 0, 1]):
        expected = y[row] if bank < 0 else y[row] + x[row] @ banks[bank].T
        assert torch.equal(got[row], expected)


def test_each_of_many_banks_answers_its_own_prompts(quick: dict[str, Any]) -> None:
    """Sequential, in the metric; the first edit is as routable as the last, and measured packs agree."""
    lm = written(make_lm("llama"), quick | WHITENED | {"shard_size": 1, "merge_every": 1, "steps": 10})
    assert [bank.name for bank in layer_of(lm).banks] == [f"shards {i} to {i}" for i in range(4)]
    answers = lm.route([f.text for f in FACTS]).to_pandas()["answers"].tolist()
    assert answers == [f"shards {i} to {i}" for i in range(4)]


def many_banks(generator: torch.Generator, indicator: str = "absolute") -> Layer:
    """Twelve banks of nearly low rank, each loud on prompts of its own; 80 rows, 20 inputs."""
    banks, own = [], []
    for _ in range(12):
        key = torch.randn(1, 20, generator=generator)
        noise = 0.01 * torch.randn(80, 20, generator=generator)
        banks.append(torch.randn(80, 1, generator=generator) @ key + noise)
        own.append(key)
    return by_hand(banks, own, torch.randn(80, 20, generator=generator), indicator=indicator, pooling="max")


@pytest.mark.parametrize("indicator", ["absolute", "relative"])
def test_banks_that_are_told_by_their_limit_would_have_been_silent(
    indicator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editlab.memories.sketch.RANK", 4)
    generator = torch.Generator().manual_seed(0)
    layer = many_banks(generator, indicator)
    x = 0.3 * torch.randn(40, 5, 20, generator=generator)
    for row in range(0, 40, 2):
        x[row, row % 5] += layer.banks[row % 12].inputs[0][0]
    prompt = torch.ones(40, 5, dtype=torch.bool)
    prompt[::7, 3:] = False
    y = layer._module(x)
    exact = layer.decide(prompt, layer.look(x, y))
    for rows in (slice(0, 40), slice(0, 1), slice(1, 2)):
        seen = layer.look(x[rows], y[rows], exact=False)
        quick = layer.decide(prompt[rows], seen)
        assert torch.equal(quick[0], exact[0][rows])
        assert bool((quick[1] <= exact[1][rows] + 1e-6).all())
    assert set(exact[0].tolist()) >= {-1, 0, 2, 4}
    assert int((seen[0] == 0).all(0).all(0).sum()) >= 6  # most banks were not multiplied


def test_a_limit_is_never_below_what_it_limits_and_meets_it_at_full_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    values, x = torch.randn(40, 30, generator=generator), torch.randn(50, 30, generator=generator)
    exact = (x @ values.T).norm(dim=-1)
    gaps = []
    for rank in (1, 5, 20):
        monkeypatch.setattr("editlab.memories.sketch.RANK", rank)
        sketch = Sketch.of(values)
        assert sketch is not None
        limit = Limits([sketch], x.device).of(x)[:, 0]
        assert bool((limit >= exact).all())
        gaps.append(float((limit / exact).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > 1
    low = torch.randn(40, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    monkeypatch.setattr("editlab.memories.sketch.RANK", 3)
    sketch = Sketch.of(low)
    assert sketch is not None and torch.allclose(
        Limits([sketch], x.device).of(x)[:, 0], (x @ low.T).norm(dim=-1), rtol=1e-3
    )
    monkeypatch.setattr("editlab.memories.sketch.RANK", 21)
    assert Sketch.of(values) is None


def test_scores_that_are_shown_are_exact(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlab.memories.sketch.RANK", 1)
    lm = written(make_lm("llama"), quick | WHITENED | {"shard_size": 1, "merge_every": 1, "steps": 10})
    shown = lm.route(FAR).to_pandas()["margin"]
    with torch.no_grad():
        lm.forward(lm.encode(FAR))
        unscreened = layer_of(lm).margin(lm.routes.last[next(iter(lm.routes.layers))].scores).amax(1)
    assert layer_of(lm)._limits is not None
    assert (shown > 0).all() and bool((unscreened <= torch.tensor(shown.to_numpy()) + 1e-6).all())


def test_two_models_in_one_process_keep_apart(quick: dict[str, Any]) -> None:
    alone = written(make_lm("llama"), quick, FACTS[:2])
    one, other = make_lm("llama"), make_lm("llama", seed=1)
    for fact in FACTS[:2]:
        one.edit(fact, "wise", **quick)
        other.edit(fact, "wise", **quick)
    assert one.state_hash == alone.state_hash


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


def test_whoever_listens_hears_which_weights_a_memory_stands_in_for(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    heard: list[tuple[str, ...]] = []
    lm.ledger.view.on_change.append(heard.append)
    written(lm, quick, FACTS[:1])
    lm.undo()
    assert [names for names in heard if names] == [(f"{lm.adapter.layers[1].down}.weight",)] * 2


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
    with pytest.raises(PackError, match=r"was made for.*in the dtype"):
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


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_saved_model_has_its_memories_in_whichever_dtype_it_is_loaded(
    saved: torch.dtype, dtype: str, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm("llama", dtype=saved)
    lm.edit(FACTS[0], "ft", layer=0, lr=0.01, norm_constraint=0.05, steps=3)
    lm.edit(FACTS[1], "wise", **quick)
    with monkeypatch.context() as m:  # what it is made of may have needed options to load
        m.setattr(LM, "from_pretrained", None)
        lm.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    again = LM.from_pretrained("~/model", dtype=dtype)
    assert [e.edit.method for e in again.ledger.active] == ["wise"]
    if again.model.dtype == saved == torch.float32:  # (another dtype has other rotary tables once it is loaded)
        batch = lm.encode([f.text for f in FACTS] + FAR)
        assert torch.equal(again.forward(batch), lm.forward(batch))
    assert again.route(FACTS[1].text).to_pandas()["answers"].tolist() != ["model"]


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


def test_what_is_kept_of_a_state_is_kept_with_a_memory_that_decides_freely(quick: dict[str, Any]) -> None:
    lm = written(make_lm("llama"), quick, FACTS[:1])
    made: list[str] = []

    def make() -> int:
        made.append(lm.state_hash)
        return len(made)

    def twice() -> list[int]:
        return [lm.at_state("count", make), lm.at_state("count", make)]

    assert twice() == [1, 1]
    with lm.routes.off(*lm.routes.layers):
        assert twice() == [2, 3]
    layer_of(lm).force = "main"
    assert twice() == [4, 5]
    layer_of(lm).force = "auto"
    assert twice() == [1, 1]
    with lm.session() as s:
        s.patch("mlp_out", 0, 0.0)
        assert twice() == [6, 7]
    lm.undo()
    assert twice() == [8, 8]


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
    with pytest.raises(ConfigError, match="'whiten' needs 'mask' to be 'rows'"):
        lm.edit(FACTS[0], "wise", whiten=True)
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
    _add(codes, code(8.5, 4, value=9))  # on the third, another target: it is overwritten
    assert [(float(c.key), c.target, float(c.value)) for c in codes[2:]] == [(8.5, (4,), 9.0)]
    assert codes[2].radius == pytest.approx(0.75, abs=1e-4)


def test_a_prompt_that_is_given_another_answer_says_that() -> None:
    lm = make_lm("llama")
    settings = {"layer": 1, "lr": 0.5, "steps": 20}
    lm.edit(FACTS[0], "grace", **settings)
    lm.edit(FACTS[0].model_copy(update={"target_new": "harp"}), "grace", **settings)
    assert lm.route([FACTS[0].text, *FAR]).to_pandas()["answers"].tolist() == ["key 0", "model", "model", "model"]
    pairs = [(FACTS[0].text, "harp"), (FACTS[0].text, FACTS[0].target_new)]
    new, old = (scored.nll for scored in force(lm, pairs))
    assert new < force(make_lm("llama"), pairs)[0].nll - 0.3
    lm.undo()
    assert force(lm, pairs)[1].nll < old


def test_a_codebook_answers_at_its_key_and_nowhere_else() -> None:
    lm = make_lm("llama")
    lm.edit(FACTS[0], "grace", layer=1, lr=0.5, steps=20, radius=1e-3)
    routing = lm.route([FACTS[0].text, *FAR]).to_pandas()
    assert routing["answers"].tolist() == ["key 0", "model", "model", "model"]
    batch = lm.encode(FAR)
    assert torch.equal(lm.forward(batch), make_lm("llama").forward(batch))


def test_what_a_pack_says_of_its_edits_is_not_trusted(quick: dict[str, Any]) -> None:
    more = quick | {"replay": 2, "steps": 3}

    def after(edit: Edit) -> LM:
        lm = make_lm("llama")
        lm.ledger.apply(edit)
        return written(lm, more, FACTS[1:2])

    first = written(make_lm("llama"), more, FACTS[:1]).ledger.active[0].edit
    wanted = after(first).state_hash
    for info in ({}, {"edits": "none"}, {"edits": [{"shard": 7}, {"shard": "a"}]}):
        assert after(replace(first, info=info)).state_hash == wanted
    for requests in ([], [{"prompt": 1}], [*first.requests, *first.requests]):
        with pytest.raises(PackError, match="does not name the facts"):
            after(replace(first, requests=requests))


def test_inputs_that_another_thread_drops_meanwhile_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(OrderedDict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    lm = make_lm("llama")
    monkeypatch.setattr("editlab.edits.side_training._KEPT", Forgetful())
    assert torch.equal(kept_inputs_of(lm, 1, FAR).x, inputs_of(lm, 1, FAR).x)
