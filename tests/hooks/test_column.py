"""One column by itself is the model's: against full forwards in which every other head is frozen."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES
from tiny_lm import make_lm
from turner import Turner

from editlab import LM
from editlab.errors import AdapterError
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.column import Column, column

CLEAN = pad_rows([[5, 9, 30, 44, 51, 60, 21], [8, 31, 50, 12, 77, 3, 40]])
OTHER = pad_rows([[15, 19, 20, 34, 11, 61, 71], [81, 13, 55, 72, 17, 33, 42]])
TOKENS = torch.arange(20)


def column_of(lm: LM, batch: Batch) -> Column:
    with lm.session() as s, torch.no_grad():
        return column(s, batch)


def patched(found: Column, other: Column, layer: int) -> torch.Tensor:
    """(B, H, n) logits with each head of `layer` taken from `other`, by the column."""
    n_heads = found.adapter.n_heads
    rows = torch.arange(len(found.z)).repeat_interleave(n_heads)
    shift = found.project(layer, other.z[:, layer] - found.z[:, layer]).flatten(0, 1)
    final = found.run(layer, rows, lambda n: found.attention[rows, n] + (shift if n == layer else 0))
    return found.logits(final, TOKENS.expand(len(rows), -1)).unflatten(0, (-1, n_heads))


def naive(lm: LM, batch: Batch, other: Batch, layer: int, head: int, *, only_last: bool = False) -> torch.Tensor:
    """(B, n) the same by a full forward: all heads frozen everywhere, one replaced at every position."""
    clean, corrupt = lm.capture(batch, ["z"]), lm.capture(other, ["z"])
    with lm.session() as s, torch.no_grad():
        for n in range(lm.adapter.n_layers):
            s.patch("z", n, clean["z", n])
        value = corrupt["z", layer][:, :, [head]]
        s.patch("z", layer, value[:, -1] if only_last else value, at=-1 if only_last else None, heads=[head])
        logits = s.run(batch, read=batch.last).logits
    assert logits is not None
    return logits[:, TOKENS]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patched_column_is_the_full_forward_with_all_else_frozen(family: str) -> None:
    tiny = make_lm(family)
    lm = LM(tiny._view._base_model.double(), tiny.tokenizer)
    found, other = column_of(lm, CLEAN), column_of(lm, OTHER)
    moved = 0.0
    with torch.no_grad():
        for layer in range(lm.adapter.n_layers):
            got = patched(found, other, layer)
            for head in range(lm.adapter.n_heads):
                want = naive(lm, CLEAN, OTHER, layer, head)
                assert (got[:, head] - want).abs().max() < 1e-10, (layer, head)
                moved = max(moved, float((want - lm.forward(CLEAN, CLEAN.last)[:, TOKENS]).abs().max()))
    assert moved > 1e-2  # patching does something


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_column_is_the_last_position_of_what_a_session_sees(family: str) -> None:
    lm = make_lm(family)
    found, last = column_of(lm, CLEAN), lm.adapter.n_layers - 1
    kept = lm.capture(CLEAN, ["z", "attn_raw", "resid_pre", "resid_post", "final"])
    for site, parts in (("z", found.z), ("attn_raw", found.attention), ("resid_pre", found.resid)):
        for layer in range(lm.adapter.n_layers):
            assert torch.allclose(parts[:, layer], kept[site, layer][:, -1], atol=1e-6)
    assert torch.allclose(found.out, kept["resid_post", last][:, -1], atol=1e-6)
    assert torch.allclose(found.final, kept["final"][:, -1], atol=1e-6)


def test_heads_wider_than_the_model_divides_and_a_kv_head_for_all() -> None:
    for changes in ({"head_dim": 10}, {"num_key_value_heads": 1}, {"num_attention_heads": 6, "num_key_value_heads": 3}):
        tiny = make_lm("qwen3", **changes)
        lm = LM(tiny._view._base_model.double(), tiny.tokenizer)
        found, other = column_of(lm, CLEAN), column_of(lm, OTHER)
        with torch.no_grad():
            for head in range(lm.adapter.n_heads):
                want = naive(lm, CLEAN, OTHER, 1, head)
                assert (patched(found, other, 1)[:, head] - want).abs().max() < 1e-10


def test_only_the_last_position_of_the_patched_head_matters() -> None:
    lm = make_lm("llama")
    for head in range(4):
        everywhere = naive(lm, CLEAN, OTHER, 1, head)
        assert (everywhere - naive(lm, CLEAN, OTHER, 1, head, only_last=True)).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2", "bloom"])
def test_rows_of_other_lengths_do_not_matter(family: str) -> None:
    lm = make_lm(family)
    rows = [[5, 9, 30, 44], [8, 31, 50, 12, 77, 3, 40], [1, 2]]
    together = column_of(lm, pad_rows(rows))
    for i, row in enumerate(rows):
        alone = column_of(lm, pad_rows([row]))
        assert torch.allclose(alone.z[0], together.z[i], atol=1e-5)
        assert torch.allclose(alone.final[0], together.final[i], atol=1e-4)


def test_an_unchanged_column_gives_the_model_s_logits_from_every_layer() -> None:
    lm = make_lm("gemma2")
    found = column_of(lm, CLEAN)
    rows = torch.arange(2)
    want = lm.forward(CLEAN, CLEAN.last)
    with torch.no_grad():
        for layer in range(3):
            final = found.run(layer, rows, lambda n: found.attention[rows, n])
            got = found.logits(final, torch.arange(want.shape[1]).expand(2, -1))
            assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.filterwarnings("error:`past_key_values`:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_a_column_keeps_what_a_side_memory_decided_for_its_row(family: str) -> None:
    lm = make_lm(family)
    plain = lm.forward(CLEAN, CLEAN.last)
    turner, path = Turner(), lm.adapter.layers[1].down
    lm.routes.set({path: turner}, "test")
    lm.forward(CLEAN)
    turner.limit = float(lm.routes.last[path].scores.mean())
    want = lm.forward(CLEAN, CLEAN.last)
    is_turned = [not torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, want, strict=True)]
    assert sorted(is_turned) == [False, True]
    found, rows = column_of(lm, CLEAN), torch.tensor([1, 1, 0])
    with torch.no_grad():
        final = found.run(0, rows, lambda n: found.attention[rows, n])
        got = found.logits(final, torch.arange(want.shape[1]).expand(3, -1))
    assert torch.allclose(got, want[rows], atol=1e-4)


def test_nothing_is_left_behind_also_after_an_error() -> None:
    lm = make_lm("llama")
    before = lm.forward(CLEAN)
    found = column_of(lm, CLEAN)

    def broken(layer: int) -> torch.Tensor:
        raise RuntimeError("no attention today")

    with pytest.raises(RuntimeError, match="no attention today"):
        found.run(0, torch.arange(2), broken)
    assert torch.equal(lm.forward(CLEAN), before)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_model_whose_logits_are_made_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Column, "logits", lambda self, final, tokens: final[:, : tokens.shape[1]] * 2)
    with pytest.raises(AdapterError, match="not supported by path patching"):
        column_of(make_lm("llama"), CLEAN)
