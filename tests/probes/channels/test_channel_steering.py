"""Lists, scaling and steering: the numbers are those of plain forwards, and what is chosen on dev is judged on test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from word_lm import word_lm

from editlab import LM
from editlab.errors import RequestError
from editlab.probes.channels import steer, tasks
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.lists import ListScores, answered, score_lists
from editlab.probes.channels.parts import Part
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.readout import copying, read_out

PARTS = [Part(0, 1, 0), Part(1, 2, 0)]


def test_lists_are_scored_by_length_and_place() -> None:
    lm = word_lm()
    prompts = tasks.laundry(lm, 2, 4) + tasks.laundry(lm, 4, 4)
    found = score_lists(lm, prompts, rows=5)
    for i, p in enumerate(prompts):
        logits = lm.forward(tasks.batch_of([p]))[0, -1]
        own = [float(logits[t]) for t in p.item_ids]
        assert found.picks[i] == int(np.argmax(own)) and found.lengths[i] == p.n
        assert found.first[i] == float(int(logits.argmax()) == p.item_ids[p.target])
        assert found.margins[i] == pytest.approx(
            own[p.target] - max(x for j, x in enumerate(own) if j != p.target), abs=1e-4
        )
    table = found.to_pandas()
    assert list(table["n"]) == [8, 16] and list(table["chance"]) == [0.5, 0.25]
    assert table["accuracy"].tolist() == [found.right[:8].mean(), found.right[8:].mean()]
    both = found.to_pandas(("length", "pos"))
    assert both.groupby("length")["picked"].sum().tolist() == [1.0, 1.0] and len(both) == 6
    assert found.plot().data[0].y is not None


def test_scaling_on_activations_is_scaling_in_the_weights_and_dev_chooses() -> None:
    lm = word_lm()
    dev, test = (tasks.laundry(lm, 3, 3, split=s) for s in ("dev", "test"))
    gain = steer.search_scale(lm, PARTS, dev, test, factorise(lm), alphas=(0.0, 1.0, 3.0), controls=4)
    for alpha in (0.0, 3.0):
        twin = lm.fork()
        twin.ledger.apply(component_edit(lm, PARTS, alpha))
        scores = score_lists(twin, dev)
        assert gain.dev[f"{alpha:g}"] == pytest.approx(scores.right.mean())
        if f"times {alpha:g}" in gain.chosen:
            assert np.array_equal(gain.steered.picks, score_lists(twin, test).picks)
    assert np.array_equal(gain.base.picks, score_lists(lm, test).picks)
    best = max(gain.dev.values())
    assert gain.dev[gain.chosen.split("times ")[1]] == best and "n=9" in gain.headline
    with pytest.raises(RequestError, match="No component"):
        steer.search_scale(lm, [], dev, test, factorise(lm))


def test_coordinates_are_set_at_the_end_and_nowhere_else() -> None:
    lm = word_lm()
    prompts = tasks.laundry(lm, 3, 2)
    setting = Setting(lm, prompts)
    space = steer.Subspace.of(lm, PARTS)
    assert space.layer == 2 and (space.basis @ space.basis.mT - torch.eye(2)).abs().max() < 1e-6
    wanted = torch.tensor([3.0, -2.0]).expand(len(prompts), -1)
    found = space.logits(setting, torch.arange(len(prompts)), wanted)
    kept: list[torch.Tensor] = []

    def put(x: torch.Tensor) -> torch.Tensor:
        moved = x + (wanted - x @ space.basis.mT) @ space.basis
        kept.append(moved @ space.basis.mT)
        return moved

    with lm.session() as s, torch.no_grad():
        s.patch("resid_pre", 2, put, at=-1)
        plain = s.run(setting.batch, read=setting.batch.last).logits
    assert (found - plain).abs().max() < 1e-4 and (kept[0] - wanted).abs().max() < 1e-5
    # What prompts have anyway changes nothing.
    same = space.logits(setting, torch.arange(len(prompts)), space.observed(setting))
    assert (same - lm.forward(setting.batch, read=setting.batch.last)).abs().max() < 1e-4
    with pytest.raises(RequestError, match="After the last layer"):
        steer.Subspace.of(lm, [Part(2, 0, 0)])
    with pytest.raises(RequestError, match="made of components"):
        steer.Subspace.of(lm, [Part(1, 0)])


def test_a_chart_counts_what_is_picked() -> None:
    lm = word_lm()
    found = steer.chart(lm, PARTS, tasks.laundry(lm, 3, 2), samples=16)
    assert found.picks.shape == (16, 6) and found.volume.sum() == pytest.approx(1)
    assert 0 <= found.entropy <= np.log2(3) and 0 <= found.unreachable <= 2
    low, high = found.observed.min(0), found.observed.max(0)
    assert (found.points >= low - (high - low)).all() and (found.points <= high + (high - low)).all()
    assert len(found.to_pandas()) == 16 and len(found.plot().data) >= 2 and "Lists of 3" in found.headline
    one = steer.chart(lm, [PARTS[0]], tasks.laundry(lm, 3, 1), samples=4)
    three = steer.chart(lm, [*PARTS, Part(0, 3, 1)], tasks.laundry(lm, 3, 1), samples=4)
    assert one.plot().data[0].type == "scatter" and three.plot().data[0].type == "scatter3d"


def test_steering_to_places_is_judged_on_other_prompts() -> None:
    lm = word_lm()
    dev, test = (tasks.laundry(lm, 3, 3, split=s) for s in ("dev", "test"))
    gain = steer.steer_to_positions(lm, PARTS, dev, test, samples=8, controls=2)
    assert set(gain.dev) == {"place 0", "place 1", "place 2"} and len(gain.controls) == 2
    assert "oracle position" in gain.chosen and len(gain.base.right) == 9
    # The steered answers by hand, for the first test prompt of each place.
    assert gain.paired.difference.mean == pytest.approx(gain.steered.right.mean() - gain.base.right.mean())


def test_a_gain_must_beat_chance_and_controls() -> None:
    n = 200
    rng = np.random.default_rng(0)
    targets = np.zeros(n, int)

    def scores(share: float) -> ListScores:
        return ListScores((rng.random(n) > share).astype(int), targets, np.full(n, 4), np.zeros(n), np.zeros(n))

    base, better = scores(0.4), scores(0.7)
    assert steer.Gain("x", {}, base, better, np.full(20, 0.42)).helps
    assert not steer.Gain("x", {}, base, better, np.full(20, 0.75)).helps
    assert "No gain" in steer.Gain("x", {}, base, scores(0.4), np.full(20, 0.42)).headline


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_tokens_are_those_of_the_models_own_matrices_whatever_its_gains(family: str, tied: bool) -> None:
    lm = word_lm(family, tie_word_embeddings=tied)
    lm.model.double()
    generator = torch.Generator().manual_seed(1)
    for name, p in lm.model.named_parameters():
        if "norm" in name or "ln_" in name:  # gains (and biases) that no two dimensions share
            p.data = (p + 3 * torch.rand(p.shape, generator=generator)).to(p)
    layer, head, i = 1, 2, 1
    gain, queries, keys, values, out = _plain(lm, family, layer, head)
    x = lm.model.get_input_embeddings().weight.detach()
    x = x - x.mean(-1, keepdim=True) if family != "llama" else x
    x = x / x.square().mean(-1, keepdim=True).sqrt() * gain  # what the head's projections are given
    centre = torch.eye(len(gain)) - (family != "llama") / len(gain)
    read = (centre * 1.0).double() @ torch.diag(gain)
    ov, qk = read @ values @ out @ centre.double(), read @ queries @ keys.T @ read.T
    _, s, vh = torch.linalg.svd(ov)
    p, t, qh = torch.linalg.svd(qk)
    norm = [m for name, m in lm.model.named_modules() if name.endswith((".norm", "ln_f", "final_layer_norm"))][-1]
    expected = {
        "writes": lm.model.get_output_embeddings().weight.detach() @ (vh[i] * norm.weight.detach()),
        "reads": x @ values @ out @ centre.double() @ vh[i] / s[i],
        "queries": x @ queries @ keys.T @ read.T @ qh[i] / t[i],
        "keys": x @ keys @ queries.T @ read.T @ p[:, i] / t[i],
    }
    found = read_out(lm, factorise(lm, dtype=torch.float64), Part(layer, head, i), k=6)
    for side, scores in expected.items():
        ends = {tuple(tokens) for tokens in ([t for t, _ in found.tokens[f"{side} {sign}"]] for sign in "+-")}
        plain = [(sign * scores).topk(6) for sign in (1, -1)]
        assert ends == {tuple(lm.tokenizer.decode([j]) for j in top.indices.tolist()) for top in plain}, side
        size = sorted(v for sign in "+-" for _, v in found.tokens[f"{side} {sign}"])
        assert size == pytest.approx(sorted(torch.cat([top.values for top in plain]).tolist()), rel=1e-3), side


def _plain(lm: LM, family: str, layer: int, head: int) -> tuple[torch.Tensor, ...]:
    """The gain in front of a layer's attention, and W_Q, W_K, W_V (d, e) and W_O (e, d) of one head, as stored."""
    e = lm.adapter.head_dim
    rows = slice(head * e, (head + 1) * e)
    if family == "llama":
        block = lm.model.model.layers[layer]
        kv = head // (lm.adapter.n_heads // lm.adapter.n_kv_heads)
        shared = slice(kv * e, (kv + 1) * e)
        a = block.self_attn
        of = (a.q_proj.weight[rows].T, a.k_proj.weight[shared].T, a.v_proj.weight[shared].T, a.o_proj.weight[:, rows].T)
        gain = block.input_layernorm.weight
    elif family == "gpt2":
        block = lm.model.transformer.h[layer]
        q, k, v = block.attn.c_attn.weight.chunk(3, dim=1)
        of = (q[:, rows], k[:, rows], v[:, rows], block.attn.c_proj.weight[rows])
        gain = block.ln_1.weight
    else:
        block = lm.model.gpt_neox.layers[layer]
        q, k, v = block.attention.query_key_value.weight.unflatten(0, (-1, 3, e))[head].transpose(-1, -2)
        of = (q, k, v, block.attention.dense.weight[:, rows].T)
        gain = block.input_layernorm.weight
    return gain.detach(), *(w.detach() for w in of)


def test_tokens_are_those_of_the_products_that_they_stand_for() -> None:
    lm = word_lm()
    f = factorise(lm)
    found = read_out(lm, f, Part(1, 2, 1), k=5)
    norm = lm.model.model.norm.weight
    scores = lm.model.lm_head.weight @ (f.v[f.index(Part(1, 2)), 1] * norm)
    assert [t for t, _ in found.tokens["writes +"]] == [
        lm.tokenizer.decode([i]) for i in scores.topk(5).indices.tolist()
    ]
    assert [v for _, v in found.tokens["writes -"]] == pytest.approx((-scores).topk(5).values.tolist(), rel=1e-4)
    assert set(found.to_pandas()) == {f"{a} {b}" for a in ("writes", "reads", "queries", "keys") for b in "+-"}
    assert "heuristic" in found._repr_html_() and 0 <= copying(lm, f, Part(1, 2), tasks.NAMES[:8]) <= 1
    with pytest.raises(RequestError, match="whole head"):
        read_out(lm, f, Part(1, 2))


def test_answers_of_prompts_of_several_lengths_do_not_mix() -> None:
    lm = word_lm()
    prompts = tasks.laundry(lm, 2, 2) + tasks.laundry(lm, 5, 1)
    setting = Setting(lm, prompts)
    found = answered(setting, lm.forward(setting.batch, read=setting.batch.last))
    assert (found.picks < found.lengths).all()
