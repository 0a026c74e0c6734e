"""The editing methods and probes that there are, looked for once: that reads the records of every installed package."""

from __future__ import annotations

import inspect
import re
from typing import Any

import streamlit as st

from editlab import registry
from editlab.errors import ConfigError


@st.cache_resource(show_spinner=False)
def found(kind: str = "methods") -> dict[str, Any]:
    """Each plug-in's module by name, or the error that says why it cannot be used."""
    modules: dict[str, Any] = {}
    for name in registry.names(kind):
        try:
            modules[name] = registry.get(name, kind)
        except ConfigError as error:
            modules[name] = error
    return modules


def module(name: str, kind: str = "methods") -> Any:
    """The module of a method or probe.

    Raises:
        ConfigError: it cannot be used.
    """
    plug_in = found(kind)[name]
    if isinstance(plug_in, ConfigError):
        raise plug_in
    return plug_in


def summary(name: str, kind: str = "methods") -> str:
    """What the plug-in's module says of itself, in one sentence."""
    text = inspect.getdoc(module(name, kind)) or ""
    return " ".join(re.split(r"(?<=\.)\s", text, maxsplit=1)[0].split())
