"""Choosing a method and its settings: any that is registered, with a form made from its `Config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from editlab.config import build
from editlab.edits.presets import with_preset
from editlab.errors import ConfigError
from editlab.lm import LM

from .. import forms, links, plugins


@dataclass(frozen=True)
class Chosen:
    """A method and the settings that differ from its preset and defaults."""

    method: str
    settings: dict[str, Any]


def pick(key: str, default: str) -> str:
    """A select box of the methods; outside of a form, because the form depends on it."""
    names = list(plugins.found())
    method = st.selectbox("Method", names, index=names.index(default), **links.bound(key))
    links.check(key, "method", method, f"there are {', '.join(names)}")
    return str(method)


def layers_field(lm: LM, method: str, key: str) -> str:
    """A text field for where to edit."""
    usual = with_preset(lm.adapter, method, {})
    preset = next((usual[name] for name in forms.PLACES if usual.get(name) is not None), None)
    text = st.text_input(
        "Layers",
        placeholder=f"by model: {forms.as_text(preset)}" if preset is not None else "by model",
        help=f"0 to {lm.adapter.n_layers - 1}; one, several as in 3, 5, or a range as in 3-5. Empty: by model.",
        **links.bound(key),
    )
    return text or ""


def settings_form(lm: LM, method: str, prefix: str, layers_key: str) -> tuple[str, dict[str, Any]]:
    """Where to edit and the usual settings in a row, the rest in a closed expander; gives layers and changed settings.

    Raises:
        ConfigError: a text cannot be read as a value, or there are no published settings to take.
    """
    model = plugins.module(method).Config
    defaults = with_preset(lm.adapter, method, {})
    usual = forms.usual_fields(method, model)
    rest = [name for name in model.model_fields if name not in (*usual, *forms.PLACES)]
    columns = st.columns([1, len(usual)] if usual else 1)
    with columns[0]:
        layers = layers_field(lm, method, layers_key)
    changed: dict[str, Any] = {}
    if usual:
        with columns[1]:
            changed |= forms.fields(model, usual, defaults, f"{prefix}.{method}.")
    if rest:
        with st.expander(f"More settings of {method}"):
            changed |= forms.fields(model, rest, defaults, f"{prefix}.{method}.", columns=4)
    if changed.get("preset") == "published":
        below = with_preset(lm.adapter, method, {"preset": "published"})
        st.caption("Published settings, below what you change: " + forms.as_text(below))
    return layers, changed


def checked(lm: LM, method: str, layers: str, changed: dict[str, Any]) -> Chosen:
    """The settings, valid for this method and model.

    Raises:
        ConfigError: a layer that the model lacks, or an invalid setting.
    """
    model = plugins.module(method).Config
    found = forms.read_layers(layers)
    for layer in found or ():
        if layer >= lm.adapter.n_layers:
            raise ConfigError(
                f"There is no layer {layer}: {lm.name} has layers 0 to {lm.adapter.n_layers - 1}.",
                "Give one of these, or leave the layers empty.",
            )
    settings = {**forms.place_settings(model, found), **changed}
    build(model, with_preset(lm.adapter, method, settings), f"method '{method}'")
    return Chosen(method, settings)


def own_default(method: str, name: str) -> Any:
    """A setting's own default, in the form in which an edit keeps it."""
    found = plugins.module(method).Config.model_fields[name]
    return found.get_default(call_default_factory=True)
