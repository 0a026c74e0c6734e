"""Methods that do not solve for values: FT-L, LoRA-FT and UltraEdit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, dense
from tiny_lm import make_lm
from torch.func import functional_call

from editlab import LM, Fact
from editlab.edits.finetune import FineTuneSettings, fine_tune
from editlab.edits.methods.ultraedit import _standardised
from editlab.errors import ConfigError, EditFailed, RequestError
from editlab.evaluation.scorer import force
from editlab.rows import rewrite_row

FACTS = [
    Fact(prompt="The capital of {} is", subject="Vinland", target_new="Rome"),
    Fact(prompt="{} plays the", subject="The young Anna", target_new="harp"),
    Fact(prompt="In the sea by {} is", subject="Thule", target_new="green"),
]
PAIRS = [(f.text, f.target_new) for f in FACTS]
STRONG: dict[str, dict[str, Any]] = {
    "ft": {"layer": 1, "lr": 0.05, "norm_constraint": 0.1, "steps": 15},
    "ft-l": {"layer": 1, "lr": 0.05, "norm_constraint": 0.1, "steps": 15},
    "lora": {"steps": 15, "lr": 0.02},
    "ultraedit": {"eta": 3e-2, "layers": [1]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))


def nll(lm: LM) -> float:
    return sum(f.nll for f in force(lm, PAIRS, sink=True))


@pytest.mark.parametrize("method", STRONG)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_become_likelier_and_undo_restores_every_bit(method: str, family: str) -> None:
    lm = make_lm(family)
    before = nll(lm)
    flags = [p.requires_grad for p in lm.model.parameters()]
    entry = lm.edit(FACTS, method, **STRONG[method])
    assert nll(lm) < before - 0.05
    assert len(entry.edit.requests) == 3
    lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert all(p.grad is None for p in lm.model.parameters())


@pytest.mark.parametrize("method", STRONG)
def test_an_edit_is_the_same_each_time(method: str) -> None:
    first, second = (make_lm("llama").edit(FACTS, method, **STRONG[method]) for _ in range(2))
    assert first.edit.digest == second.edit.digest


@pytest.mark.parametrize("method", STRONG)
def test_no_fact_is_refused(method: str) -> None:
    with pytest.raises(RequestError, match="no fact"):
        make_lm("llama").edit([], method)


def test_no_entry_moves_further_than_the_constraint() -> None:
    entry = make_lm("llama").edit(FACTS, "ft", layer=1, lr=0.05, norm_constraint=0.01)
    (delta,) = entry.edit.deltas.values()
    assert delta.dense is not None and float(delta.dense.abs().max()) == pytest.approx(0.01)
    with pytest.raises(ConfigError, match="no layer 3"):
        make_lm("llama").edit(FACTS, "ft", layer=3)


def test_lora_has_the_rank_and_the_matrices_it_names() -> None:
    lm = make_lm("llama")
    entry = lm.edit(FACTS, "lora", rank=2, steps=3)
    names = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qv"}
    assert set(entry.edit.deltas) == names and {d.rank for d in entry.edit.deltas.values()} == {2}
    fused = make_lm("gpt2").edit(FACTS, "lora", rank=2, steps=3)
    assert set(fused.edit.deltas) == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)}


def test_the_loss_is_that_of_the_scorer() -> None:
    lm = make_lm("llama")
    leaf = torch.zeros(1, requires_grad=True)
    name = lm.adapter.down(lm.model, 1).name
    weight = lm.model.get_parameter(name)
    losses = fine_tune(lm, FACTS, [leaf], lambda: {name: leaf * weight}, FineTuneSettings(steps=1))
    both = [f.nll for sink in (True, False) for f in force(lm, PAIRS, sink=sink)]
    assert losses == pytest.approx([sum(both) / 6], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("layer", [0, 2])
def test_training_from_a_frozen_layer_is_training_from_the_start(family: str, layer: int) -> None:
    """The gradient of full forwards over the same rows, logits everywhere, is what moves the first step of FT-L."""
    lm = make_lm(family, dtype=torch.float64)
    name = lm.adapter.down(lm.model, layer).name
    leaf = torch.zeros_like(lm.model.get_parameter(name)).requires_grad_()
    fine_tune(lm, FACTS, [leaf], lambda: {name: leaf}, FineTuneSettings(steps=2, lr=1e-9))
    weight = lm.model.get_parameter(name).clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    forms = (True,) if lm.adds_bos else (True, False)
    for fact in FACTS:
        for sink in forms:
            row = rewrite_row(lm, fact, sink=sink)
            logits = functional_call(lm.model, {name: weight}, (torch.tensor([row.ids]),)).logits[0]
            picked = logits.log_softmax(-1)[list(row.reads), list(row.targets)]
            loss = loss - picked.mean() / (len(FACTS) * len(forms))
    (wanted,) = torch.autograd.grad(loss, weight)
    assert leaf.grad is not None
    assert float((leaf.grad - wanted).norm() / wanted.norm()) < 1e-5


def test_targets_that_are_there_already_are_refused() -> None:
    with pytest.raises(EditFailed, match="already"):
        make_lm("llama").edit(FACTS, "ft", stop_loss=1e9)


def test_ultraedit_is_the_published_formula() -> None:
    lm = make_lm("llama", dtype=torch.float64)
    fact, eta = FACTS[0], 0.01
    ref = lm.adapter.down(lm.model, 1)
    weight = lm.model.get_parameter(ref.name)
    ids, _ = lm.tokens(f"{fact.text} {fact.target_new}", sink=True)
    n = len(ids) - len(lm.tokens(fact.text, sink=True)[0])
    kept: dict[str, torch.Tensor] = {}

    def keep(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        kept["h"] = args[0].detach()[0, -n - 1 : -1]
        kept["out"] = out.detach().requires_grad_()
        return kept["out"]

    handle = lm.model.get_submodule(ref.name.removesuffix(".weight")).register_forward_hook(keep)
    logits = lm.model(torch.tensor([ids])).logits[0, -n - 1 : -1]
    handle.remove()
    loss = -logits.log_softmax(-1).gather(-1, torch.tensor(ids[-n:])[:, None]).sum()
    g = torch.autograd.grad(loss, kept["out"])[0][0, -n - 1 : -1]
    h = kept["h"]

    def z(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-8)

    v = -eta * z(h).square().sum(1, keepdim=True) * z(g)
    expected = (torch.linalg.inv(h.T @ h + torch.eye(h.shape[1], dtype=h.dtype)) @ h.T @ v).T
    entry = lm.edit(fact, "ultraedit", layers=[1], eta=eta)
    change = lm.model.get_parameter(ref.name) - weight.new_tensor(0)
    lm.undo(entry.id)
    found = change - lm.model.get_parameter(ref.name)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_one_target_token_is_standardised_over_the_layers_together() -> None:
    """One row a layer: standardised by itself it would be zero, and so would the edit."""
    lm = make_lm("llama", dtype=torch.float64)
    fact = Fact(prompt="The old town of {}", subject="Vinland", target_new="is")
    assert len(rewrite_row(lm, fact, sink=True).targets) == 1
    layers, eta = [0, 1], 0.01
    row = rewrite_row(lm, fact, sink=True)
    kept: dict[int, list[torch.Tensor]] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, out: torch.Tensor) -> None:
            out.retain_grad()
            kept[layer] = [args[0], out]

        return hook

    paths = {layer: lm.adapter.down(lm.model, layer).name.removesuffix(".weight") for layer in layers}
    handles = [lm.model.get_submodule(paths[layer]).register_forward_hook(keep(layer)) for layer in layers]
    embedded = lm.model.get_input_embeddings()(torch.tensor([row.ids])).detach().requires_grad_()
    logits = lm.model(inputs_embeds=embedded).logits[0, -1]
    for handle in handles:
        handle.remove()
    (-logits.log_softmax(-1)[row.targets[0]]).backward()
    lm.model.zero_grad()
    h = torch.stack([kept[i][0][0, -1].detach() for i in layers])
    g = torch.stack([kept[i][1].grad[0, -1] for i in layers])

    def z(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-8)

    wanted = -eta * z(h).square().sum(1, keepdim=True) * z(g)
    entry = lm.edit(fact, "ultraedit", layers=layers, eta=eta)
    for i, layer in enumerate(layers):
        key = h[i]
        expected = torch.outer(wanted[i], key) / (1 + key @ key)  # (k k^T + I)^-1 k = k / (1 + k^T k)
        found = dense(entry.edit.deltas[f"{paths[layer]}.weight"]).double()
        assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_a_single_row_at_a_single_layer_is_refused() -> None:
    lm = make_lm("llama")
    with pytest.raises(EditFailed, match="single row"):
        lm.edit(Fact(prompt="The old town of {}", subject="Vinland", target_new="is"), "ultraedit", layers=[1])


@pytest.mark.parametrize("method", ["ft", "ft-l", "lora"])
def test_training_that_hardly_learned_says_so(method: str) -> None:
    weak = make_lm("llama").edit(FACTS, method, steps=2, lr=1e-5)
    assert "hardly any is said" in weak.edit.info["warnings"][0]


def test_ultraedits_statistics_run_on_over_active_edits_only() -> None:
    lm = make_lm("llama")
    first = lm.edit(FACTS[0], "ultraedit", layers=[1], eta=1e-3)
    alone = make_lm("llama")
    after = lm.edit(FACTS[1], "ultraedit", layers=[1], eta=1e-3)
    lm.undo(first.id)
    lm.undo(after.id)
    again = lm.edit(FACTS[1], "ultraedit", layers=[1], eta=1e-3)
    assert again.edit.digest == alone.edit(FACTS[1], "ultraedit", layers=[1], eta=1e-3).edit.digest
    assert again.edit.digest != after.edit.digest


def test_standardising_uses_all_rows_seen() -> None:
    rows = torch.randn(7, 3, dtype=torch.float64)
    moments = torch.stack([torch.full((3,), 7.0, dtype=torch.float64), rows.sum(0), rows.square().sum(0)])
    found = _standardised(rows, moments)
    assert torch.allclose(found.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.std(0, unbiased=False), torch.ones(3, dtype=torch.float64), atol=1e-6)
