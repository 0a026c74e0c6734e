"""Channels: which heads speak to which, through what, and whether it does anything."""

from __future__ import annotations

import streamlit as st
from editlab_apps import panel, session
from editlab_apps.tabs import channel_part, channel_scan, channel_steer, channel_test

TITLE = "Channels"
SECTION = "Analyse"
ORDER = 20

TABS = {
    "Scan": channel_scan.draw,
    "Component": channel_part.draw,
    "Test": channel_test.draw,
    "Steer": channel_steer.draw,
}


def page() -> None:
    """Draw the page."""
    st.header("Channels")
    lab = session.lab()
    st.caption(
        "Heads of different layers talk through a few directions of the residual stream. The scan finds such channels "
        "in the weights; only an intervention shows that one does anything."
    )
    panel.tabs(lab, "ch_tab", TABS)


page()
