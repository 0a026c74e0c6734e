"""The editing methods that there are, looked for once: that reads the records of every installed package."""

from __future__ import annotations

from typing import Any

import streamlit as st

from editlab import registry
from editlab.errors import ConfigError


@st.cache_resource(show_spinner=False)
def found() -> dict[str, Any]:
    """Each method's module by name, or the error that says why it cannot be used."""
    modules: dict[str, Any] = {}
    for name in registry.names():
        try:
            modules[name] = registry.get(name)
        except ConfigError as error:
            modules[name] = error
    return modules


def module(name: str) -> Any:
    """The module of a method.

    Raises:
        ConfigError: it cannot be used.
    """
    method = found()[name]
    if isinstance(method, ConfigError):
        raise method
    return method
