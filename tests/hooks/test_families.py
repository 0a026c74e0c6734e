"""The parity suite: every family, found by structure, behaves as the hooks layer promises."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from conftest import make_model

from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.detect import detect
from editlab.hooks.session import Session

ROWS = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17]]
OTHER = [[30, 31, 32, 33, 34, 35, 36], [37, 38, 39], [40, 41, 42, 43, 44]]
WRITABLE = [
    "embed", "resid_pre", "attn_in", "q", "k", "v", "z", "attn_raw", "attn_out", "resid_mid", "mlp_in", "mlp_key",
    "mlp_value", "mlp_out", "resid_post", "final", "logits",
]  # fmt: skip

# Block, attention output and down projection as the design's table has them.
EXPECTED = {
    "gpt2": ("transformer.h.0", "attn.c_proj", "mlp.c_proj"),
    "gptj": ("transformer.h.0", "attn.out_proj", "mlp.fc_out"),
    "gpt_neox": ("gpt_neox.layers.0", "attention.dense", "mlp.dense_4h_to_h"),
    "llama": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "gemma3_text": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "phi": ("model.layers.0", "self_attn.dense", "mlp.fc2"),
    "opt": ("model.decoder.layers.0", "self_attn.out_proj", "fc2"),
    "falcon": ("transformer.h.0", "self_attention.dense", "mlp.dense_4h_to_h"),
    "bloom": ("transformer.h.0", "self_attention.dense", "mlp.dense_4h_to_h"),
    "olmo2": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
}
PARALLEL = {"gptj", "gpt_neox", "phi", "falcon"}
POST_NORM = {"gemma2", "gemma3_text", "olmo2"}


@pytest.fixture
def found(family: str) -> tuple[torch.nn.Module, ModelAdapter]:
    model = make_model(family)
    return model, detect(model)


def padded() -> Batch:
    return pad_rows(ROWS, pivots="left")


def real(batch: Batch) -> torch.Tensor:
    return batch.mask.bool()


def sites_of(adapter: ModelAdapter) -> list[tuple[str, int | None]]:
    return [
        (site, None if site in ("embed", "final", "logits") else 1)
        for site in WRITABLE
        if not (site == "resid_mid" and adapter.is_parallel)
    ]


def test_structure_is_the_known_one(found, family):
    _, adapter = found
    layer = adapter.layers[0]
    block, o, down = EXPECTED[family]
    assert (layer.block, layer.o, layer.down) == (block, f"{block}.{o}", f"{block}.{down}")
    assert adapter.is_parallel == (family in PARALLEL)
    assert adapter.has_post_norm == (family in POST_NORM)
    assert (adapter.n_layers, adapter.n_heads, adapter.head_dim, adapter.d_model) == (3, 4, 8, 32)
    assert None not in (layer.q, layer.k, layer.v)


def test_capturing_everything_changes_no_logit(found):
    model, adapter = found
    batch = padded()
    with Session(model, adapter) as s, torch.no_grad():
        plain = s.run(batch).logits
        for site, _ in sites_of(adapter):
            s.capture(site)
        assert torch.equal(s.run(batch).logits, plain)


def test_captured_residual_stream_is_hugging_face_s(found):
    model, adapter = found
    batch = padded()
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("resid_pre")
        got = s.run(batch)
        kwargs = {"position_ids": batch.position_ids} if adapter.takes_position_ids else {}
        states = model(batch.ids, attention_mask=batch.mask, output_hidden_states=True, **kwargs).hidden_states
    for layer in range(adapter.n_layers):
        assert torch.equal(got["resid_pre", layer], states[layer])


@pytest.mark.parametrize("grad", [False, True])
def test_patching_the_captured_value_is_a_no_op(found, grad):
    model, adapter = found
    batch = padded()
    with Session(model, adapter) as s, torch.set_grad_enabled(grad):
        plain = s.run(batch).logits
        for site, layer in sites_of(adapter):
            wish = s.capture(site, layer)
            value = s.run(batch)[site, layer]
            s.remove(wish)
            wish = s.patch(site, layer, value)
            assert (s.run(batch).logits - plain).abs().max() <= 2e-6, site
            s.remove(wish)


def test_a_full_patch_gives_the_other_prompt_s_logits(found):
    model, adapter = found
    batch, other = padded(), pad_rows(OTHER, pivots="left")
    sites = ["resid_pre", "resid_post"] + ([] if adapter.is_parallel else ["resid_mid"])
    with Session(model, adapter) as s, torch.no_grad():
        wanted = s.run(other).logits
        for site in sites:
            s.capture(site, 1)
        values = s.run(other)
        for site in sites:
            wish = s.patch(site, 1, values[site, 1])
            got = s.run(batch).logits
            assert (got - wanted)[real(batch)].abs().max() <= 5e-6, site
            s.remove(wish)


def test_residual_stream_is_the_sum_of_its_parts(found):
    model, adapter = found
    batch = padded()
    with Session(model, adapter) as s, torch.no_grad():
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            s.capture(site)
        got = s.run(batch, read=None)
    for layer in range(adapter.n_layers):
        parts = got["resid_pre", layer] + got["attn_out", layer] + got["mlp_out", layer]
        assert (parts - got["resid_post", layer])[real(batch)].abs().max() <= 5e-6


def test_head_outputs_sum_to_the_attention_output(found):
    model, adapter = found
    batch = padded()
    o = model.get_submodule(adapter.layers[1].o)
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("z", 1)
        s.capture("attn_raw", 1)
        got = s.run(batch, read=None)
    z = got["z", 1]
    with torch.no_grad():
        zero = o(torch.zeros_like(z).flatten(-2))  # the bias
        total = zero.clone()
        for head in range(adapter.n_heads):
            only = torch.zeros_like(z)
            only[:, :, head] = z[:, :, head]
            total += o(only.flatten(-2)) - zero
    assert (total - got["attn_raw", 1])[real(batch)].abs().max() <= 5e-6


def test_ablating_every_head_leaves_the_bias(found):
    model, adapter = found
    batch = padded()
    bias = getattr(model.get_submodule(adapter.layers[1].o), "bias", None)
    with Session(model, adapter) as s, torch.no_grad():
        s.ablate("z", 1, heads=range(adapter.n_heads))
        s.capture("attn_raw", 1)
        got = s.run(batch, read=None)["attn_raw", 1]
    assert torch.equal(got, torch.zeros_like(got) if bias is None else bias.expand_as(got))


def test_q_k_v_are_what_attention_uses(found):
    """Replacing another row's q, k and v replaces z; each alone does not."""
    model, adapter = found
    batch, other = pad_rows([ROWS[0]]), pad_rows([OTHER[0]])
    with Session(model, adapter) as s, torch.no_grad():
        for site in ("q", "k", "v", "z"):
            s.capture(site, 1)
        theirs, ours = s.run(other, read=None), s.run(batch, read=None)
        for site in ("q", "k", "v"):
            s.patch(site, 1, theirs[site, 1])
        assert (s.run(batch, read=None)["z", 1] - theirs["z", 1]).abs().max() <= 2e-6
    for site in ("q", "k", "v"):
        with Session(model, adapter) as s, torch.no_grad():
            s.patch(site, 1, theirs[site, 1])
            s.capture("z", 1)
            mixed = s.run(batch, read=None)["z", 1]
        assert (mixed - theirs["z", 1]).abs().max() > 1e-3
        assert (mixed - ours["z", 1]).abs().max() > 1e-3


def test_mlp_key_times_the_down_matrix_is_mlp_value(found):
    model, adapter = found
    batch = padded()
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("mlp_key", 1)
        s.capture("mlp_value", 1)
        got = s.run(batch, read=None)
    ref = adapter.down(model, 1)
    bias = getattr(model.get_submodule(adapter.layers[1].down), "bias", None)
    value = got["mlp_key", 1] @ ref.oriented(model.get_parameter(ref.name)).T + (0 if bias is None else bias)
    assert (value - got["mlp_value", 1])[real(batch)].abs().max() <= 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_running_from_a_cone_equals_the_full_forward(family, layer, dtype):
    model = make_model(family, dtype=dtype)
    adapter = detect(model)
    tokens = [2, 1, 3]
    batch = pad_rows(ROWS, pivots=tokens)
    column = batch.column(0, tokens[0])
    tolerance = 3e-6 if dtype == torch.float32 else 5e-2
    with Session(model, adapter) as s, torch.no_grad():
        for cut in (0, column):
            for factor in (1.0, 1.5):
                full_wish = s.patch("resid_pre", layer, partial(torch.mul, other=factor), at=torch.full((3,), column))
                full = s.run(batch).logits
                s.remove(full_wish)
                cone = s.cone(batch, layer, cut)
                wish = s.patch("resid_pre", layer, partial(torch.mul, other=factor), at=torch.full((3,), column))
                inside = s.run(cone).logits
                read = s.run(cone, read=batch.last).logits
                s.remove(wish)
                error = (inside - full[:, cut:])[real(batch)[:, cut:]].abs().max()
                assert error <= tolerance * full.abs().max()
                assert (read - full[torch.arange(3), batch.last]).abs().max() <= tolerance * full.abs().max()


def test_gradients_through_the_cone_equal_those_of_the_full_forward(family):
    model = make_model(family)
    adapter = detect(model)
    batch = pad_rows(ROWS, pivots=[2, 1, 3])
    column = batch.column(0, 2)
    grads = []
    with Session(model, adapter) as s:
        for use_cone in (False, True):
            shift = torch.full((3, 32), 0.1, requires_grad=True)
            source = s.cone(batch, 2, column) if use_cone else batch
            wish = s.patch("resid_pre", 2, partial(torch.add, other=shift), at=torch.full((3,), column))
            s.run(source, read=batch.last).logits.log_softmax(-1)[:, 5].sum().backward()
            s.remove(wish)
            grads.append(shift.grad)
    assert grads[0].abs().max() > 1e-4
    assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[0].abs().max() + 1e-7


def test_padding_does_not_matter(found):
    model, adapter = found
    with Session(model, adapter) as s, torch.no_grad():
        for pad in ("left", "right"):
            batch = pad_rows(ROWS, pivots=pad)
            together = s.run(batch, read=batch.last).logits
            for i, row in enumerate(ROWS):
                alone = pad_rows([row])
                assert (s.run(alone, read=alone.last).logits[0] - together[i]).abs().max() <= 1e-5


def test_generation_is_hugging_face_s_and_hooks_see_each_step(found):
    model, adapter = found
    batch = padded()
    plain = model.generate(
        input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=4, do_sample=False, pad_token_id=0
    )[:, batch.width :]
    with Session(model, adapter) as s:
        assert torch.equal(s.generate(batch, 4), plain)
        shapes: list[tuple[int, ...]] = []
        s.patch("resid_post", 1, lambda x: shapes.append(tuple(x.shape)) or x, during="all")
        prompt = s.patch("mlp_out", 1, lambda x: x * 0)
        assert torch.equal(s.generate(batch, 4, min_new_tokens=4)[:, :0], plain[:, :0])
        assert shapes == [(3, batch.width, 32)] + [(3, 1, 32)] * 3
        assert prompt.fired == 1


def test_pattern_rows_sum_to_one_and_the_tap_comes_off(found, family):
    model, adapter = found
    batch = padded()
    before = model.config._attn_implementation
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("pattern", 1)
        pattern = s.run(batch)["pattern", 1]
        rows = pattern.sum(-1)[real(batch)[:, None].expand(pattern.shape[:3])]
        assert pattern.shape == (3, 4, batch.width, batch.width)
        assert (rows - 1).abs().max() <= 1e-5
    assert model.config._attn_implementation == before
    # GPT-J, Falcon and BLOOM, of which newer transformers let GPT-J's attention function be replaced.
    if not hasattr(sys.modules[type(model).__module__], "eager_attention_forward"):
        assert family in ("gptj", "falcon", "bloom")
        from editlab.errors import SiteUnavailable

        with Session(model, adapter) as s:
            with pytest.raises(SiteUnavailable):
                s.patch("pattern", 1, 0.0)
            with pytest.raises(SiteUnavailable):
                s.capture("q_rot", 1)
        assert model.config._attn_implementation == before
        return
    with Session(model, adapter) as s, torch.no_grad():
        for site in ("q_rot", "k_rot", "scores", "pattern"):
            s.capture(site, 1)
        base = s.run(batch)
        scores, pattern = base["scores", 1], base["pattern", 1]
        assert (scores.softmax(-1) - pattern)[real(batch)[:, None].expand(pattern.shape[:3])].abs().max() <= 1e-5
        for site in ("q_rot", "k_rot", "scores", "pattern"):
            wish = s.patch(site, 1, base[site, 1])
            assert (s.run(batch).logits - base.logits)[real(batch)].abs().max() <= 5e-6, site
            s.remove(wish)
        s.capture("z", 1)
        s.patch("pattern", 1, 0.0, heads=[2])
        z = s.run(batch, read=None)["z", 1]
        assert z[:, :, 2].abs().max() == 0 and z[:, :, 1].abs().max() > 0
