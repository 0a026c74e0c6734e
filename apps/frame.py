"""The sidebar that every page has: the model, its state, the ledger in short, and work under way."""

from __future__ import annotations

import streamlit as st

from . import drafts, errors, links, panel, session, work
from .session import LAB, Lab
from .sharing import shareable

SHOWN = 5  # entries in the popover
DRAFTS = 3


def sidebar() -> None:
    """Draw it."""
    lab: Lab | None = st.session_state.get(LAB)
    with st.sidebar:
        if lab is None:
            st.caption(
                "No model is loaded." if session.COMING not in st.session_state else "The model is being loaded."
            )
            return
        active = len(lab.lm.ledger.active)
        st.markdown(f"**{errors.plain(lab.lm.name)}** `{lab.lm.base_hash[:8]}`")
        if active:
            st.badge(f"{active} edit{'s' if active > 1 else ''} active", color="orange")
        else:
            st.badge("base", color="gray")
        _ledger(lab)
        panel.compute_line(lab)
        _save(lab)
        _drafts(lab)
        st.toggle(
            "Keep texts out of the address",
            key=links.PRIVATE,
            persist_state="session",
            help="Links then carry settings only. Edits, files and drafts are never part of a link.",
        )
        st.caption("Light or dark: see Settings in the menu at the top right.")


def _ledger(lab: Lab) -> None:
    entries = list(lab.lm.ledger)
    with st.popover(f"Ledger ({len(entries)})", width="stretch"):
        if not entries:
            st.write("No edits: this is the base model, bit for bit.")
        for entry in entries[-SHOWN:][::-1]:
            st.markdown(f"`{entry.id}` {errors.plain(entry.edit.summary)} ({entry.edit.method}, {entry.state})")
        if st.button("Undo last", key="frame.undo", disabled=not lab.lm.ledger.active or lab.job is not None):
            with errors.shown():
                lab.lm.undo()
                st.rerun()
        if st.button("Open the ledger", key="frame.ledger"):
            links.go("views/edit.py", {"ed_tab": "Ledger"})


def _save(lab: Lab) -> None:
    if st.button(
        "Save work",
        key="frame.save",
        disabled=not lab.is_unsaved,
        width="stretch",
        help="Write the ledger to a run folder. Until then the edits live in this tab only.",
    ):
        with errors.shown():
            folder = work.save_ledger(lab.lm, lab.reports.values(), lab.runs_root)
            lab.saved = lab.state
            st.toast(f"Saved: {shareable(str(folder))}")
            st.rerun()
    if lab.is_unsaved:
        st.caption("Edits live in this tab until saved.")


def _drafts(lab: Lab) -> None:
    """Unsaved edits of tabs that were closed, reloaded, or are still open elsewhere."""
    drafts.keep(lab)
    if len(lab.lm.ledger) or lab.job is not None:
        return
    for draft in drafts.of_others(lab)[:DRAFTS]:
        with st.container(border=True):
            edits = f"{draft.edits} edit{'s' if draft.edits != 1 else ''}"
            st.caption(f"Another tab did not save {edits} ({draft.written:%d %b, %H:%M}).")
            with st.container(horizontal=True):
                if st.button("Open a copy", key=f"draft.open.{draft.folder.name}"):
                    with errors.shown():
                        lab.lm.load_edits(draft.folder)
                        st.rerun()
                if st.button("Forget", key=f"draft.drop.{draft.folder.name}", help="The other tab keeps its edits."):
                    drafts.drop(draft.folder)
                    st.rerun()
