"""Every causal language model of transformers that can be made tiny is supported, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_model
from test_detect import hooks_of
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from editlab.errors import AdapterError, SiteUnavailable
from editlab.hooks.batch import pad_rows
from editlab.hooks.detect import detect
from editlab.hooks.session import Session

# By the names that configurations have for them; each takes those that it knows.
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim", "attention_hidden_size")
INNER = (
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "ffn_hidden_size",
    "d_ff",
    "decoder_ffn_dim",
    "intermediate_size_mlp",
)
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SIZES: dict[str, Any] = (
    dict.fromkeys(WIDTHS, 32)
    | dict.fromkeys(INNER, 48)
    | dict.fromkeys(LAYERS, 3)
    | dict.fromkeys(HEADS, 4)
    | dict.fromkeys(POSITIONS, 64)
    | dict.fromkeys(EXPERTS, 4)
    | {"num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "global_head_dim": 8, "query_pre_attn_scalar": 8}
    | {"vocab_size": 97, "vocab_size_per_layer_input": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "moe_k": 2, "moe_topk": 2}
    | {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 6}
    | {"first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16}
    | {"state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": None}
    | {"mamba_expand": 2, "mamba_n_groups": 1, "ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 16}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"n_groups": 1, "chunk_size": 16, "conv_kernel": 4, "lru_width": 32, "attention_window_size": 16}
    | {"sliding_window": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0}
    | {"rotary_dim": 4, "attention_head_size": 8, "embedding_size": 32, "n_shared_experts": 1, "num_shared_experts": 1}
)
LATENT = {"num_key_value_heads": 4}
EXTRA: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT, "deepseek_v3": LATENT, "minicpm3": LATENT, "glm4_moe_lite": LATENT, "youtu": LATENT,
    "longcat_flash": LATENT, "deepseek_v32": LATENT, "glm_moe_dsa": LATENT, "axk1": LATENT, "axk2": LATENT,
    "sarvam_mla": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "zamba2": {"layer_types": ["mamba", "hybrid", "mamba"]},
}  # fmt: skip
# Those that ended in a traceback once, of other structure than most, or with something between head and stream.
EVERY_DAY = {
    "aria_text", "bamba", "bitnet", "cohere2", "ctrl", "deepseek_v3", "deepseek_v4", "diffllama", "dory", "falcon_h1",
    "gemma3n_text", "gemma4_text", "gpt_oss", "granite_swa", "granitemoehybrid", "lfm2", "llama4_text", "mamba",
    "minicpm3", "modernbert-decoder", "moshi", "mpt", "nanochat", "qwen3_next", "stablelm", "xglm", "xmod",
}  # fmt: skip


def tiny_of(kind: str) -> Any:
    """A small random model, or a skipped test with the reason why there is none."""
    try:
        settings = SIZES | EXTRA.get(kind, {})
        known = CONFIG_MAPPING[kind]().to_dict()
        cls = CONFIG_MAPPING[kind]
        names = set(known) | set(cls.attribute_map)
        config = cls(
            **{n: v for n, v in settings.items() if n in names and not isinstance(getattr(cls, n, 0), property)}
        )
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > 8e6:
            pytest.skip(f"it has {size / 1e6:.0f} million parameters at the least")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        pytest.skip(f"no tiny one: {type(error).__name__}: {str(error)[:80]}")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=1.5 / p.shape[-1] ** 0.5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in EVERY_DAY else pytest.mark.model)
        for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ],
)
def test_a_model_is_supported_or_refused_in_a_sentence(kind: str) -> None:
    model = tiny_of(kind)
    try:
        adapter = detect(model)
    except AdapterError as error:
        assert error.what.endswith(".") and error.fix
        assert hooks_of(model) == []
        return
    assert hooks_of(model) == []
    ids = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    with Session(model, adapter) as s, torch.no_grad():
        plain = s.run(pad_rows(ids)).logits
        for paths in adapter.layers:
            assert paths.no_heads == "" or "head" in paths.no_heads
        # What may be written is written back, and nothing changes.
        sites = ["resid_mid"] * (not adapter.is_parallel) + ["attn_out", "mlp_key", "mlp_value"]
        sites += [site for site in ("q", "k", "v") if getattr(adapter.layers[1], site) is not None]
        sites += ["z"] * (not adapter.layers[1].no_heads)
        for site in (*sites, "pattern", "scores"):
            try:
                wish = s.patch(site, 1, lambda x: x.clone())
            except SiteUnavailable:
                assert site in ("pattern", "scores")
                continue
            torch.testing.assert_close(s.run(pad_rows(ids)).logits, plain, rtol=1e-4, atol=1e-4)
            s.remove(wish)


@pytest.mark.parametrize(
    "kind", ["modernbert-decoder", "stablelm", "minicpm3", "deepseek_v3", "granitemoehybrid", "dory", "granite_swa"]
)
def test_what_once_ended_in_a_traceback_can_be_made_tiny(kind: str) -> None:
    try:
        assert kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or tiny_of(kind) is not None
    except pytest.skip.Exception as error:
        pytest.fail(f"{kind} is tested no more: {error}")


def test_a_cache_that_a_window_cut_does_not_matter() -> None:
    """With a window of two tokens the cache holds fewer columns than the projections give."""
    model = tiny_of("modernbert-decoder")
    assert model.config.sliding_window < 3
    adapter = detect(model)
    assert None not in (adapter.layers[1].q, adapter.layers[1].k, adapter.layers[1].v)


def test_a_model_that_overflows_in_float16_is_told_so() -> None:
    model: Any = make_model("llama")
    model.model.layers[1].mlp.down_proj.weight *= 1e6
    detect(model)
    with pytest.raises(
        AdapterError, match=r"output of 'model.layers.1.mlp.down_proj' is not finite in float16"
    ) as error:
        detect(model.half())
    assert error.value.fix == "Load the model in bfloat16 or float32."
    broken: Any = make_model("llama")
    broken.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"'model.layers.2.mlp.up_proj' is not finite in float32") as error:
        detect(broken)
    assert "Check the weights" in error.value.fix


def test_a_model_whose_forward_fails_is_refused_with_the_cause() -> None:
    model: Any = make_model("llama")
    model.model.layers[1].mlp.forward = lambda x: x @ torch.zeros(3, 3)
    with pytest.raises(AdapterError, match=r"fails in a plain forward pass of 6 tokens \(RuntimeError"):
        detect(model)


@pytest.mark.parametrize("kind", ["deepseek_v4", "gemma3n_text"])
def test_parallel_streams_are_called_that(kind: str) -> None:
    with pytest.raises(AdapterError, match=r"4 dimensions .* not one residual stream") as error:
        detect(tiny_of(kind))
    assert "parallel streams" in error.value.fix
