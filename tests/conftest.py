"""Tiny random models of every supported family, and the default checkpoint for tests marked `model`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from editlab.state.edit import Delta

pytest_plugins = ["cli_fixtures", "app_fixtures", "pretended_device"]

SMALL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **SMALL,
}
GPT = {"n_embd": 32, "n_inner": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, **SMALL}
MHA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, **SMALL}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neox": MHA,
    "llama": LLAMA,
    "mistral": LLAMA | {"sliding_window": None},
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8},
    "gemma2": LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": MHA,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        **SMALL,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, **SMALL},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, **SMALL},
    "olmo2": LLAMA,
}


def dense(delta: Delta) -> Tensor:
    """The change itself, in float64, of the parameter's shape; of a gain, what is multiplied by."""
    return delta.apply_to(torch.full(delta.shape, float(delta.is_gain), dtype=torch.float64))


def make_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A random model of `family` with weights large enough that attention and MLPs matter."""
    config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * (1.0 if "emb" in name or "wte" in name else 1.5) / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    return make_model


@pytest.fixture(autouse=True)
def same_main() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`, which processes that are started later would run again."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
