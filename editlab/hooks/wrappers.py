"""What a model is wrapped in, and what its weights are stored as: what can be taken off, and what must be refused.

A parallel or compiled wrapper holds the model itself and is taken off. Adapters and shards are refused by name: an edit
of the weights under an adapter is lost where only the adapter is saved, and no process holds a whole shard.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from editlab.errors import ModelError

_PARALLEL = ("DataParallel", "DistributedDataParallel")
_SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")
_PACKED = ("qweight", "W_q", "weight_packed")  # GPTQ and AWQ, HQQ, compressed-tensors


def unwrapped(model: Any) -> nn.Module:
    """The Hugging Face model itself, out of what runs it on several devices or compiles it.

    Raises:
        ModelError: it carries adapters, is sharded over processes, or is no such model.
    """
    while True:
        kind = type(model).__name__
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod
        elif kind in _PARALLEL:
            model = model.module
        else:
            break
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    if kind in _SHARDED or kind.startswith("FSDP") or any(type(p.data).__name__ == "DTensor" for p in parameters):
        raise ModelError(
            f"This model is sharded over processes ({kind}), and none of them holds its weights.",
            "Load it in one process; a device map spreads it over several GPUs.",
        )
    _refuse_adapters(model)
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not callable(getattr(config, "get_text_config", None)):
        raise ModelError(
            f"This {kind} is no Hugging Face causal language model.",
            "Hand in what AutoModelForCausalLM.from_pretrained gives, or use LM.from_pretrained(name).",
        )
    if type(model).__module__.startswith("transformer_lens."):
        raise ModelError(
            f"This model is wrapped by TransformerLens ({kind}).",
            "Hand in the Hugging Face model; lm.to_bridge() gives a wrapper that follows later edits.",
        )
    return model


def _refuse_adapters(model: Any) -> None:
    if not isinstance(model, nn.Module):
        return
    named: set[str] = set(getattr(model, "peft_config", None) or ())
    is_adapted = bool(named) or getattr(model, "_hf_peft_config_loaded", False) is True
    for module in model.modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):  # a tuner's layer around the model's own
            is_adapted = True
            for name in ("lora_A", "lora_embedding_A"):
                part: Any = getattr(module, name, None)
                named |= set(part.keys() if hasattr(part, "keys") else ())
    if is_adapted:
        which = f" ({', '.join(sorted(named))})" if named else ""
        raise ModelError(
            f"This model carries adapters{which}, and an edit of the weights under them is lost where only the adapter "
            "is saved.",
            "Merge them: model = model.merge_and_unload(), then LM(model, tokenizer).",
        )


def quantisation(model: nn.Module) -> str | None:
    """What a model's weights are quantised by, as far as it says; None if they are plain floating-point numbers."""
    if not any(_is_quantised(module) for module in model.modules()):
        return None
    settings: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    stored = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not _is_plain(p)})
    said = [str(getattr(method, "value", method))] if method is not None else []
    return ", ".join([*said, *([f"stored as {' and '.join(stored)}"] if stored else [])]) or "in packed form"


def _is_quantised(module: nn.Module) -> bool:
    if any(name in module._buffers or name in module._parameters for name in _PACKED):
        return True
    return any(p is not None and not _is_plain(p) for p in module._parameters.values())


def _is_plain(parameter: nn.Parameter) -> bool:
    is_float = parameter.is_floating_point() and parameter.element_size() >= 2 and parameter.layout == torch.strided
    packed = getattr(parameter, "quant_state", None) is not None or hasattr(parameter.data, "__tensor_flatten__")
    return is_float and not packed
