"""Links that carry a page's settings, and the notice for what a link asks for and cannot have.

Streamlit silently replaces a value that a widget cannot take. So the values that the address brought are kept before
any widget is drawn (`remember`), and each widget that is bound to the address says what became of its own (`check`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from .errors import plain
from .session import LAB

_ASKED, _NOTICES, _PAGE, PRIVATE = "editlab.asked", "editlab.notices", "editlab.page", "editlab.private"
_KNOWN = "editlab.known"  # the settings that widgets of this session have stood for
_LABELS = "editlab.labels"  # how those draw their options that do not draw them as they are


def remember(page: str) -> None:
    """Keep what the address asks for when a page is entered; to be called before any widget is drawn."""
    if st.session_state.get(_PAGE) != page:
        st.session_state[_PAGE] = page
        st.session_state[_ASKED] = st.query_params.to_dict()
        st.session_state[_NOTICES] = []


def bound(key: str) -> dict[str, Any]:
    """Arguments of a widget whose value stands in the address."""
    st.session_state.setdefault(_KNOWN, set()).add(key)
    return {"key": key, "bind": "query-params"}


def chosen(key: str, options: Sequence[Any], label: Callable[[Any], str]) -> dict[str, Any]:
    """Arguments of a widget that offers `options` by their `label`.

    Streamlit writes the label into the address; a link that was written by hand may have the option itself.
    """
    st.session_state.setdefault(_LABELS, {})[key] = label
    asked = st.session_state.get(_ASKED, {}).get(key)
    meant = [option for option in options if str(option) == asked]
    if meant and key not in st.session_state:
        st.session_state[key] = meant[0]
    return {**bound(key), "options": options, "format_func": label}


def text(key: str) -> dict[str, Any]:
    """Like `bound`, for texts, which the user may want to keep out of the address."""
    arguments = bound(key)
    return {"key": key, "persist_state": "session"} if st.session_state.get(PRIVATE) else arguments


def check(key: str, label: str, value: Any, allowed: str = "") -> None:
    """Note it, once, if the address asked for another value than the widget has."""
    asked = st.session_state.get(_ASKED, {}).pop(key, None)
    drawn = st.session_state.get(_LABELS, {}).get(key, str)
    if asked is not None and not _same(asked, value) and asked != drawn(value):
        is_now = f"it is now {value}" if value not in (None, "") else "it was left out"
        st.session_state[_NOTICES].append(
            f"This link asked for {label} {asked}; {is_now}{allowed and f' ({allowed})'}."
        )


def go(page: str, settings: dict[str, Any]) -> None:
    """Open a page with these settings of its widgets."""
    # A page that was open before keeps its widgets' values, whatever the address says.
    st.session_state.update(settings)
    st.switch_page(page, query_params={key: str(value) for key, value in settings.items()})


def check_model() -> None:
    """Note it if the link was made with another model, and put this one's mark into the address."""
    found = st.session_state.get(LAB)
    if found is None:
        return
    mark = found.lm.base_hash[:8]
    check("m", "model", mark, f"this is {found.lm.name}; the settings were kept")
    if st.query_params.get("m") != mark:
        st.query_params["m"] = mark


def notices() -> None:
    """Show what could not be had, until it is dismissed; to be called when the page has been drawn."""
    unknown = st.session_state.get(_ASKED, {}).keys() - st.session_state.get(_KNOWN, set()) - {"m"}
    for key in sorted(unknown):
        del st.session_state[_ASKED][key]
        st.session_state[_NOTICES].append(f"There is no setting '{key}' on this page.")
    found = st.session_state.get(_NOTICES)
    if not found:
        return
    st.warning("\n\n".join(plain(notice) for notice in found), title="Not everything in the link could be used.")
    if st.button("Dismiss", key="editlab.dismiss"):
        st.session_state[_NOTICES] = []
        st.rerun()


def _same(asked: str, value: Any) -> bool:
    try:
        return float(asked) == float(value)
    except (TypeError, ValueError):
        return asked == ("" if value is None else str(value))
