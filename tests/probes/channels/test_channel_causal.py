"""Interventions: an edge is one reader's input and nothing else, a node is the head everywhere; statuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from word_lm import word_lm

from editlab import LM
from editlab.errors import RequestError
from editlab.probes.channels import causal, tasks
from editlab.probes.channels.components import component_edit, writer
from editlab.probes.channels.controls import control_heads, control_writers
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.find import candidates
from editlab.probes.channels.intervals import sign_flips
from editlab.probes.channels.parts import Channel, Mode, Part
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.scan import scan
from editlab.probes.channels.verdicts import Effect, Verdict

FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen3"]


def run(lm: LM, setting: Setting, layer: int, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Patterns (P, H, T, T) of a layer and logits, with a change of what enters it, seen by all."""
    with lm.session() as s, torch.no_grad():
        if change is not None:
            s.patch("resid_pre", layer, lambda x: x + change)
        s.capture("pattern", layer)
        out = s.run(setting.batch)
    return out["pattern", layer], out.logits[:, -1]


def change_of(setting: Setting, source: Part) -> Tensor:
    """(P, T, d) what removing a component takes from the stream."""
    z = setting.read([("z", source.layer)])["z", source.layer][:, :, source.head]
    w = writer(setting.lm, source)
    return -(w.coordinates(z) @ w.directions.to(z))


@pytest.mark.parametrize("family", FAMILIES)
def test_t21_an_edge_changes_the_queries_of_one_head_as_a_change_seen_by_all_would(family: str) -> None:
    lm = word_lm(family)
    setting = Setting(lm, tasks.ioi(lm, 6))
    target = Part(2, 1)
    change = 5 * change_of(setting, Part(0, 2, 1))
    at_end = torch.zeros_like(change)
    at_end[:, -1] = change[:, -1]
    base, base_logits = run(lm, setting, 2)
    all_see, _ = run(lm, setting, 2, at_end)
    seen: list[Tensor] = []
    real = setting.margin
    object.__setattr__(setting, "margin", lambda x: seen.append(x) or real(x))
    edges = setting.edges(target, "q", [torch.zeros_like(change[:, -1]), change[:, -1]], answers=True)
    alone = setting.edges(target, "q", [torch.zeros_like(change[:, -1]), change[:, -1]])
    assert alone.difference is None and np.abs(alone.margin - edges.margin).max() < 1e-6
    # A change of nothing changes nothing.
    assert np.abs(edges.margin[0] - edges.margin[1]).max() < 1e-6
    assert np.abs(edges.difference[0] - setting.difference(base_logits).numpy()).max() < 1e-4
    assert (seen[0] - base[:, 1, -1]).abs().max() < 1e-5
    # Where all see the change, END's own key changes too; what is paid to earlier tokens keeps its proportions.
    cut, all_cut = (x[:, 1:-1] / x[:, 1:-1].sum(-1, keepdim=True) for x in (seen[2], all_see[:, 1, -1]))
    assert (cut - all_cut).abs().max() < 1e-5 and (seen[2] - seen[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_t21_an_edge_changes_the_keys_of_one_group(family: str) -> None:
    lm = word_lm(family)
    setting = Setting(lm, tasks.ioi(lm, 6))
    change = 5 * change_of(setting, Part(0, 2, 1))
    change[:, -1] = 0  # so that END's query is the same where all see it
    all_see, _ = run(lm, setting, 2, change)
    edges = setting.edges(Part(2, 1), "k", [change])
    assert np.abs(edges.margin[1] - setting.margin(all_see[:, 1, -1]).numpy()).max() < 1e-5
    assert np.abs(edges.margin[1] - edges.margin[0]).max() > 1e-4
    values = setting.edges(Part(2, 1), "v", [change])
    assert np.abs(values.margin[1] - values.margin[0]).max() < 1e-6  # values do not change where B attends
    assert np.abs(values.difference[1] - values.difference[0]).max() > 1e-5


def test_t21_a_change_that_all_later_layers_see_is_the_node() -> None:
    lm = word_lm("gpt_neox")  # its MLPs do not read what attention of the same layer writes
    setting = Setting(lm, tasks.ioi(lm, 6))
    source = Part(1, 2, 0)
    all_see, logits = run(lm, setting, 2, change_of(setting, source))
    nodes = setting.nodes([Part(2, 1)], [(1, 2, writer(lm, source).scaled(0.0))])
    assert np.abs(nodes.margin[1, 0] - setting.margin(all_see[:, 1, -1]).numpy()).max() < 1e-5
    assert np.abs(nodes.difference[1] - setting.difference(logits).numpy()).max() < 1e-4
    # And it is what the edit of the weights does.
    twin = lm.fork()
    twin.ledger.apply(component_edit(lm, [source], 0.0))
    pattern, edited = run(twin, Setting(twin, setting.prompts), 2)
    assert np.abs(nodes.margin[1, 0] - setting.margin(pattern[:, 1, -1]).numpy()).max() < 1e-4
    assert np.abs(nodes.difference[1] - setting.difference(edited).numpy()).max() < 1e-3
    assert nodes.kl[0] == 0 and nodes.kl[1] > 0


def test_effects_of_a_model_handed_in_in_training_mode_are_those_without_dropout() -> None:
    found = []
    for mode in (False, True):
        plain = word_lm("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
        setting = Setting(LM(plain.model.train(mode), plain.tokenizer), tasks.ioi(plain, 6))
        cut = writer(setting.lm, Part(1, 2, 0)).scaled(0.0)
        effects = setting.nodes([Part(2, 1)], [(1, 2, cut)])
        edges = setting.edges(Part(2, 1), "q", [change_of(setting, Part(0, 2, 1))[:, -1]])
        found.append((effects.margin, effects.difference, edges.margin))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def linear_lm() -> LM:
    """Without norms and MLPs, and with attention that is the same whatever comes in, so that the model is linear."""
    model = copy.deepcopy(word_lm("llama").model)
    for block in model.model.layers:
        block.input_layernorm = torch.nn.Identity()
        block.post_attention_layernorm = torch.nn.Identity()
        block.self_attn.q_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    model.model.norm = torch.nn.Identity()
    plain = word_lm("llama")
    return LM(model.double(), plain.tokenizer, adapter=plain.adapter)


def test_t21_edges_to_all_readers_and_the_stream_add_up_to_the_node() -> None:
    lm = linear_lm()
    setting = Setting(lm, tasks.ioi(lm, 6))
    adapter = lm.adapter
    head, width = 2, adapter.head_dim
    out = lm.model.get_submodule(adapter.layers[0].o).weight[:, head * width : (head + 1) * width].T  # (e, d)
    c = torch.nn.functional.normalize(torch.randn(width, 1, generator=torch.Generator().manual_seed(0)).double(), dim=0)
    change = -(setting.read([("z", 0)])["z", 0][:, :, head] @ c @ c.T @ out)
    node = setting.nodes([], [(0, head, lambda z: z - z @ c @ c.T)]).difference
    per_group = adapter.n_heads // adapter.n_kv_heads
    total = np.zeros_like(node[0])
    readers = [Part(n, per_group * g) for n in range(1, adapter.n_layers) for g in range(adapter.n_kv_heads)]
    for reader in readers:  # heads of a group read through the same values
        edge = setting.edges(reader, "v", [change]).difference
        assert edge is not None
        total += edge[1] - edge[0]
    with lm.session() as s, torch.no_grad():
        s.patch("resid_post", adapter.n_layers - 1, lambda x: x + change)
        straight = setting.difference(s.run(setting.batch).logits[:, -1]).numpy()
    total += straight - node[0]
    assert np.abs(node[1] - node[0]).max() > 1e-3
    assert np.abs(total - (node[1] - node[0])).max() < 1e-6 * np.abs(node[1] - node[0]).max()


def test_margins_and_differences_are_read_where_the_items_stand() -> None:
    lm = word_lm()
    prompts = tasks.laundry(lm, 3, 2)
    setting = Setting(lm, prompts)
    pattern, logits = run(lm, setting, 1)
    for row, p in enumerate(prompts):
        start = int(setting.batch.first[row])
        paid = [float(pattern[row, 0, -1, start + c]) for c in p.first]
        others = [x for i, x in enumerate(paid) if i != p.target]
        assert setting.margin(pattern[:, 0, -1])[row] == pytest.approx(paid[p.target] - sum(others) / 2, abs=1e-6)
        own = [float(logits[row, t]) for t in p.item_ids]
        best = max(x for i, x in enumerate(own) if i != p.target)
        assert setting.difference(logits)[row] == pytest.approx(own[p.target] - best, abs=1e-5)


def test_controls_are_matched_seeded_and_none_is_the_source() -> None:
    lm = word_lm()
    f = factorise(lm)
    source = Part(1, 2, 3)
    found, again = (control_writers(lm, source, 2, f, 24, seed=1) for _ in range(2))
    assert len(found) == 24 and all(torch.equal(a.directions, b.directions) for a, b in zip(found, again, strict=True))
    own = f.v[f.index(source), 3]
    assert all(abs(float(w.directions[0].to(own) @ own)) < 0.999 for w in found)
    assert sum((w.layer, w.head) == (1, 2) for w in found) >= 16 and len({(w.layer, w.head) for w in found}) > 3
    heads = control_heads(lm, Part(1, 2), 2, 24)
    assert len(heads) == 7 and Part(1, 2) not in heads
    assert [h.layer for h in control_heads(lm, Part(1, 2), 3, 3, close=True)] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["q", "k", "v"])
def test_channels_are_tested_with_all_that_a_status_needs(mode: Mode) -> None:
    lm = word_lm()
    prompts = tasks.ioi(lm, 20)
    sc = scan(lm)
    channels = [*candidates(sc, [Part(2, 1)], mode, "component", 2), Channel(Part(0, 1), Part(2, 1), mode)]
    before = lm.state_hash
    found = causal.verify(lm, channels, prompts, sc, causal.Config(controls=20, passages=1))
    assert lm.state_hash == before and not any(m._forward_hooks for m in lm.model.modules())
    table = found.to_pandas()
    assert list(table["source"]) == [str(c.source) for c in channels] and (table["n"] == 20).all()
    assert list(table["controls"][:2]) == [20, 20] and set(table["status"]) <= {
        "verified",
        "edge-only",
        "not shown",
        "refuted",
    }
    assert (table["templates"] == 10).all() and (table["perplexity_after"] != table["perplexity_before"]).all()
    assert (table["edge_low"] <= table["edge"]).all() and (table["edge"] <= table["edge_high"]).all()
    # The same edge by itself.
    screened = dict(causal.screen(lm, channels, prompts, sc))
    for row, channel in zip(table.itertuples(), channels, strict=True):
        assert screened[channel] == pytest.approx(row.edge, abs=1e-6)
    assert len(found.plot().data) == 4 and "3 channels on" in found.headline
    with pytest.raises(RequestError, match="nothing to test"):
        causal.verify(lm, [], prompts, sc)


def effect(mean: float, *, spread: float = 0.1, controls: float = 0.01, q: float = 0.001) -> Effect:
    rng = np.random.default_rng(0)
    values = mean + spread * rng.standard_normal(200)
    return Effect(values, np.repeat(np.arange(8), 25), 0.5, rng.normal(0, controls, 24), q, q=q)


def test_a_true_effect_is_not_refuted_for_want_of_evidence() -> None:
    rng = np.random.default_rng(0)
    channel = Channel(Part(1, 0, 0), Part(2, 0), "q")
    statuses = []
    for _ in range(40):
        values = 0.05 + 0.5 * rng.standard_normal(40)  # too noisy to be seen on 40 prompts
        edge = Effect(values, np.arange(40) % 8, 0.4, rng.normal(0, 0.01, 24), sign_flips(values), q=sign_flips(values))
        statuses.append(Verdict(channel, {}, edge, edge, edge, 0.1, (1.0, 1.0), True, 0.05 * 0.4).status)
    assert statuses.count("refuted") == 0 and statuses.count("not shown") >= 35


def test_a_status_needs_weights_edge_node_controls_and_significance() -> None:
    strong, none = effect(0.3), effect(0.0)
    channel = Channel(Part(1, 0, 0), Part(2, 0), "q")
    full = Verdict(channel, {}, strong, strong, strong, 0.1, (1.0, 1.0), True, 0.025)
    assert full.status == "verified" and full.why == "" and not full.is_repaired
    assert replace(full, is_outlier=False).status == "edge-only"
    assert replace(full, node=none).status == "edge-only" and replace(full, node=none).is_repaired
    assert "node" in replace(full, node=none).why
    assert replace(full, edge=none).status == "refuted"
    assert replace(full, edge=effect(0.0, spread=1.0)).status == "not shown"  # nothing seen, and nothing excluded
    assert replace(full, edge=none, equivalence=0.0).status == "not shown"
    assert replace(full, edge=effect(0.3, controls=0.5)).status == "not shown"  # controls do as much
    assert replace(full, edge=effect(0.3, q=0.2)).status == "not shown"
    assert replace(full, edge=effect(0.02, spread=0.001)).status == "refuted"  # significant, and next to nothing
    assert replace(full, edge=effect(-0.3)).status == "verified"
    assert replace(full, edge=none).why == "the edge's whole interval lies within ±0.025"
    assert strong.agreeing == 8 and strong.bound < 0.05
