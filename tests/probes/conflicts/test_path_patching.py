"""Path patching: exact against full forwards, and the identities that scores obey."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conflict_items import made_items
from conftest import FAMILIES
from tiny_lm import make_lm, make_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from editlab import LM
from editlab.errors import ConfigError, RequestError
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts.items import Item
from editlab.probes.conflicts.path_patching import Clean, head_scores


def double(family: str, **changes: Any) -> LM:
    tiny = make_lm(family, **changes)
    return LM(tiny._view._base_model.double(), tiny.tokenizer)


def by_full_forwards(lm: LM, item: Item, kind: str) -> torch.Tensor:
    """(L, H) S of one item, first partner: every other head frozen everywhere, this one replaced at N."""
    batch = lm.encode(item.prompt)
    clean = lm.capture(batch, ["z"])
    if kind != "zero":
        corrupt = lm.capture(lm.encode(item.corrupted(kind, item.partners[0])), ["z"])
    base = lm.forward(batch, batch.last)[0]
    out = torch.zeros(lm.adapter.n_layers, lm.adapter.n_heads, dtype=torch.float64)
    for layer in range(lm.adapter.n_layers):
        for head in range(lm.adapter.n_heads):
            new = torch.zeros(()) if kind == "zero" else corrupt["z", layer][:, -1, [head]]
            with lm.session() as s, torch.no_grad():
                for n in range(lm.adapter.n_layers):
                    s.patch("z", n, clean["z", n])
                s.patch("z", layer, new, at=-1, heads=[head])
                logits = s.run(batch, read=batch.last).logits
            change = base - logits[0]
            out[layer, head] = change[item.tok_mem] - change[item.tok_ctx]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_full_forwards(family: str) -> None:
    lm = double(family)
    item = made_items(lm)[1]
    scores = head_scores(lm, [item], ("both", "zero"), draws=1)
    for kind, found in scores.items():
        want = by_full_forwards(lm, item, kind)
        assert (found[0] - want).abs().max() < 1e-10 and want.abs().max() > 1e-3


def test_batches_padding_and_draws_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama")
    items = made_items(lm, 3)
    together = head_scores(lm, items, ("both", "subject", "context"))
    alone = [head_scores(lm, [item], ("both", "subject", "context")) for item in items]
    for kind, found in together.items():
        assert torch.allclose(found, torch.cat([a[kind] for a in alone]), atol=1e-5)
    monkeypatch.setattr("editlab.probes.conflicts.path_patching.ROWS", 2)
    monkeypatch.setattr("editlab.probes.conflicts.path_patching.BATCH_ITEMS", 2)
    assert torch.allclose(head_scores(lm, items)["both"], together["both"], atol=1e-5)
    single = [head_scores(lm, [replace(i, partners=i.partners[k : k + 1]) for i in items])["both"] for k in (0, 1)]
    assert torch.allclose((single[0] + single[1]) / 2, together["both"], atol=1e-5)


def test_some_heads_are_those_of_all() -> None:
    lm = make_lm("gpt2")
    items = made_items(lm)
    every, some = head_scores(lm, items)["both"], head_scores(lm, items, heads=[(0, 1), (2, 3)])["both"]
    assert torch.allclose(some[:, [0, 2], [1, 3]], every[:, [0, 2], [1, 3]], atol=1e-6)
    assert int(some.isnan().sum()) == some.numel() - 2 * len(items)


def test_swapped_answers_negate_and_an_uncorrupted_prompt_scores_nothing() -> None:
    lm = make_lm("llama")
    items = made_items(lm)
    found = head_scores(lm, items)["both"]
    swapped = [replace(item, tok_mem=item.tok_ctx, tok_ctx=item.tok_mem) for item in items]
    assert torch.equal(head_scores(lm, swapped)["both"], -found)
    clean = Clean(lm, items)
    nothing = clean.scores(clean.column.z, "path", torch.ones(3, 4, dtype=torch.bool))
    assert nothing.abs().max() < 1e-5 and found.abs().max() > 1e-2


def test_all_estimands_agree_where_they_must() -> None:
    lm = double("gpt2")
    items = made_items(lm)
    path, total = (head_scores(lm, items, estimand=e)["both"] for e in ("path", "total"))
    assert torch.allclose(path[:, -1], total[:, -1], atol=1e-9)  # after the last attention nothing looks back
    assert not torch.allclose(path[:, 0], total[:, 0], atol=1e-3)
    silent = double("gpt2")
    for layer in silent.adapter.layers:  # without MLPs a head's path is its own write
        silent._view._base_model.get_submodule(layer.down).weight.zero_()
        silent._view._base_model.get_submodule(layer.down).bias.zero_()
    path, direct = (head_scores(silent, items, estimand=e)["both"] for e in ("path", "direct"))
    assert torch.allclose(path, direct, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon"])
def test_total_at_the_last_position_is_the_full_forward_with_the_hook_there(family: str) -> None:
    lm = double(family)
    item = made_items(lm)[0]
    found = head_scores(lm, [item], estimand="total", draws=1)["both"][0]
    batch = lm.encode(item.prompt)
    corrupt = lm.capture(lm.encode(item.corrupted("both", item.partners[0])), ["z"])
    base = lm.forward(batch, batch.last)[0]
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        with lm.session() as s, torch.no_grad():
            s.patch("z", layer, corrupt["z", layer][:, -1, [head]], at=-1, heads=[head])
            change = base - s.run(batch, read=batch.last).logits[0]
        assert float(found[layer, head]) == pytest.approx(float(change[item.tok_mem] - change[item.tok_ctx]), abs=1e-8)


def test_the_gradient_is_the_slope_of_exact_patching() -> None:
    lm = double("gpt2")
    items = made_items(lm)
    clean = Clean(lm, items)
    (z,) = clean.replacements("both", 1)
    step = 1e-5
    near = clean.column.z + step * (z - clean.column.z)
    slope = clean.scores(near, "path", torch.ones(3, 4, dtype=torch.bool)) / step
    assert torch.allclose(clean.scores(z, "gradient", torch.ones(3, 4, dtype=torch.bool)), slope, atol=1e-3)


def planted(copy: float, recall: float) -> LM:
    """One layer: head 0 copies the token before, head 1 looks the own token up: the next number but two."""
    size, places = 8, 4
    config = GPT2Config(
        vocab_size=size, n_positions=places, n_embd=16, n_layer=1, n_head=2, n_inner=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    block = model.transformer.h[0]
    for norm in (block.ln_1, block.ln_2, model.transformer.ln_f):
        norm.weight.fill_(1.0)
    model.transformer.wte.weight[:, :size] = torch.eye(size)
    model.transformer.wpe.weight[:, size : size + places] = torch.eye(places)
    sharp = 20.0
    for head, seen in ((0, 1), (1, 2)):  # at place 2: what stands at place 1, and the place itself
        block.attn.c_attn.weight[size + 2, 8 * head] = sharp
        block.attn.c_attn.weight[size + seen, 16 + 8 * head] = sharp
        block.attn.c_attn.weight[:size, 32 + 8 * head : 40 + 8 * head] = torch.eye(size).double()
    block.attn.c_proj.weight[:8, :size] = copy * torch.eye(size).double()
    block.attn.c_proj.weight[8:, :size] = recall * torch.eye(size).double().roll(3, dims=1)
    return LM(model, make_tokenizer())


@pytest.mark.parametrize(("copy", "recall"), [(2.0, 4.0), (4.0, 2.0)])
def test_a_planted_circuit_is_found_and_pruning_it_flips_the_answer(copy: float, recall: float) -> None:
    lm = planted(copy, recall)
    items: list[Any] = [
        SimpleNamespace(ids=(0, c, s), tok_mem=(s + 3) % 8, tok_ctx=c, partners=()) for s, c in ((1, 6), (2, 7), (3, 1))
    ]
    scores = head_scores(lm, items, ("zero",))["zero"]
    assert scores[:, 0, 0].max() < -0.5 and scores[:, 0, 1].min() > 0.5
    winner = 1 if recall > copy else 0
    for item in items:
        answers = (item.tok_ctx, item.tok_mem)
        batch = Clean(lm, [item]).batch
        with lm.session() as s, torch.no_grad():
            assert int(s.run(batch, read=batch.last).logits.argmax()) == answers[winner]
            with HeadGains.pruning([(0, winner)]).within(s):
                assert int(s.run(batch, read=batch.last).logits.argmax()) == answers[1 - winner]


def test_nothing_is_left_behind_and_bad_requests_are_refused() -> None:
    lm = make_lm("llama")
    items = made_items(lm)
    batch = lm.encode(items[0].prompt)
    before = lm.forward(batch)
    head_scores(lm, items, ("both", "mean"))
    assert torch.equal(lm.forward(batch), before)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    with pytest.raises(ConfigError, match="no corruption 'noise'"):
        head_scores(lm, items, ("noise",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no estimand"):
        head_scores(lm, items, estimand="guess")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no item"):
        head_scores(lm, [])
    with pytest.raises(RequestError, match="no partner"):
        head_scores(lm, [replace(items[0], partners=())])
