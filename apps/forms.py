"""Form fields drawn from a method's settings: one widget per field, with its help, default and range.

Only what differs from the default is returned, so that a method's own defaults and a model's preset stay in force and a
run records what was really asked for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import streamlit as st
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from editlab.config import settings_of
from editlab.edits.presets import presets
from editlab.errors import ConfigError

USUAL = 3  # fields that are in sight at once
PLACES = ("layer", "layers")  # where to edit is asked in one field, whatever the method calls it


def usual_fields(method: str, model: type[BaseModel]) -> list[str]:
    """The settings that presets set for this method on some model, else its first few; where to edit left out."""
    tuned = {name for preset in presets() for name in preset.methods.get(method, {})}
    names = [name for name in model.model_fields if name not in PLACES]
    return ([name for name in names if name in tuned] or names)[:USUAL]


def fields(
    model: type[BaseModel], names: Collection[str], defaults: Mapping[str, Any], prefix: str, *, columns: int = USUAL
) -> dict[str, Any]:
    """Draw the fields called `names` in columns, and return those that were changed.

    Args:
        defaults: values that stand in place of the model's own defaults (a preset).
        prefix: of the widgets' keys.

    Raises:
        ConfigError: a text cannot be read as a value.
    """
    rows = {row["name"]: row for row in settings_of(model)}
    changed = {}
    places: list[Any] = []
    for i, name in enumerate(n for n in model.model_fields if n in names):
        if i % columns == 0:
            places = st.columns(columns)
        default = defaults.get(name, rows[name]["default"])
        with places[i % columns]:
            value = _widget(name, model.model_fields[name], default, help_of(rows[name]), f"{prefix}{name}")
        if value != default:
            changed[name] = value
    return changed


def help_of(row: Mapping[str, Any]) -> str:
    """A setting's description, range and default as a help text."""
    parts = [row["description"], row["range"] and f"Range: {row['range']}.", f"Default: {as_text(row['default'])}."]
    return " ".join(part for part in parts if part)


def as_text(value: Any) -> str:
    """A value as it is typed into a text field."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def read_value(name: str, text: str) -> Any:
    """What was typed into a text field, read as YAML; several numbers may go without brackets.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        value = yaml.safe_load(f"[{text}]" if "," in text and text.strip()[0] not in "[{" else text)
    except yaml.YAMLError:
        raise ConfigError(
            f"'{text}' cannot be read as a value of '{name}'.", "Write it as in a configuration file."
        ) from None
    return value


def read_layers(text: str) -> tuple[int, ...] | None:
    """Layers as typed ("5", "3, 5, 7", "3-5"); None if left empty.

    Raises:
        ConfigError: it is no list of layers.
    """
    if not text.strip():
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"'{text}' is no list of layers.", "Write numbers, as in 5, or 3, 5, 7, or 3-5.")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def place_settings(model: type[BaseModel], layers: tuple[int, ...] | None) -> dict[str, Any]:
    """The setting that says where to edit, under the name that this method has for it.

    Raises:
        ConfigError: the method takes one layer, or none.
    """
    if layers is None:
        return {}
    if "layers" in model.model_fields:
        return {"layers": layers}
    if "layer" not in model.model_fields:
        raise ConfigError("This method does not take a layer.", "Leave the layers empty.")
    if len(layers) != 1:
        raise ConfigError(f"This method edits one layer, and {len(layers)} were given.", "Give one layer.")
    return {"layer": layers[0]}


def _widget(name: str, field: FieldInfo, default: Any, help: str, key: str) -> Any:
    kind, is_optional = _kind(field.annotation)
    if get_origin(kind) is Literal:
        options = list(get_args(kind))
        return st.selectbox(name, options, index=options.index(default), key=key, help=help)
    if kind is bool:
        return st.toggle(name, value=bool(default), key=key, help=help)
    if kind in (int, float):
        return _number(name, kind, field, default, help, key)
    if kind is str:
        return st.text_input(name, value=default, key=key, help=help)
    shown = "" if default is None else as_text(default)
    text = st.text_input(name, value=shown, key=key, help=help, placeholder="none" if is_optional else None)
    return default if text == shown else read_value(name, text or "")


def _number(name: str, kind: type, field: FieldInfo, default: Any, help: str, key: str) -> Any:
    low = next((getattr(m, n) for m in field.metadata for n in ("ge", "gt") if hasattr(m, n)), None)
    high = next((getattr(m, n) for m in field.metadata for n in ("le", "lt") if hasattr(m, n)), None)
    if kind is int:
        return st.number_input(name, low, high, default, 1, key=key, help=help, placeholder="by model")
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    value = None if default is None else float(default)
    # A tenth of the default's size: 0.1 for 1.0, 0.0001 for 0.003.
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 0.01
    return st.number_input(name, low, high, value, step, "%g", key=key, help=help, placeholder="none")


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of a field without None, and whether None was there."""
    if get_origin(annotation) not in (UnionType, Union):
        return annotation, False
    kinds = [k for k in get_args(annotation) if k is not type(None)]
    return (kinds[0] if len(kinds) == 1 else annotation), True
