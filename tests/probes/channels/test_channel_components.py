"""Scaling components: the weights that come of it, the same on activations, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import make_lm

from editlab.errors import ConfigError, RequestError
from editlab.probes.channels.components import component_edit, writer
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.parts import Part
from editlab.probes.channels.weights import layer_heads

TEXTS = ["the old town by the sea", "in the river"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -1.0])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "falcon"])
def test_t13_an_edit_scales_its_component_and_nothing_else(family: str, alpha: float) -> None:
    lm = make_lm(family)
    f, before = factorise(lm, dtype=torch.float64), layer_heads(lm, 1, torch.float64)
    state = {n: p.clone() for n, p in lm.model.named_parameters()}
    entry = lm.ledger.apply(component_edit(lm, [Part(1, 2, 3)], alpha))
    after = layer_heads(lm, 1, torch.float64)
    at, group = f.index(Part(1, 2)), before.group[2]
    ov = before.v[group] @ before.o[2]
    want = ov + (alpha - 1) * f.s[at, 3] * torch.outer(f.u[at, :, 3], f.v[at, 3])
    assert (before.v[group] @ after.o[2] - want).abs().max() < 1e-6 * ov.abs().max()
    values = torch.linalg.svdvals(before.v[group] @ after.o[2])[:8]
    expected = f.s[at].clone()
    expected[3] *= abs(alpha)
    assert (values - expected.sort(descending=True).values).abs().max() < 1e-6
    changed = [n for n, p in lm.model.named_parameters() if not torch.equal(p, state[n])]
    assert changed == [f"{lm.adapter.layers[1].o}.weight"]
    for h in (0, 1, 3):
        assert torch.equal(before.o[h], after.o[h])
    lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash
    assert all(torch.equal(p, state[n]) for n, p in lm.model.named_parameters())


def test_t13_one_is_no_edit_and_orthogonal_ones_commute() -> None:
    lm = make_lm("llama")
    with pytest.raises(Exception, match="changed no weights"):
        lm.ledger.apply(component_edit(lm, [Part(1, 2, 3)], 1.0))
    assert lm.state_hash == lm.base_hash
    one, two = lm.fork(), lm.fork()
    for twin, order in ((one, (3, 0)), (two, (0, 3))):
        for i in order:
            twin.ledger.apply(component_edit(lm, [Part(1, 2, i)], 0.0))
    both = lm.fork()
    both.ledger.apply(component_edit(lm, [Part(1, 2, 0), Part(1, 2, 3), Part(2, 0, 1)], 0.0))
    a, b, c = (layer_heads(x, 1, torch.float64).o[2] for x in (one, two, both))
    assert torch.equal(a, b) and (a - c).abs().max() < 1e-7
    assert int(torch.linalg.matrix_rank(a, rtol=1e-5)) == 6
    assert "removed: 1.2.0, 1.2.3, 2.0.1" in both.ledger.active[0].edit.summary


def test_an_edit_is_saved_loaded_and_survives_a_replay(tmp_path: Path) -> None:
    lm = make_lm("gpt2")
    first = lm.ledger.apply(component_edit(lm, [Part(0, 1, 0)], 0.0))
    lm.ledger.apply(component_edit(lm, [Part(1, 1, 2)], 3.0))
    lm.save_edits(tmp_path / "pack")
    other = make_lm("gpt2")
    other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash
    lm.undo(first.id, replay=True)
    assert [e.edit.config["components"] for e in lm.ledger.active] == [["1.1.2"]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
def test_queries_are_scaled_where_they_read_a_component(family: str) -> None:
    lm = make_lm(family)
    f, before = factorise(lm, dtype=torch.float64), layer_heads(lm, 1, torch.float64)
    lm.ledger.apply(component_edit(lm, [Part(1, 2, 0)], 0.25, side="qk"))
    after = layer_heads(lm, 1, torch.float64)
    at, g = f.index(Part(1, 2)), before.group[2]
    qk = before.q[2] @ before.k[g].T
    want = qk + (0.25 - 1) * f.t[at, 0] * torch.outer(f.p[at, :, 0], f.q[at, :, 0])
    assert (after.q[2] @ before.k[g].T - want).abs().max() < 1e-6 * qk.abs().max()
    assert torch.equal(after.q[1], before.q[1]) and torch.equal(after.k, before.k) and torch.equal(after.v, before.v)
    assert torch.equal(after.o, before.o)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt"])
def test_t20_removing_on_activations_is_removing_in_the_weights(family: str) -> None:
    lm = make_lm(family)
    batch = lm.encode(TEXTS)
    base = lm.forward(batch)
    w = writer(lm, Part(1, 2, 0))
    for alpha in (0.0, 2.0):
        with lm.session() as s, torch.no_grad():
            s.patch("z", 1, w.scaled(alpha), heads=[2])
            logits = s.run(batch).logits
        twin = lm.fork()
        twin.ledger.apply(component_edit(lm, [Part(1, 2, 0)], alpha))
        real = batch.mask.bool()
        assert (logits - twin.forward(batch))[real].abs().max() < 1e-4
        assert (logits - base)[real].abs().max() > 1e-2


def test_coordinates_are_measured_and_set() -> None:
    lm = make_lm("llama")
    w = writer(lm, Part(1, 2), torch.eye(32, dtype=torch.float64)[:0].new_tensor(layer_heads(lm, 1).o[2][:3].tolist()))
    z = torch.randn(5, 8, dtype=torch.float64)
    moved = w.set_to(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))(z)
    assert (w.coordinates(moved) - torch.tensor([1.0, -2.0, 0.5])).abs().max() < 1e-6
    o = layer_heads(lm, 1, torch.float64).o[2]
    change = (moved - z) @ o
    assert (change - change @ w.directions.mT @ w.directions).abs().max() < 1e-6  # and along nothing else


def test_what_cannot_be_scaled_is_refused_in_words() -> None:
    lm = make_lm("llama")
    with pytest.raises(RequestError, match=r"There is no 1\.9\.0.*heads to 3"):
        component_edit(lm, [Part(1, 9, 0)], 0)
    with pytest.raises(RequestError, match="Name components such as"):
        component_edit(lm, [Part(1, 2)], 0)
    with pytest.raises(RequestError, match="No component was named"):
        component_edit(lm, [], 0)
    with pytest.raises(ConfigError, match="norm behind attention"):
        component_edit(make_lm("gemma2"), [Part(1, 2, 0)], 0)
    with pytest.raises(ConfigError, match="norm on its queries"):
        component_edit(make_lm("qwen3"), [Part(1, 2, 0)], 0, side="qk")
    for text in ("20", "a.b", "1.2.3.4", "-1.2"):
        with pytest.raises(RequestError, match="names no head"):
            Part.parse(text)
