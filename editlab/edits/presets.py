"""Presets: the settings with which a method is known to work on a model, each with its source.

The setting `preset` says which stand below those that a user gives: "tuned" for this code, or "published", those of
the method's released files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from editlab.edits.settings import default_layer
from editlab.errors import ConfigError
from editlab.hooks.adapter import ModelAdapter

# Two ways to say where to edit; who says one does not mean the preset's other.
_PLACES = {"layer", "layers"}


@dataclass(frozen=True)
class Preset:
    """The settings of one model.

    Attributes:
        match: attributes of the adapter that make out the model.
        methods: settings by method, tuned for this code. published: as the source's files have them.
    """

    model: str
    match: Mapping[str, Any]
    source: str
    methods: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def fits(self, adapter: ModelAdapter) -> bool:
        """Whether the model is this one."""
        return all(getattr(adapter, name) == value for name, value in self.match.items())


@cache
def presets() -> tuple[Preset, ...]:
    """All presets."""
    text = (files("editlab.edits") / "presets.yaml").read_text(encoding="utf-8")
    return tuple(Preset(**row) for row in yaml.safe_load(text))


def preset(adapter: ModelAdapter) -> Preset | None:
    """The preset of a model, if there is one."""
    return next((p for p in presets() if p.fits(adapter)), None)


def with_preset(adapter: ModelAdapter, method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and under them those of the model's preset; the published ones where none are tuned.

    Raises:
        ConfigError: the published settings are asked for, and there are none for this model.
    """
    found = preset(adapter)
    published = found.published.get(method) if found else None
    tuned = found.methods.get(method) if found else None
    if settings.get("preset") == "published":
        if published is None:
            known = [p.model for p in presets() if method in p.published]
            raise ConfigError(
                f"There are no published settings of {method} for this model.",
                f"There are for {', '.join(known)}; or leave 'preset' out." if known else "Leave 'preset' out.",
            )
        tuned = None
    below = dict(tuned if tuned is not None else published or {})
    if _PLACES & settings.keys():
        below = {name: value for name, value in below.items() if name not in _PLACES}
    return below | dict(settings)


def usual_layer(adapter: ModelAdapter) -> int:
    """The layer that ROME edits unless told otherwise."""
    return int(with_preset(adapter, "rome", {}).get("layer", default_layer(adapter)))
