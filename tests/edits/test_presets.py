"""Presets: each is valid for its methods, and stands under what the user says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny_lm import make_lm

from editlab import registry
from editlab.config import build
from editlab.edits.presets import Preset, preset, presets, usual_layer, with_preset

ASKED = ("GPT-2 small", "GPT-2 medium", "GPT-2 large", "GPT-2 XL", "GPT-J", "Llama-2", "Llama-3", "Mistral", "Qwen2.5",
         "Qwen3", "Gemma-2", "SmolLM2", "factworld")  # fmt: skip


def adapter_of(match: dict[str, Any]) -> Any:
    return replace(make_lm("llama").adapter, **{k: v for k, v in match.items() if k != "n_layers"})


@pytest.mark.parametrize("found", presets(), ids=lambda p: p.model)
def test_every_preset_is_valid(found: Preset) -> None:
    assert found.source and found.methods and {"family", "n_layers", "d_model"} <= set(found.match)
    for method, settings in found.methods.items():
        built = build(registry.get(method).Config, settings, method)
        layers = getattr(built, "layers", None) or ([built.layer] if built.layer is not None else [])
        assert all(layer < found.match["n_layers"] for layer in layers)


def test_the_models_asked_for_have_one() -> None:
    names = " ".join(p.model for p in presets())
    assert [name for name in ASKED if name not in names] == []


def test_no_model_has_two() -> None:
    matches = [tuple(sorted(p.match.items())) for p in presets()]
    assert len(set(matches)) == len(matches)
    without_mlp = [tuple(sorted((k, v) for k, v in p.match.items() if k != "d_mlp")) for p in presets()]
    for match, short in zip(presets(), without_mlp, strict=True):
        assert without_mlp.count(short) == 1 or "d_mlp" in match.match


def test_a_model_is_known_by_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_lm("llama").adapter
    assert preset(adapter) is None and with_preset(adapter, "rome", {"lr": 1}) == {"lr": 1}
    assert usual_layer(adapter) == 0
    mine = Preset("mine", {"family": adapter.family, "n_layers": 3}, "here", {"rome": {"layer": 2, "lr": 0.25}})
    monkeypatch.setattr("editlab.edits.presets.presets", lambda: (mine,))
    assert usual_layer(adapter) == 2
    assert with_preset(adapter, "rome", {"lr": 1}) == {"layer": 2, "lr": 1}


def test_the_users_place_drops_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_lm("llama").adapter
    mine = Preset("mine", {"family": adapter.family}, "here", {"memit": {"layers": [0, 1], "lr": 0.25}})
    monkeypatch.setattr("editlab.edits.presets.presets", lambda: (mine,))
    assert with_preset(adapter, "memit", {"layer": 2}) == {"layer": 2, "lr": 0.25}
    assert with_preset(adapter, "memit", {"layers": [2]}) == {"layers": [2], "lr": 0.25}
    assert make_lm("llama").adapter.family == adapter.family
