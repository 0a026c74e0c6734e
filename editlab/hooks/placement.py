"""Where a model computes and where its weights are: on one device, or spread over several, memory and disk.

A weight that accelerate keeps off the device is a meta tensor between forward passes; its content is in a mapping that
the module's hook has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def home(model: nn.Module) -> torch.device:
    """The device that token ids go to, and that results are gathered on."""
    embed: Any = model.get_input_embeddings()  # type: ignore[operator]
    where = embed.weight.device
    if where.type != "meta":
        return where
    hook = getattr(embed, "_hf_hook", None)
    for part in (*getattr(hook, "hooks", ()), hook):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


def is_spread(model: nn.Module) -> bool:
    """Whether layers compute on different devices."""
    return len({str(d) for d in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}) > 1


def offload_maps(module: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The mappings from which accelerate loads this module's offloaded weights."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            yield weights


def stored_weight(model: nn.Module, name: str) -> Tensor:
    """The content of a parameter or buffer wherever it is; to be read only. The meta tensor where there is none."""
    path, _, local = name.rpartition(".")
    held: Tensor = getattr(model.get_submodule(path), local)
    return offloaded(model, name, held) if held.device.type == "meta" else held.detach()


def stored_bias(model: nn.Module, path: str) -> Tensor | None:
    """The content of a module's bias, if it has one."""
    has = getattr(model.get_submodule(path), "bias", None) is not None
    return stored_weight(model, f"{path}.bias") if has else None


def offloaded(model: nn.Module, name: str, held: Tensor) -> Tensor:
    """The content of the meta tensor `held`, from the nearest module around it that accelerate loads it for."""
    path, _, local = name.rpartition(".")
    parts = path.split(".") if path else []
    for depth in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        rest = ".".join([*parts[depth:], local])
        for weights in offload_maps(module):
            if rest in weights:
                return weights[rest].to(home(model))
    return held


def device_for(dtype: torch.dtype, device: torch.device) -> torch.device:
    """`device`, or the CPU where that device has no numbers of this dtype (mps has no float64)."""
    return torch.device("cpu") if device.type == "mps" and dtype == torch.float64 else device


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, on its own device if that has such numbers, else on the CPU."""
    return tensor.to(device_for(dtype, tensor.device), dtype)


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device if that has float64, else on the CPU."""
    return in_dtype(tensor, torch.float64)
