"""Errors as the user sees them: what happened, what to do, and a report to copy for what nobody expected."""

from __future__ import annotations

import platform
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import streamlit as st

from editlab.errors import EditlabError, Interrupted
from editlab.models.load import is_out_of_memory

from .sharing import shareable

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+.!|$~<>:-])")


def plain(text: str) -> str:
    """A text that streamlit's Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", text)


def said(text: str) -> str:
    """A message of the library as it is shown here."""
    return plain(shareable(text))


def show(error: Exception) -> None:
    """One error, in the place where the result would have been."""
    if isinstance(error, Interrupted):
        st.info(said(error.fix), title=said(error.what))
    elif isinstance(error, EditlabError):
        st.error(said(error.fix) or "Change the request and try again.", title=said(error.what))
    elif is_out_of_memory(error):
        st.error("Try a smaller batch, a smaller model, or close other programs.", title="Memory ran out.")
    else:
        st.error("The report below says where.", title="Something broke inside editlab.")
        with st.expander("Report to copy"):
            st.code(_report(error), language=None)


@contextmanager
def shown() -> Iterator[None]:
    """Show what is raised in the block, and go on after it."""
    try:
        yield
    except Exception as error:
        show(error)


def _report(error: Exception) -> str:
    """Versions and the places of the traceback; no message, which may quote a user's text."""
    libraries = ("editlab", "streamlit", "torch", "transformers")
    lines = [f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)]
    frames = traceback.extract_tb(error.__traceback__)
    lines += [f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno} {f.name}" for f in frames]
    return "\n".join([*lines, type(error).__name__])
