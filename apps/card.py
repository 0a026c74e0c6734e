"""What the loaded model is, in a table, and what can be done with it."""

from __future__ import annotations

from typing import Any

from editlab.edits.presets import preset
from editlab.errors import ConfigError
from editlab.lm import LM
from editlab.models.registry import entries

from . import plugins

HEADLINES = ("Layers", "Width", "Heads", "Parameters", "Memory")


def facts(lm: LM, parity: float) -> dict[str, Any]:
    """The model card; `parity` is the largest difference of a logit to transformers without hooks."""
    a = lm.adapter
    parameters = list(lm.model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    found = preset(a)
    return {
        "Name": lm.name,
        "Architecture": a.family,
        "Layers": a.n_layers,
        "Width": a.d_model,
        "Heads": f"{a.n_heads}" if a.n_heads == a.n_kv_heads else f"{a.n_heads} on {a.n_kv_heads} KV",
        "Parameters": in_short(sum(p.numel() for p in parameters)),
        "Memory": f"{in_short(size)}B",
        "Head width": a.head_dim,
        "MLP": f"{'gated' if a.layers[0].gate else 'plain'}, {a.d_mlp} wide",
        "Blocks": "attention and MLP in parallel" if a.is_parallel else "attention, then MLP",
        "Vocabulary": lm.model.get_input_embeddings().weight.shape[0],
        "Embeddings": "tied" if a.is_tied else "separate",
        "Precision": str(parameters[0].dtype).removeprefix("torch."),
        "Device": str(lm.device),
        "Structure proved to": f"{a.residual_error:.1e} (residual identity)",
        "Parity": f"{parity:.1e} in a logit, to transformers",
        "Preset": f"{found.model} ({found.source})" if found else "none: the methods' own defaults",
    }


def capabilities(lm: LM) -> list[dict[str, str]]:
    """What works with this model, a "no" with its reason."""
    rows = [{"what": "locate", "works": "yes", "note": "residual, MLP, attention"}]
    tuned = preset(lm.adapter)
    for name, method in plugins.found().items():
        if isinstance(method, ConfigError):
            rows.append({"what": f"edit with {name}", "works": "no", "note": method.what})
            continue
        note = "with settings tuned for it" if tuned and name in tuned.methods else "with default settings"
        rows.append({"what": f"edit with {name}", "works": "yes", "note": note})
    chat = bool(lm.tokenizer.chat_template)
    rows.append(
        {
            "what": "chat template",
            "works": "yes" if chat else "no",
            "note": "edits use raw prompts" if chat else "the tokenizer has none",
        }
    )
    return rows


def registered() -> list[str]:
    """The checkpoints that have a name."""
    return [entry.name for entry in entries()]


def in_short(number: float) -> str:
    """A count with its unit of thousands: "135 M"."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} T"
