"""Pruned heads: the same in hooks and in weights, entries of the ledger, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, dense
from tiny_lm import make_lm
from transformers import AutoModelForCausalLM

from editlab import LM
from editlab.errors import ConfigError, EditFailed, EditlabError
from editlab.hooks.batch import pad_rows
from editlab.hooks.heads import HeadGains, kv_group, read_heads
from editlab.state.edit import Delta, Edit
from editlab.state.lora import save_lora

BATCH = pad_rows([[5, 9, 30, 44, 51, 60, 21], [8, 31, 50]])
HEADS = [(0, 1), (2, 0), (2, 3)]


def under(lm: LM, gains: HeadGains) -> torch.Tensor:
    """Logits of the last tokens with the gains by hooks."""
    with lm.session() as s, torch.no_grad(), gains.within(s):
        logits = s.run(BATCH, read=BATCH.last).logits
    assert logits is not None
    return logits


def last(lm: LM) -> torch.Tensor:
    return lm.forward(BATCH, BATCH.last)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_in_the_weights_is_pruning_by_hooks_and_undone_to_the_bit(family: str) -> None:
    lm = make_lm(family)
    before, base = last(lm), lm.state_hash
    by_hooks = under(lm, HeadGains.pruning(HEADS))
    entry = lm.prune_heads(HEADS)
    assert torch.allclose(last(lm), by_hooks, atol=1e-4) and not torch.allclose(by_hooks, before, atol=1e-2)
    assert "0.1, 2.0, 2.3 pruned" in entry.edit.summary
    lm.undo(entry.id)
    assert lm.state_hash == base and torch.equal(last(lm), before)


def test_no_head_and_gains_of_one_change_no_bit() -> None:
    lm = make_lm("llama")
    before = last(lm)
    assert torch.equal(under(lm, HeadGains({})), before)
    assert torch.equal(under(lm, HeadGains(dict.fromkeys(HEADS, 1.0))), before)
    with pytest.raises(ConfigError, match="No head was given"):
        lm.prune_heads([])


def test_a_whole_layer_at_zero_is_a_layer_without_attention() -> None:
    lm = make_lm("gpt2")
    with lm.session() as s, torch.no_grad():
        bias = lm.model.get_submodule(lm.adapter.layers[1].o).bias
        s.patch("attn_raw", 1, lambda part: bias.expand_as(part))
        want = s.run(BATCH, read=BATCH.last).logits
    assert torch.allclose(under(lm, HeadGains.pruning([(1, h) for h in range(4)])), want, atol=1e-5)


def test_a_pruned_head_leaves_the_others_of_its_layer_alone() -> None:
    lm = make_lm("llama")
    plain = lm.capture(BATCH, [("z", 1)])["z", 1]
    with lm.session() as s, torch.no_grad(), HeadGains.pruning([(1, 2)]).within(s):
        s.capture("z", 1)
        z = s.run(BATCH, read=None)["z", 1]
    real = BATCH.mask.bool()
    assert z[real][:, 2].abs().max() == 0
    assert torch.equal(z[real][:, [0, 1, 3]], plain[real][:, [0, 1, 3]])
    assert [kv_group(lm.adapter, h) for h in range(4)] == [0, 0, 1, 1]


def test_pruning_composes_and_is_undone_in_any_order() -> None:
    lm = make_lm("llama")
    states = {(): lm.state_hash}
    o = lm.adapter.layers[2].o + ".weight"
    torch.manual_seed(0)
    write = Edit("by-hand", {}, [], {o: Delta(dense=0.1 * torch.randn(32, 32))})
    first = lm.prune_heads([(2, 0), (2, 1)])
    states[first.id,] = lm.state_hash
    second = lm.prune_heads([(2, 1), (2, 2)])
    third = lm.ledger.apply(write)
    weight = lm.model.get_parameter(o)
    assert weight[:, :24].abs().max() == 0 and weight[:, 24:].abs().min() > 0  # also where it was written
    lm.undo(first.id)
    assert lm.model.get_parameter(o)[:, 8:24].abs().max() == 0 and lm.model.get_parameter(o)[:, :8].abs().min() > 0
    lm.redo(first.id)
    lm.undo(third.id)
    lm.undo(second.id)
    assert lm.state_hash == states[first.id,]
    lm.undo(first.id)
    assert lm.state_hash == states[()]


def test_pruning_twice_is_refused_as_it_changes_nothing() -> None:
    lm = make_lm("llama")
    assert lm.prune_heads("1.2").edit.summary == "heads 1.2 pruned"
    with pytest.raises(EditFailed, match="changed no weights"):
        lm.prune_heads("1.2")


def test_gains_amplify_too() -> None:
    lm = make_lm("opt")
    want = under(lm, HeadGains({(1, 1): 2.0}))
    entry = lm.prune_heads("1.1", gain=2.0)
    assert torch.allclose(last(lm), want, atol=1e-4) and "gains on heads 1.1" in str(entry)


def test_a_mean_goes_into_the_bias_or_is_refused() -> None:
    means = {(1, 2): torch.linspace(-1, 1, 8)}
    for family in ("gpt2", "bloom"):
        lm = make_lm(family)
        before, want = lm.state_hash, under(lm, HeadGains.pruning([(1, 2)], means))
        entry = lm.prune_heads([(1, 2)], means=means)
        assert entry.edit.summary == "heads 1.2 pruned by their means"
        assert entry.to_record()["parameters"] == ", ".join(entry.edit.deltas) and len(entry.edit.deltas) == 2
        assert torch.allclose(last(lm), want, atol=1e-4)
        assert not torch.allclose(want, under(lm.pristine(), HeadGains.pruning([(1, 2)])), atol=1e-2)
        lm.undo()
        assert lm.state_hash == before
        # Beside a head that has none.
        want = under(lm, HeadGains.pruning([(1, 2), (1, 0)], means))
        lm.prune_heads([(1, 2), (1, 0)], means=means)
        assert torch.allclose(last(lm), want, atol=1e-4)
    with pytest.raises(ConfigError, match="no bias to put it in"):
        make_lm("llama").prune_heads([(1, 2)], means=means)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packs_and_exports_hold_pruned_heads(family: str, tmp_path: Path) -> None:
    lm = make_lm(family)
    lm.prune_heads(HEADS)
    lm.save_edits(tmp_path / "pack")
    other = make_lm(family)
    other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash and other.ledger.active[0].edit.summary.startswith("heads 0.1")
    lm.save_pretrained(tmp_path / "hf")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = BATCH.ids[:1]
    want = lm.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(plain.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), want)
    with pytest.raises(ConfigError, match="prunes heads, which a LoRA cannot hold"):
        save_lora(tmp_path / "lora", lm.ledger, lm.model, lm.name)


def test_generation_is_the_same_with_and_without_a_cache() -> None:
    lm = make_lm("llama")
    gains = HeadGains.pruning(HEADS)
    with lm.session() as s, gains.within(s):
        cached, uncached = (s.generate(BATCH, 6, use_cache=use, eos_token_id=None) for use in (True, False))
    lm.prune_heads(HEADS)
    with lm.session() as s:
        assert torch.equal(cached, uncached) and torch.equal(s.generate(BATCH, 6, eos_token_id=None), cached)


def test_heads_as_typed_and_what_is_no_head() -> None:
    assert read_heads("23.4, 24.1;0.0 23.4") == ((23, 4), (24, 1), (0, 0))
    for text in ("", "23", "a.b", "1.2.3"):
        with pytest.raises(ConfigError, match="is no head"):
            read_heads(text)
    lm = make_lm("llama")
    with pytest.raises(ConfigError, match=r"no head 1\.9 .* heads 0 to 3"):
        lm.prune_heads("1.9")
    with pytest.raises(ConfigError, match="no layer 7"):
        lm.prune_heads("7.0")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_gain_has_its_own_form() -> None:
    gain = Delta.gain(torch.tensor([1.0, 0.0, 2.0]), axis=1, size=2)
    assert gain.shape == (2, 3) and torch.equal(dense(gain), torch.tensor([[1.0, 0, 2], [1, 0, 2]]).double())
    assert gain.norm() == pytest.approx(2.0)
    assert Edit("a", {}, [], {"w": gain}).digest != Edit("a", {}, [], {"w": Delta(gain.left, gain.right)}).digest
    with pytest.raises(EditlabError, match="rank 2"):
        Delta(left=torch.ones(3, 2), right=torch.ones(2, 3), is_gain=True)
    with pytest.raises(EditlabError, match="dense"):
        Delta(dense=torch.ones(3, 2), is_gain=True)


def test_replaying_edits_puts_pruned_heads_back_as_they_were() -> None:
    lm = make_lm("llama")
    first = lm.prune_heads("0.1")
    second = lm.prune_heads("2.3")
    lm.undo(first.id, replay=True)
    only = make_lm("llama")
    only.prune_heads("2.3")
    assert lm.state_hash == only.state_hash and lm.ledger[second.id].is_active
