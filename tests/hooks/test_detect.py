"""Detection beyond the named families: what it finds by structure, what it refuses, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES, GPT, LLAMA, MHA, SMALL, make_model
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformers import AutoConfig, AutoModelForCausalLM

from editlab.errors import AdapterError, SiteUnavailable
from editlab.hooks.batch import pad_rows
from editlab.hooks.detect import detect
from editlab.hooks.session import Session

ROWS = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17]]
OTHER = [[30, 31, 32, 33, 34, 35, 36], [37, 38, 39], [40, 41, 42, 43, 44]]
FALCON = FAMILIES["falcon"]

# No line of editlab knows these; the third item says whether q, k and v can be told apart.
UNNAMED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "phi3": ("phi3", LLAMA, True),
    "starcoder2": ("starcoder2", LLAMA, True),
    "cohere": ("cohere", LLAMA, True),
    "cohere2": ("cohere2", LLAMA, True),
    "olmo": ("olmo", LLAMA, True),
    "glm4": ("glm4", LLAMA | {"head_dim": 8}, True),
    "smollm3": ("smollm3", LLAMA, True),
    "stablelm": ("stablelm", LLAMA, True),
    "stablelm, parallel": ("stablelm", LLAMA | {"use_parallel_residual": True}, True),
    "nemotron": ("nemotron", LLAMA, True),
    "gpt_bigcode, one key head": ("gpt_bigcode", GPT, True),
    "gpt_bigcode, all key heads": ("gpt_bigcode", GPT | {"multi_query": False}, True),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]]}
        | SMALL,
        True,
    ),
    "gpt_neox, sequential": ("gpt_neox", MHA | {"use_parallel_residual": False}, True),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, **SMALL}, True),
    "persimmon": ("persimmon", MHA, False),
    "codegen": ("codegen", GPT | {"rotary_dim": 4}, False),
    "granite without multiplier": ("granite", LLAMA, True),
    "falcon, one key head": ("falcon", FALCON | {"multi_query": True}, True),
    "falcon, all key heads": ("falcon", FALCON | {"multi_query": False}, True),
    "falcon, alibi": ("falcon", FALCON | {"alibi": True}, True),
    "falcon, sequential": ("falcon", FALCON | {"parallel_attn": False}, True),
    "falcon, new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 4}, True),
    "falcon, new and grouped": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, False),
    "mistral, sliding window": ("mistral", LLAMA | {"sliding_window": 4}, True),
}

# Configuration, and the words that say what was looked for.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": (
        LLAMA | {"num_local_experts": 4},
        r"one MLP were looked for; found .*self_attn.o_proj.* others none. Mixtures of experts",
    ),
    "qwen3_moe": (
        LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "Mixtures of experts are not supported",
    ),
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, **SMALL},
        "keeps no key-value cache, so its heads cannot be told",
    ),
    "granite": (
        LLAMA | {"residual_multiplier": 0.5},
        r"resid_pre \+ attn_out \+ mlp_out should equal resid_post; the relative error is \d",
    ),
    "opt": (FAMILIES["opt"] | {"do_layer_norm_before": False}, "should equal resid_post; the relative error is"),
    "deepseek_v3": (
        LLAMA
        | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        | {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
        | {"moe_intermediate_size": 16, "first_k_dense_replace": 0},
        "should equal resid_post; the relative error is",
    ),
}


def build(kind: str, settings: dict[str, Any]) -> Any:
    """A random model whose weights are large enough for attention and MLPs to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=1.5 / p.shape[-1] ** 0.5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


def hooks_of(model: nn.Module) -> list[tuple[str, str]]:
    """Hooks and replaced forwards by module; those that transformers installs for good are not counted."""
    found = []
    for name, module in model.named_modules():
        for slot in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = getattr(module, slot).values()
            found += [(name, slot) for hook in hooks if not str(hook.__module__).startswith("transformers")]
        if "forward" in vars(module):
            found.append((name, "forward"))
    return found


@pytest.mark.parametrize("case", UNNAMED)
def test_families_that_no_code_names_are_found_by_structure(case: str) -> None:
    kind, settings, tells_heads = UNNAMED[case]
    model = build(kind, settings)
    adapter = detect(model)
    assert (adapter.n_layers, adapter.n_heads, adapter.head_dim, adapter.d_model) == (3, 4, 8, 32)
    assert adapter.residual_error <= 1e-6
    batch, other = pad_rows(ROWS, pivots=[2, 1, 3]), pad_rows(OTHER, pivots=[2, 1, 3])
    real = batch.mask.bool()
    with Session(model, adapter) as s, torch.no_grad():
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            s.capture(site)
        got = s.run(batch)
        for layer in range(3):
            parts = got["resid_pre", layer] + got["attn_out", layer] + got["mlp_out", layer]
            assert (parts - got["resid_post", layer])[real].abs().max() <= 5e-6
    with Session(model, adapter) as s, torch.no_grad():
        for cut in (0, 3):
            inside = s.run(s.cone(batch, 1, cut)).logits
            error = (inside - got.logits[:, cut:])[real[:, cut:]].abs().max()
            assert error <= 3e-6 * got.logits[real].abs().max()
    with Session(model, adapter) as s, torch.no_grad():
        if not tells_heads:
            with pytest.raises(SiteUnavailable, match="layout was not recognised"):
                s.capture("q", 1)
            return
        for site in ("q", "k", "v", "z"):
            s.capture(site, 1)
        theirs = s.run(other, read=None)
        for site in ("q", "k", "v"):
            s.patch(site, 1, theirs[site, 1])
        assert (s.run(batch, read=None)["z", 1] - theirs["z", 1])[real].abs().max() <= 5e-6


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_and_the_message_says_what_was_looked_for(kind: str) -> None:
    settings, words = REFUSED[kind]
    model = build(kind, settings)
    with pytest.raises(AdapterError, match=words) as caught:
        detect(model)
    assert type(model).__name__ in caught.value.what
    assert "ModelAdapter" in caught.value.fix
    assert hooks_of(model) == []


@pytest.mark.parametrize("n_layers", [2, 3])
def test_a_stream_that_jumps_over_layers_is_refused(n_layers: int) -> None:
    """Every block satisfies the identity here; only starting at layer 1 shows that block 0 acts elsewhere too."""
    model: Any = make_model("llama", num_hidden_layers=n_layers)
    kept: list[torch.Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda m, args, output: kept.append(output))
    model.model.norm.register_forward_pre_hook(lambda m, args: (args[0] + (kept.pop() if kept else 0),))
    with pytest.raises(AdapterError, match="starting at layer 1 should give the same logits; the relative error is"):
        detect(model)


def test_a_model_without_blocks_is_refused() -> None:
    model: Any = make_model("llama")
    model.model.layers = nn.ModuleList(model.model.layers[:2])
    with pytest.raises(AdapterError, match="no ModuleList of 3 blocks"):
        detect(model)


@pytest.mark.parametrize("training", [False, True])
def test_detection_leaves_the_model_as_it_was(family: str, training: bool) -> None:
    model = make_model(family).train(training)
    modes = [m.training for m in model.modules()]
    weights = {n: p.clone() for n, p in model.named_parameters()}
    random = torch.get_rng_state()
    adapter = detect(model)
    assert hooks_of(model) == []
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert detect(model) == adapter  # and nothing that a second look would trip over


def test_single_parts_keep_their_own_training_mode() -> None:
    model = make_model("gpt2").eval()
    model.transformer.h[1].train()
    detect(model)
    assert [block.training for block in model.transformer.h] == [False, True, False]


def test_half_precision_gives_the_same_structure(family: str) -> None:
    assert detect(make_model(family, dtype=torch.bfloat16)) == detect(make_model(family))


def test_one_layer_is_enough(family: str) -> None:
    key = next(k for k in ("num_hidden_layers", "n_layer") if k in FAMILIES[family])
    adapter = detect(make_model(family, **{key: 1}))
    assert adapter.n_layers == 1
    assert adapter.layers[0] == detect(make_model(family)).layers[0]


def test_tied_embeddings_are_noticed() -> None:
    assert detect(make_model("llama", tie_word_embeddings=True)).is_tied
    assert not detect(make_model("llama")).is_tied


def test_paths_are_those_of_transformer_lens(family: str) -> None:
    """Its adapters are written by hand, one per architecture, so they are an independent source."""
    model: Any = make_model(family)
    adapter = detect(model)
    config = build_bridge_config_from_hf(model.config, type(model).__name__, "tiny", torch.float32)
    theirs = ArchitectureAdapterFactory.select_architecture_adapter(config).component_mapping
    blocks = theirs["blocks"]
    attention, mlp = blocks.submodules["attn"], blocks.submodules["mlp"]
    names = [adapter.embed, adapter.final_norm, adapter.unembed]
    assert names == [theirs[part].name for part in ("embed", "ln_final", "unembed")]
    for i, paths in enumerate(adapter.layers):
        block = f"{blocks.name}.{i}"
        inside = f"{block}.{mlp.name}" if mlp.name else block  # OPT's MLP is no module of its own
        gate = mlp.submodules.get("gate")
        assert (paths.block, paths.attn) == (block, f"{block}.{attention.name}")
        assert paths.o == f"{block}.{attention.name}.{attention.submodules['o'].name}"
        assert paths.up == f"{inside}.{mlp.submodules['in'].name}"
        assert paths.down == f"{inside}.{mlp.submodules['out'].name}"
        assert paths.gate == (f"{inside}.{gate.name}" if gate else None)
