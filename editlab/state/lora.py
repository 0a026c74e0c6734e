"""Edits as a LoRA adapter in PEFT's file format.

A low-rank delta is already a product B A, so the adapter is the edit but for what float32 factors round: rank = the sum
of the deltas' ranks on a parameter, alpha = rank, so that PEFT's scale is one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editlab.errors import ConfigError
from editlab.state.files import filled_or_removed, write_json, write_tensors
from editlab.state.ledger import Ledger


def save_lora(folder: Path, ledger: Ledger, model: nn.Module, base_name: str) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ConfigError: no edit is active, or one is not low-rank. WriteFailed: the system does not let it be written.
    """
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for entry in ledger.active:
        if entry.edit.routing is not None:
            raise ConfigError(
                f"Edit {entry.id} is a side memory, which a LoRA cannot hold: it answers some prompts and not others.",
                "Export to hf or delta.",
            )
        for name, delta in entry.edit.deltas.items():
            if delta.is_gain:
                raise ConfigError(
                    f"Edit {entry.id} prunes heads, which a LoRA cannot hold: it can only add.",
                    "Export to hf or delta.",
                )
            if delta.left is None or delta.right is None:
                raise ConfigError(f"Edit {entry.id} is not low-rank and cannot be a LoRA.", "Export to hf or delta.")
            factors.setdefault(name, []).append((delta.left, delta.right))
    if not factors:
        raise ConfigError("No edit is active, so there is nothing to export.")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = False
    for name, parts in factors.items():
        path = name.removesuffix(".weight")
        left = torch.cat([p[0].float() for p in parts], dim=1)  # (rows, r) of the stored tensor
        right = torch.cat([p[1].float() for p in parts], dim=0)  # (r, cols)
        if isinstance(model.get_submodule(path), Conv1D):
            transposed = True
            left, right = right.T, left.T
        ranks[path] = right.shape[0]
        tensors[f"base_model.model.{path}.lora_A.weight"] = right
        tensors[f"base_model.model.{path}.lora_B.weight"] = left
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
    with filled_or_removed(folder):
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "adapter_config.json", config)
    return folder
