"""Presets: each is valid for its methods, and stands under what the user says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny_lm import make_lm

from editlab import registry
from editlab.config import build
from editlab.edits.presets import Preset, preset, presets, usual_layer, with_preset
from editlab.errors import ConfigError

ASKED = ("GPT-2 small", "GPT-2 medium", "GPT-2 large", "GPT-2 XL", "GPT-J", "Llama-2", "Llama-3", "Mistral", "Qwen2.5",
         "Qwen3", "Gemma-2", "SmolLM2", "factworld")  # fmt: skip


def adapter_of(match: dict[str, Any]) -> Any:
    return replace(make_lm("llama").adapter, **{k: v for k, v in match.items() if k != "n_layers"})


@pytest.mark.parametrize("found", presets(), ids=lambda p: p.model)
def test_every_preset_is_valid(found: Preset) -> None:
    assert found.source and found.methods and {"family", "n_layers", "d_model"} <= set(found.match)
    for method, settings in [*found.methods.items(), *found.published.items()]:
        built = build(registry.get(method).Config, settings, method)
        layers = getattr(built, "layers", None) or ([built.layer] if getattr(built, "layer", None) is not None else [])
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


PUBLISHED = {  # layers of the released files
    ("GPT-2 medium", "rome-legacy"): 8,
    ("GPT-2 large", "rome-legacy"): 12,
    ("GPT-2 XL", "rome-legacy"): 17,
    ("GPT-J-6B", "rome-legacy"): 5,
    ("GPT-NeoX-20B", "rome-legacy"): 15,
    ("Llama-2-7B", "wise"): 27,
    ("Llama-2-7B", "grace"): 27,
    ("Llama-3-8B", "wise"): 29,
    ("GPT-J-6B", "wise"): 21,
}


def named(model: str) -> Any:
    """An adapter that the preset of this name fits."""
    (found,) = (p for p in presets() if p.model == model)
    return replace(make_lm("llama").adapter, layers=(None,) * found.match["n_layers"],
                   **{k: v for k, v in found.match.items() if k != "n_layers"})  # fmt: skip


@pytest.mark.parametrize(("model", "method"), PUBLISHED)
def test_the_released_layers_stand_where_nothing_else_is_said(model: str, method: str) -> None:
    for settings in ({}, {"preset": "published"}):
        assert with_preset(named(model), method, settings)["layer"] == PUBLISHED[model, method]


def test_published_settings_are_the_sources_and_the_users_stand_above_them() -> None:
    adapter = named("GPT-2 XL")
    config = build(
        registry.get("rome").Config, with_preset(adapter, "rome", {"preset": "published", "steps": 7}), "rome"
    )
    assert (config.stop_loss, config.clamp, config.relative_to, config.forms) == (0.05, 4, "output", "rome")
    assert config.contexts == {5: 10, 10: 10} and config.steps == 7 and config.layer == 17
    assert "stop_loss" not in with_preset(adapter, "rome", {"preset": "tuned"})
    for model, mu, steps in (("GPT-2 XL", 10, 4), ("Llama-2-7B", 10, 3), ("Llama-3-8B", 20, 2)):
        for settings in ({}, {"preset": "published"}):
            below = with_preset(named(model), "memit-seq", settings)
            assert (below["mu"], below["steps_on_top"]) == (mu, steps)


def test_published_settings_that_there_are_none_of_are_refused_with_the_models_that_have_some() -> None:
    with pytest.raises(ConfigError, match=r"no published settings of rome .* GPT-2 XL"):
        with_preset(make_lm("llama").adapter, "rome", {"preset": "published"})
    with pytest.raises(ConfigError, match="'preset' = 'best'"):
        make_lm("llama").edit({"prompt": "A {} is", "subject": "b", "target_new": "c"}, preset="best")


def test_the_users_place_drops_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_lm("llama").adapter
    mine = Preset("mine", {"family": adapter.family}, "here", {"memit": {"layers": [0, 1], "lr": 0.25}})
    monkeypatch.setattr("editlab.edits.presets.presets", lambda: (mine,))
    assert with_preset(adapter, "memit", {"layer": 2}) == {"layer": 2, "lr": 0.25}
    assert with_preset(adapter, "memit", {"layers": [2]}) == {"layers": [2], "lr": 0.25}
    assert make_lm("llama").adapter.family == adapter.family
