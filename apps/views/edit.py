"""Changing what the model says: one fact, many facts, and the ledger of what was changed."""

from __future__ import annotations

import streamlit as st
from editlab_apps import panel, session
from editlab_apps.tabs import batch, ledger, single

TITLE = "Edit"
SECTION = "Change"
ORDER = 0

TABS = {"Single": single.draw, "Batch": batch.draw, "Ledger": ledger.draw}


def page() -> None:
    """Draw the page."""
    st.header("Edit")
    lab = session.lab()
    panel.tabs(lab, "ed_tab", TABS)


page()
