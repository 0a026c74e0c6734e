"""The ledger's laws: weights are a function of the active entries, and nothing else happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from conftest import dense
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_lm import make_lm
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from editlab.errors import EditFailed, EditlabError, UnknownName
from editlab.state.edit import Delta, Edit
from editlab.state.ledger import Ledger
from editlab.state.weights import WeightView

IDS = torch.tensor([[1, 5, 9, 2, 7]])
GPT2_WEIGHTS = [
    "transformer.h.0.mlp.c_proj.weight",
    "transformer.h.1.mlp.c_proj.weight",
    "transformer.wte.weight",
]
LLAMA_WEIGHTS = [
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "lm_head.weight",
]
DOWN = GPT2_WEIGHTS[0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def gpt2(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=32)
    return GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def an_edit(view: WeightView, names: list[str], seed: int, kind: str = "mixed", scale: float = 0.1) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for i, name in enumerate(names):
        rows, cols = view.base(name).shape
        if kind == "dense" or (kind == "mixed" and (seed + i) % 3 == 0):
            deltas[name] = Delta(dense=scale * torch.randn(rows, cols, generator=generator, dtype=torch.float64))
        else:
            rank = 1 + seed % 3
            left = scale * torch.randn(rows, rank, generator=generator)
            deltas[name] = Delta(left=left, right=torch.randn(rank, cols, generator=generator))
    fact = {"prompt": "{} is in", "subject": f"City {seed}", "target_new": "Rome"}
    return Edit("test", {"seed": seed}, [fact], deltas, {"loss": 0.5})


def weights_of(view: WeightView) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in view.model.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


def shares_everything(view: WeightView, base: nn.Module) -> bool:
    return [id(p) for p in view.model.parameters()] == [id(p) for p in base.parameters()]


# --- Delta and Edit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_norm_and_rank_of_factors_are_those_of_their_product(rank: int) -> None:
    left, right = torch.randn(8, rank), torch.randn(rank, 6)
    delta = Delta(left=left, right=right)
    assert (delta.shape, delta.rank, delta.dtype) == ((8, 6), rank, torch.float32)
    assert delta.norm() == pytest.approx(float((left.double() @ right.double()).norm()), rel=1e-12)
    assert torch.equal(dense(delta), left.double() @ right.double())
    assert delta.to(torch.float64).norm() == delta.norm()


def test_norm_survives_cancellation() -> None:
    a, b = torch.randn(8, 1, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    delta = Delta(left=torch.cat([a, -a], 1), right=torch.cat([b, b * (1 + 1e-12)]))
    assert delta.norm() == pytest.approx(float(dense(delta).norm()), rel=1e-2)


def test_more_factors_than_rows_are_multiplied_out() -> None:
    left, right = torch.randn(4, 9), torch.randn(9, 5)
    with pytest.raises(EditlabError, match="low_rank"):
        Delta(left=left, right=right)
    assert torch.equal(dense(Delta.low_rank(left, right)), left.double() @ right.double())
    assert Delta.low_rank(left[:, :2], right[:2]).rank == 2


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"left": torch.ones(2, 1)},
        {"left": torch.ones(2, 1), "right": torch.ones(1, 2), "dense": torch.ones(2, 2)},
        {"left": torch.ones(2, 1), "right": torch.ones(2, 2)},
        {"left": torch.ones(2), "right": torch.ones(1, 2)},
        {"left": torch.ones(2, 0), "right": torch.ones(0, 2)},
        {"left": torch.ones(2, 1), "right": torch.ones(1, 2).double()},
        {"dense": torch.ones(2, 2).bfloat16()},
        {"dense": torch.ones(2, 2).long()},
    ],
)
def test_malformed_deltas_are_refused(parts: dict[str, torch.Tensor]) -> None:
    with pytest.raises(EditlabError):
        Delta(**parts)


def test_an_edit_does_not_change_when_its_makings_do() -> None:
    dense, config = torch.ones(3, 2), {"layers": (1, 2)}
    edit = Edit("m", config, [], {"w": Delta(dense=dense)}, {"loss": float("nan")}, {"keys": dense})
    dense.zero_()
    config["layers"] = (9,)
    assert edit.deltas["w"].norm() == pytest.approx(6**0.5)
    assert torch.equal(edit.tensors["keys"], torch.ones(3, 2))
    assert edit.config == {"layers": [1, 2]}
    assert edit.info == {"loss": None}


@pytest.mark.parametrize("bad", [{"x": torch.ones(1)}, {"x": float("inf")}, {"x": {1, 2}}])
def test_a_config_that_json_cannot_hold_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(EditlabError, match="JSON"):
        Edit("m", bad, [], {})


# --- the laws -----------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["apply", "remove", "redo", "replace", "clear"]), st.integers(0, 99)),
    max_size=10,
)
RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@RELAXED
@given(operations=OPERATIONS, dtype=st.sampled_from(DTYPES), family=st.sampled_from(["gpt2", "llama"]))
def test_weights_are_those_of_the_active_entries_in_order(
    operations: list[tuple[str, int]], dtype: torch.dtype, family: str
) -> None:
    base, weights = (gpt2(dtype), GPT2_WEIGHTS) if family == "gpt2" else (llama(dtype), LLAMA_WEIGHTS)
    before = {n: (id(p), p.detach().clone()) for n, p in base.named_parameters()}
    view = WeightView(base)
    ledger = Ledger(view)
    seen_ids: set[str] = set()
    for step, (action, n) in enumerate(operations):
        edit = an_edit(view, [weights[(n + i) % 3] for i in range(1 + n % 2)], step)
        removed = [e for e in ledger if not e.is_active]
        if action == "apply":
            entry = ledger.apply(edit)
            assert entry.id not in seen_ids
            seen_ids.add(entry.id)
        elif action == "remove" and ledger.active:
            ledger.remove(ledger.active[n % len(ledger.active)].id)
        elif action == "redo" and removed:
            ledger.redo(removed[n % len(removed)].id)
        elif action == "replace" and len(ledger):
            ledger.replace(list(ledger)[n % len(ledger)].id, edit)
        elif action == "clear" and n % 4 == 0:
            ledger.clear()

    # A fresh ledger given only the active edits.
    fresh = WeightView(base)
    again = Ledger(fresh)
    for e in ledger.active:
        again.apply(e.edit)
    assert_same(weights_of(view), weights_of(fresh))
    assert view.current_hash == fresh.current_hash
    # The definition, written out.
    for name, p in base.named_parameters():
        total = p.double().clone()
        for e in ledger.active:
            if name in e.edit.deltas:
                total += dense(e.edit.deltas[name])
        torch.testing.assert_close(view.current(name).double(), total.to(dtype).double(), rtol=1e-2, atol=1e-6)
    # A fork holds the same, and then goes its own way.
    twin_view = view.fork()
    twin = ledger.fork(twin_view)
    kept = weights_of(view)
    assert_same(weights_of(twin_view), kept)
    twin.clear()
    assert shares_everything(twin_view, base)
    assert_same(weights_of(view), kept)
    # Undo everything, in an order of its own; then bring everything back.
    active = [e.id for e in ledger.active]
    for entry_id in sorted(active, key=lambda x: x[::-1]):
        ledger.remove(entry_id)
    assert shares_everything(view, base)
    assert view.current_hash == view.base_hash
    for entry_id in active:
        ledger.redo(entry_id)
    assert_same(weights_of(view), kept)
    for name, p in base.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_undo_is_exact_where_subtracting_would_not_be(dtype: torch.dtype) -> None:
    base = gpt2(dtype)
    view = WeightView(base)
    ledger = Ledger(view)
    huge = ledger.apply(an_edit(view, [DOWN], 1, scale=1e3))
    ledger.remove(huge.id)
    assert shares_everything(view, base)
    assert torch.equal(view.model(IDS).logits, base(IDS).logits)


def test_redo_of_a_middle_entry_restores_every_bit() -> None:
    view = WeightView(gpt2(torch.bfloat16))
    ledger = Ledger(view)
    ids = [ledger.apply(an_edit(view, GPT2_WEIGHTS, seed)).id for seed in range(4)]
    full, digest = weights_of(view), view.current_hash
    ledger.remove(ids[1])
    ledger.remove(ids[2])
    assert view.current_hash != digest
    ledger.redo(ids[2])
    ledger.redo(ids[1])
    assert_same(weights_of(view), full)
    assert view.current_hash == digest


def test_entries_know_when_the_state_below_them_is_not_the_one_they_were_solved_on() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    parents = []
    for seed in range(3):
        parents.append(view.current_hash)
        ledger.apply(an_edit(view, [DOWN], seed))
    first, second, third = ledger
    assert [e.parent_state_hash for e in ledger] == parents
    assert first.parent_state_hash == first.base_hash == view.base_hash
    assert [e.solved_elsewhere for e in ledger] == [False, False, False]
    ledger.remove(second.id)
    assert [e.solved_elsewhere for e in ledger] == [False, False, True]
    ledger.remove(first.id)
    assert [e.solved_elsewhere for e in ledger] == [False, True, True]
    ledger.redo(second.id)
    ledger.redo(first.id)
    assert [e.solved_elsewhere for e in ledger] == [False, False, False]
    ledger.replace(first.id, an_edit(view, [DOWN], 7))
    assert [e.solved_elsewhere for e in ledger] == [False, True, True]
    replayed = ledger.replace(second.id, an_edit(view, [DOWN], 8))  # with a later entry active
    assert [e.solved_elsewhere for e in ledger] == [False, False, True]
    ledger.remove(third.id)
    ledger.remove(second.id)
    assert replayed.parent_state_hash == view.current_hash


# --- refusals -----------------------------------------------------------------------------------------


def test_an_edit_that_changes_no_bit_is_refused_and_not_recorded() -> None:
    view = WeightView(gpt2(torch.bfloat16))
    ledger = Ledger(view)
    ledger.apply(an_edit(view, [DOWN], 1))
    shape = view.base(DOWN).shape
    before = weights_of(view)
    for delta in ({DOWN: Delta(dense=torch.zeros(shape))}, {DOWN: Delta(dense=torch.full(shape, 1e-12))}, {}):
        with pytest.raises(EditFailed, match="changed no weights"):
            ledger.apply(Edit("m", {}, [], delta))
    with pytest.raises(EditFailed, match="changed no weights"):
        ledger.replace(next(iter(ledger)).id, Edit("m", {}, [], {DOWN: Delta(dense=torch.zeros(shape))}))
    assert len(ledger) == 1
    assert_same(weights_of(view), before)


def test_the_same_edit_again_is_refused_where_it_changes_no_bit() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    rows, cols = view.base(DOWN).shape
    pruning = Edit("m", {}, [], {DOWN: Delta.gain(torch.tensor([0.0] + [1.0] * (rows - 1)), 0, cols)})
    first = ledger.apply(pruning)
    for again in (lambda: ledger.apply(pruning), lambda: ledger.apply(Edit("m", {}, [], pruning.deltas))):
        with pytest.raises(EditFailed, match="changed no weights"):
            again()
    adding = an_edit(view, [DOWN], 1)
    ledger.apply(adding)
    ledger.apply(adding)
    ledger.replace(first.id, pruning)
    assert len(ledger.active) == 3


def test_restoring_brings_entries_back_with_all_that_they_say_of_themselves() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    for seed in range(3):
        ledger.apply(an_edit(view, [DOWN], seed))
    ledger.remove(next(iter(ledger)).id)
    before, weights = list(ledger), weights_of(view)
    assert [e.solved_elsewhere for e in before] == [False, True, True]
    ledger.replace(before[1].id, an_edit(view, [GPT2_WEIGHTS[1]], 7))
    ledger.redo(before[0].id)
    ledger.restore(before)
    assert [vars(e) for e in ledger] == [vars(e) for e in before]
    assert_same(weights_of(view), weights)


@pytest.mark.parametrize(
    ("name", "delta", "kind", "words"),
    [
        ("transformer.h.9.mlp.c_proj.weight", Delta(dense=torch.ones(64, 16)), UnknownName, "Did you mean"),
        (GPT2_WEIGHTS[1], Delta(dense=torch.ones(16, 64)), EditlabError, "Conv1D"),
        (GPT2_WEIGHTS[1], Delta(dense=torch.full((64, 16), float("nan"))), EditFailed, "not finite"),
        (GPT2_WEIGHTS[1], Delta(dense=torch.full((64, 16), 1e9)), EditFailed, "too large"),
        ("lm_head.weight", Delta(dense=torch.ones(40, 16)), EditlabError, "two names"),
    ],
)
def test_a_bad_delta_among_good_ones_changes_nothing(
    name: str, delta: Delta, kind: type[Exception], words: str
) -> None:
    view = WeightView(gpt2(torch.float16))
    ledger = Ledger(view)
    ledger.apply(an_edit(view, GPT2_WEIGHTS, 1))
    before = weights_of(view)
    heard: list[tuple[str, ...]] = []
    view.on_change.append(heard.append)
    good = an_edit(view, GPT2_WEIGHTS, 2).deltas
    with pytest.raises(kind, match=words):
        ledger.apply(Edit("m", {}, [], {**good, name: delta}))
    assert_same(weights_of(view), before)
    assert len(ledger) == 1 and not heard


def test_a_failure_while_writing_leaves_ledger_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    first = ledger.apply(an_edit(view, [DOWN], 1))
    before = weights_of(view)

    def broken(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("editlab.state.weights.rebind", broken)
    with pytest.raises(MemoryError):
        ledger.apply(an_edit(view, GPT2_WEIGHTS, 2))
    monkeypatch.undo()
    assert_same(weights_of(view), before)
    assert [e.id for e in ledger] == [first.id]


def test_unknown_and_spent_ids_are_refused_with_a_hint() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    with pytest.raises(UnknownName, match="no active entries"):
        ledger.remove("e1-0000")
    entry = ledger.apply(an_edit(view, [DOWN], 1))
    with pytest.raises(UnknownName, match=f"Did you mean '{entry.id}'"):
        ledger.remove(entry.id + "x")
    with pytest.raises(UnknownName, match="No removed entry"):
        ledger.redo(entry.id)
    ledger.remove(entry.id)
    with pytest.raises(UnknownName, match="No active entry"):
        ledger.remove(entry.id)
    with pytest.raises(UnknownName):
        _ = ledger["nonsense"]


def test_adopt_and_fork_refuse_what_does_not_belong() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    entry = ledger.apply(an_edit(view, [DOWN], 1))
    with pytest.raises(EditlabError, match="already has an entry"):
        ledger.adopt([entry])
    with pytest.raises(EditlabError, match="another base"):
        ledger.fork(WeightView(gpt2(torch.bfloat16)))
    assert len(ledger) == 1


def test_adopted_entries_are_in_force_and_ids_go_on_after_them() -> None:
    view = WeightView(gpt2())
    other = Ledger(WeightView(gpt2()))
    for seed in range(4):
        other.apply(an_edit(other.view, [DOWN], seed))
    other.remove(list(other)[1].id)
    ledger = Ledger(view)
    assert [e.id for e in ledger.adopt(list(other)[1:])] == [e.id for e in list(other)[1:]]
    assert [e.state for e in ledger] == ["removed", "active", "active"]
    expected = view.base(DOWN).double()
    for entry in ledger.active:
        expected = entry.edit.deltas[DOWN].apply_to(expected.clone())
    assert torch.equal(view.current(DOWN), expected.float())
    assert ledger.apply(an_edit(view, [DOWN], 9)).id.startswith("e5-")
    ledger.adopt([next(iter(other))])  # an older number does not set the count back
    assert ledger.apply(an_edit(view, [DOWN], 10)).id.startswith("e6-")
    with pytest.raises(EditlabError, match="already has an entry"):
        fresh = Ledger(WeightView(gpt2()))
        fresh.adopt([list(other)[2], list(other)[2]])
    assert len(fresh) == 0 and torch.equal(fresh.view.current(DOWN), fresh.view.base(DOWN))


def test_ids_count_what_was_ever_applied() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    ids = [ledger.apply(an_edit(view, [DOWN], seed)).id for seed in range(3)]
    ledger.remove(ids[2])
    twin = ledger.fork(view.fork())
    assert [i.split("-")[0] for i in ids] == ["e1", "e2", "e3"]
    for each in (ledger, twin):
        assert each.apply(an_edit(each.view, [DOWN], 5)).id.startswith("e4-")


def test_an_entry_below_a_side_memory_and_one_above_know_their_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    lm = make_lm("gpt2")
    fact = {"prompt": "The capital of {} is", "subject": "Vinland", "target_new": "Rome"}
    name = lm.adapter.down(lm.model, 0).name
    lm.ledger.apply(an_edit(lm.ledger.view, [name], 1))
    lm.edit(fact, "grace", layer=1, steps=3)
    with_memory = lm.ledger.view.current_hash
    above = lm.ledger.apply(an_edit(lm.ledger.view, [name], 2))
    last = lm.ledger.apply(an_edit(lm.ledger.view, [name], 3))
    assert above.parent_state_hash == with_memory
    again = lm.ledger.replace(above.id, an_edit(lm.ledger.view, [name], 4))  # a later one is active
    assert again.parent_state_hash == with_memory
    lm.ledger.remove(last.id)
    assert lm.ledger.replace(above.id, an_edit(lm.ledger.view, [name], 5)).parent_state_hash == with_memory
    lm.ledger.remove(list(lm.ledger)[1].id)
    assert lm.ledger.replace(above.id, an_edit(lm.ledger.view, [name], 6)).parent_state_hash != with_memory


# --- ties, tables, threads ----------------------------------------------------------------------------


def test_an_edit_of_a_tied_embedding_shows_in_both_places() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    delta = torch.randn(40, 16)
    entry = ledger.apply(Edit("m", {}, [], {"lm_head.weight": Delta(dense=delta)}))
    assert list(entry.edit.deltas) == ["transformer.wte.weight"]
    assert view.model.lm_head.weight is view.model.transformer.wte.weight
    assert torch.equal(view.model.lm_head.weight, (view.base("lm_head.weight").double() + delta).float())


def test_tables_and_text_show_the_entries_and_escape_them() -> None:
    view = WeightView(gpt2())
    ledger = Ledger(view)
    assert "No edits" in ledger._repr_html_()
    edit = an_edit(view, [DOWN], 1)
    edit.requests[0]["subject"] = "<script>"
    entry = ledger.apply(edit)
    assert entry.id.startswith("e1-")
    assert entry.id in repr(ledger)
    assert "\n" not in str(entry)
    assert "<script>" not in ledger._repr_html_() + entry._repr_html_()
    (row,) = ledger.to_records()
    assert (row["id"], row["state"], row["parameters"]) == (entry.id, "active", DOWN)
    norm = entry.edit.deltas[DOWN].norm()
    assert row["norm"] == pytest.approx(norm)
    assert f"{norm:.4g}" in ledger._repr_html_() and "solved on another state" not in ledger._repr_html_()
    second = ledger.apply(an_edit(view, [DOWN], 2))
    ledger.remove(entry.id)
    second = ledger[second.id]
    says = f"{second.id} test (active, solved on another state): City 2 is in → Rome, norm "
    assert str(second) == f"{says}{second.to_record()['norm']:.4g}"
    assert str(ledger[entry.id]).startswith(f"{entry.id} test (removed): ")
    assert repr(ledger) == f"Ledger(1 of 2 edits active)\n  {ledger[entry.id]}\n  {second}"
    assert "active (solved on another state)" in ledger._repr_html_()


def test_two_threads_on_one_ledger_lose_nothing() -> None:
    base = gpt2()
    view = WeightView(base)
    ledger = Ledger(view)
    failures: list[BaseException] = []

    def work(offset: int) -> None:
        try:
            for seed in range(offset, offset + 8):
                entry = ledger.apply(an_edit(view, [GPT2_WEIGHTS[seed % 2]], seed))
                if seed % 2:
                    ledger.remove(entry.id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    assert (len(ledger), len(ledger.active), len({e.id for e in ledger})) == (16, 8, 16)
    fresh = WeightView(base)
    again = Ledger(fresh)
    for e in ledger.active:
        again.apply(e.edit)
    assert_same(weights_of(view), weights_of(fresh))
    ledger.clear()
    assert shares_everything(view, base)
