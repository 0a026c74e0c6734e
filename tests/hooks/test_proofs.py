"""Heads, patterns, scores and logits as detection proves them, against the model's own code run by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import LLAMA, make_model
from test_detect import build, hooks_of
from tiny_lm import make_lm, make_tokenizer
from torch import Tensor
from transformers.models.granite_swa import modeling_granite_swa

from editlab import LM
from editlab.errors import ModelError, SiteUnavailable
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.column import column
from editlab.hooks.detect import detect
from editlab.hooks.heads import HeadGains
from editlab.hooks.logit_form import token_logits, what_unembedding_reads
from editlab.hooks.session import Session

BATCH = pad_rows([[5, 9, 30, 44, 51, 60, 21], [8, 31, 50, 12, 77, 3, 40]])
MLA = {"kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
FULL = {"layer_types": ["full_attention"] * 3}
DEEPSEEK = LLAMA | {"num_key_value_heads": 4, "first_k_dense_replace": 3} | MLA
MINICPM = LLAMA | MLA | {"num_key_value_heads": 4, "scale_depth": 3**0.5, "dim_model_base": 8}
TOKENS = torch.arange(90)


def double(kind: str, settings: dict[str, Any]) -> Any:
    """A random model in float64, its sinks at odd numbers."""
    model = build(kind, settings).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "sink" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def logits_of(model: Any, batch: Batch = BATCH) -> Tensor:
    with torch.no_grad():
        return model(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids).logits


# --- heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bitnet", "diffllama"])
def test_what_one_head_attends_to_reaches_other_heads_there_and_head_sites_say_so(kind: str) -> None:
    model = double(kind, LLAMA)
    adapter = detect(model)
    assert hooks_of(model) == []
    reason = "Layer 1 of .* has no attention heads that can be told apart: what one head attends to reaches"
    batch = BATCH
    with Session(model, adapter) as s, torch.no_grad():
        for call in (
            lambda: s.capture("z", 1),
            lambda: s.patch("z", 1, 0.0, heads=[0]),
            lambda: s.ablate("z", 1, with_="mean"),
            lambda: HeadGains({(1, 0): 0.0}).within(s).__enter__(),
            lambda: column(s, batch),
        ):
            with pytest.raises(SiteUnavailable, match="told apart: what one head attends to reaches"):
                call()
        s.capture("resid_post")
        s.capture("attn_out", 1)
        s.patch("mlp_out", 1, 0.0)
        s.run(batch)
    lm = LM(build(kind, LLAMA | {"vocab_size": len(make_tokenizer())}), make_tokenizer())
    with pytest.raises(SiteUnavailable, match=reason):
        lm.prune_heads("1.2")
    from editlab.probes.channels.weights import layer_heads

    with pytest.raises(SiteUnavailable, match=reason):
        layer_heads(lm, 1)


def test_a_norm_across_heads_in_one_layer_only_is_told_of_that_layer() -> None:
    model: Any = make_model("llama")
    o = model.model.layers[1].self_attn.o_proj
    o.register_forward_pre_hook(lambda m, args: (args[0] / args[0].norm(dim=-1, keepdim=True),), prepend=True)
    adapter = detect(model)
    assert [bool(paths.no_heads) for paths in adapter.layers] == [False, True, False]
    with Session(model, adapter) as s:
        s.capture("z", 0)
        with pytest.raises(SiteUnavailable, match="Use layers 0, 2"):
            s.capture("z")


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6])
def test_two_heads_that_are_swapped_on_the_way_are_no_heads(n_heads: int) -> None:
    """The bits of the heads' numbers tell any two apart."""
    sizes = {"num_attention_heads": n_heads, "num_key_value_heads": n_heads, "head_dim": 4}
    model: Any = make_model("qwen3", **sizes)
    assert not detect(model).layers[0].no_heads
    if n_heads > 1:
        turned = [*range(n_heads - 2), n_heads - 1, n_heads - 2]
        o = model.model.layers[0].self_attn.o_proj
        o.register_forward_pre_hook(
            lambda m, args: (args[0].unflatten(-1, (n_heads, -1))[..., turned, :].flatten(-2),), prepend=True
        )
        assert "reaches what another one writes" in detect(model).layers[0].no_heads


def test_a_norm_of_each_head_by_itself_leaves_the_heads() -> None:
    model: Any = make_model("llama")

    def normed(m: Any, args: Any) -> Any:
        z = args[0].unflatten(-1, (4, -1))
        return ((z / z.norm(dim=-1, keepdim=True)).flatten(-2),)

    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(normed, prepend=True)
    assert not detect(model).layers[1].no_heads


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gated_attention_keeps_its_heads(dtype: torch.dtype) -> None:
    """z is behind a gate there, so it is not pattern times value; an ablated head is one whose columns are zero."""
    model = double("qwen3_5_text", LLAMA | FULL | {"head_dim": 8}).to(dtype)
    adapter = detect(model)
    assert not any(paths.no_heads or paths.pattern_fixed or paths.scores_fixed for paths in adapter.layers)
    assert (adapter.n_heads, adapter.n_kv_heads, adapter.head_dim) == (4, 2, 8)
    assert adapter.layers[0].q is None  # the projection of queries holds the gates too
    if dtype != torch.float64:
        return
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("z", 1)
        s.capture("pattern", 1)
        s.capture("v", 1)
        seen = s.run(BATCH)
        values = seen["v", 1].transpose(1, 2).repeat_interleave(2, 1)
        assert ((seen["pattern", 1] @ values).transpose(1, 2) - seen["z", 1]).abs().max() > 0.1
        s.patch("pattern", 1, seen["pattern", 1].clone())
        torch.testing.assert_close(s.run(BATCH).logits, seen.logits, rtol=1e-6, atol=1e-6)
    with Session(model, adapter) as s, torch.no_grad():
        s.ablate("z", 1, heads=[2])
        got = s.run(BATCH).logits
    cut = model.get_submodule(adapter.layers[1].o).weight
    cut[:, 16:24] = 0
    torch.testing.assert_close(got, logits_of(model))
    assert (got - seen.logits).abs().max() > 1e-3


def test_without_an_attention_function_to_replace_z_must_be_pattern_times_values() -> None:
    falcon: Any = make_model("falcon")
    adapter = detect(falcon)
    assert not any(paths.no_heads for paths in adapter.layers)
    falcon.transformer.h[1].self_attention.dense.register_forward_pre_hook(
        lambda m, args: (args[0] / args[0].norm(dim=-1, keepdim=True),), prepend=True
    )
    reasons = [paths.no_heads for paths in detect(falcon).layers]
    assert reasons == ["", "what a head writes is not the sum of the values that its pattern weighs", ""]


# --- patterns and scores ------------------------------------------------------------------------------


@pytest.fixture
def swa() -> tuple[Any, Any]:
    model = double("granite_swa", LLAMA | {"sliding_window": 4})
    return model, detect(model)


def effective_by_hand(scores: Tensor, sinks: Tensor) -> Tensor:
    """One more column for the sink in the softmax, dropped afterwards."""
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def test_a_pattern_beside_a_sink_is_the_effective_one(swa: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = swa
    assert adapter.has_sinks and not any(p.no_heads or p.pattern_fixed or p.scores_fixed for p in adapter.layers)
    own: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    eager = modeling_granite_swa.eager_attention_forward

    def recording(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **kwargs: Any) -> Any:
        out, weights = eager(module, q, k, v, mask, scaling, **kwargs)
        scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * scaling + mask.clamp(min=-1e30)
        own[module.layer_idx] = scores, v.repeat_interleave(2, 1), out
        return out, weights

    monkeypatch.setattr(modeling_granite_swa, "eager_attention_forward", recording)
    model.set_attn_implementation("eager")
    plain = logits_of(model)
    monkeypatch.undo()
    scores, values, out = own[1]
    sinks = model.model.layers[1].self_attn.sinks
    want = effective_by_hand(scores, sinks)
    torch.testing.assert_close((want @ values).transpose(1, 2), out, rtol=1e-6, atol=1e-6)
    with Session(model, adapter) as s, torch.no_grad():
        for site in ("pattern", "scores", "z"):
            s.capture(site, 1)
        seen = s.run(BATCH)
        torch.testing.assert_close(seen.logits, plain)
        torch.testing.assert_close(seen["pattern", 1], want, rtol=1e-6, atol=1e-6)
        assert (seen["pattern", 1].sum(-1) - 1).abs().max() > 0.1
        torch.testing.assert_close((seen["pattern", 1] @ values).transpose(1, 2), seen["z", 1], rtol=1e-6, atol=1e-6)
        for site in ("pattern", "scores"):  # writing back what was read changes nothing
            wish = s.patch(site, 1, seen[site, 1].clone())
            torch.testing.assert_close(s.run(BATCH).logits, plain, rtol=1e-5, atol=1e-5)
            s.remove(wish)
        s.patch("pattern", 1, 0.25)
        torch.testing.assert_close(
            s.run(BATCH)["z", 1], (0.25 * values.sum(2, keepdim=True)).transpose(1, 2).expand_as(out)
        )
    with Session(model, adapter) as s, torch.no_grad():
        s.patch("scores", 1, lambda x: x + torch.arange(7.0) / 3)
        s.capture("z", 1)
        s.capture("pattern", 1)
        seen = s.run(BATCH)
    want = effective_by_hand(scores + torch.arange(7.0) / 3, sinks)
    torch.testing.assert_close(seen["pattern", 1], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen["z", 1], (want @ values).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_a_pattern_made_in_two_calls_is_read_only() -> None:
    model = double("diffllama", LLAMA)
    with Session(model, detect(model)) as s:
        for site in ("pattern", "scores"):
            with pytest.raises(SiteUnavailable, match="can be read but not patched: attention is computed in several"):
                s.patch(site, 1, 0.0)
        s.capture("pattern", 1)
        assert s.run(BATCH)["pattern", 1].shape == (2, 4, 7, 7)


def test_heads_of_latent_attention_are_as_wide_as_their_values() -> None:
    """The cache holds (B, 1, T, kv_lora_rank) there."""
    for kind, settings in (("deepseek_v3", DEEPSEEK), ("minicpm3", MINICPM)):
        model = double(kind, settings)
        adapter = detect(model)
        width = model.config.v_head_dim
        assert (adapter.n_heads, adapter.n_kv_heads, adapter.head_dim) == (4, 4, width) and width != 16
        assert not any(p.no_heads or p.pattern_fixed or p.scores_fixed for p in adapter.layers)
        with Session(model, adapter) as s, torch.no_grad():
            s.capture("z", 1)
            s.capture("pattern", 1)
            seen = s.run(BATCH)
            assert seen["z", 1].shape == (2, 7, 4, width)
            s.patch("pattern", 1, seen["pattern", 1].clone())
            torch.testing.assert_close(s.run(BATCH).logits, seen.logits, rtol=1e-6, atol=1e-6)
            with pytest.raises(SiteUnavailable, match="layout was not recognised"):
                s.capture("k", 1)


# --- logits -------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, dict[str, Any], float, float | None]] = {
    "llama": ("llama", LLAMA, 1.0, None),
    "granite": ("granite", LLAMA | {"logits_scaling": 7.0}, 1 / 7, None),
    "granite_swa": ("granite_swa", LLAMA | {"logits_scaling": 7.0}, 1 / 7, None),
    "cohere": ("cohere", LLAMA | {"logit_scale": 0.3}, 0.3, None),
    "minicpm3, before the unembedding": ("minicpm3", MINICPM, 1.0, None),
    "gemma2": ("gemma2", LLAMA | {"head_dim": 8, "final_logit_softcapping": 5.0}, 1.0, 5.0),
    "phi, with a bias": ("phi", LLAMA, 1.0, None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_scale_and_cap_of_logits_are_found_and_token_logits_are_the_model_s(form: str, dtype: torch.dtype) -> None:
    kind, settings, scale, cap = FORMS[form]
    model = double(kind, settings).to(dtype)
    adapter = detect(model)
    assert (adapter.logit_scale, adapter.logit_cap, adapter.no_logits) == (pytest.approx(scale, rel=1e-12), cap, "")
    if dtype != torch.float64:
        return
    want = logits_of(model)[:, -1, TOKENS]
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("resid_post", 2, at=-1)
        stream = s.run(BATCH)["resid_post", 2]
        read = what_unembedding_reads(model, adapter, stream)
        found = column(s, BATCH)
    tokens = TOKENS.expand(2, -1)
    torch.testing.assert_close(token_logits(model, adapter, read, tokens), want)
    torch.testing.assert_close(found.logits(found.final, tokens), want)
    rows = torch.arange(2)
    with torch.no_grad():
        torch.testing.assert_close(found.logits(found.direct(0, rows, 0 * stream), tokens), want)
        again = found.run(0, rows, lambda n: found.attention[rows, n])
    torch.testing.assert_close(found.logits(again, tokens), want)


@pytest.mark.parametrize("bias_too", [False, True])
def test_a_multiplier_that_no_configuration_names_is_measured(bias_too: bool) -> None:
    """Falcon-H1's `lm_head_multiplier` stands behind the unembedding with its bias; elsewhere the bias comes after."""
    model: Any = make_model("phi").double()
    bias = model.lm_head.bias

    def scaled(module: Any, args: Any, output: Any) -> Any:
        output.logits = 0.37 * output.logits if bias_too else 0.37 * (output.logits - bias) + bias
        return output

    model.register_forward_hook(scaled)
    adapter = detect(model)
    assert adapter.logit_scale == pytest.approx(0.37, rel=1e-9)
    assert adapter.logit_bias_scale == (adapter.logit_scale if bias_too else 1.0)


def test_logits_of_another_form_are_refused_one_by_one_and_the_model_is_not() -> None:
    model: Any = make_model("llama")

    def bent(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits.sin()
        return output

    model.register_forward_hook(bent)
    adapter = detect(model)
    assert adapter.no_logits
    with pytest.raises(SiteUnavailable, match="Logits of single tokens cannot be made"):
        token_logits(model, adapter, torch.zeros(1, 32), torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize("form", ["granite", "minicpm3, before the unembedding", "gemma2"])
def test_the_lens_of_conflicts_ends_at_the_model_s_own_difference(form: str) -> None:
    from types import SimpleNamespace

    from editlab.probes.conflicts.flow import _lens

    kind, settings, _, _ = FORMS[form]
    model = double(kind, settings | {"vocab_size": len(make_tokenizer())})
    lm = LM(model, make_tokenizer())
    tokens = torch.tensor([[3, 50], [7, 11]])
    prompts: Any = SimpleNamespace(n=2, batches=[([0, 1], BATCH)])
    found = torch.from_numpy(_lens(lm, prompts, tokens))
    logits = logits_of(lm.model)[:, -1].gather(1, tokens)
    torch.testing.assert_close(found[:, -1, 1], (logits[:, 0] - logits[:, 1]).double(), rtol=1e-6, atol=1e-6)
    from editlab.probes.prompts.logit_lens import logits_by_layer

    texts = ["the thing", "a thing"]
    lens = logits_by_layer(lm, texts)
    batch = lm.encode(texts)
    torch.testing.assert_close(lens[-1].double(), lm.forward(batch, batch.last), rtol=1e-5, atol=1e-5)


def test_what_a_component_writes_is_scored_in_the_model_s_own_logits() -> None:
    from editlab.probes.channels.factors import factorise
    from editlab.probes.channels.parts import Part
    from editlab.probes.channels.readout import read_out

    scores = []
    for scaling in (1.0, 8.0):
        model = build("granite", LLAMA | {"vocab_size": len(make_tokenizer()), "logits_scaling": scaling})
        lm = LM(model, make_tokenizer())
        scores.append(dict(read_out(lm, factorise(lm), Part(1, 2, 0)).tokens["writes +"]))
    assert list(scores[0]) == list(scores[1])
    assert all(scores[1][token] == pytest.approx(scores[0][token] / 8, rel=1e-5) for token in scores[0])


@pytest.mark.parametrize("estimand", ["total", "direct", "path"])
def test_path_patching_of_a_scaled_model_is_in_its_own_logits(estimand: Any) -> None:
    """MiniCPM-3 divides between the norm and the unembedding; a head replaced by itself leaves what there was."""
    from types import SimpleNamespace

    from editlab.probes.conflicts.path_patching import Clean

    model = double("minicpm3", MINICPM | {"vocab_size": len(make_tokenizer())})
    lm = LM(model, make_tokenizer())
    items: Any = [SimpleNamespace(ids=row.tolist(), tok_mem=3, tok_ctx=50) for row in BATCH.ids]
    clean = Clean(lm, items)
    logits = logits_of(lm.model)[:, -1]
    torch.testing.assert_close(clean.difference, logits[:, 3] - logits[:, 50])
    wanted = torch.ones(3, 4, dtype=torch.bool)
    assert clean.scores(clean.column.z, estimand, wanted).abs().max() < 1e-10
    assert clean.scores(0 * clean.column.z, estimand, wanted).abs().max() > 1e-4


# --- norms of queries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("stablelm", {"qk_layernorm": True}),
        ("cohere", {"use_qk_norm": True}),
        ("qwen3", {"head_dim": 8}),
        ("olmo2", {}),
    ],
)
def test_queries_and_keys_fold_through_norms_of_every_kind(kind: str, settings: dict[str, Any]) -> None:
    """At position 0, where rotations are none, folded queries and keys point where the model's own do."""
    from editlab.probes.channels.weights import check, layer_heads

    model = double(kind, LLAMA | settings | {"vocab_size": len(make_tokenizer())})
    lm = LM(model, make_tokenizer())
    if kind == "stablelm":
        for name, p in model.named_parameters():
            if "_layernorm.norms" in name and name.endswith("bias"):
                p.zero_()  # added after a division that scores cannot know
    assert check(lm) < 1e-5
    seen = lm.capture(BATCH, [("resid_pre", 1), ("q_rot", 1), ("k_rot", 1)])
    heads = layer_heads(lm, 1, torch.float64)
    x = seen["resid_pre", 1][:, 0]
    x = heads.fold.scaled(x) if lm.adapter.layers[1].attn_norm is not None else x
    for site, w, b in (("q_rot", heads.q, heads.b_q), ("k_rot", heads.k, heads.b_k)):
        assert lm.adapter.layers[1].q_norm is not None
        found, own = torch.einsum("bd,hde->bhe", x, w) + b, seen[site, 1][:, :, 0]
        torch.testing.assert_close(torch.cosine_similarity(found, own, dim=-1), torch.ones(found.shape[:2]).double())


def test_a_norm_that_takes_no_vectors_is_refused_in_words() -> None:
    from editlab.probes.channels.weights import fold_of

    model: Any = make_lm("llama").model
    with pytest.raises(ModelError, match="neither an RMSNorm nor a LayerNorm"):
        fold_of(model, "model.layers.0.self_attn.q_proj", 7, torch.float32)
