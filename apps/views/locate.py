"""Causal tracing: which layers and tokens carry a fact."""

from __future__ import annotations

import streamlit as st
from editlab_apps import panel, session
from editlab_apps.tabs import trace_many, trace_one

TITLE = "Locate"
SECTION = "Analyse"
ORDER = 0

TABS = {"One prompt": trace_one.draw, "Many facts": trace_many.draw}


def page() -> None:
    """Draw the page."""
    st.header("Locate")
    lab = session.lab()
    st.caption(
        "Noise on the subject's tokens hides the fact; then the clean state of one layer and token at a time is put "
        "back. Where that brings the answer back, the fact passes through. That explains what the model does; where an "
        "edit works best is another question, which only editing answers ('Does Localization Inform Editing?', arXiv "
        "2301.04213), and the subject's last token is not always the one that counts."
    )
    panel.tabs(lab, "loc_tab", TABS)


page()
