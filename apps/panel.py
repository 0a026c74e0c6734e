"""Work under way, on the screen: a line with progress and a way to cancel it, kept up to date by a fragment."""

from __future__ import annotations

from typing import Any

import streamlit as st

from .errors import plain
from .session import Lab, show_outcome_error

EVERY = "0.7s"


def compute_line(lab: Lab) -> None:
    """The sidebar's line; it draws itself anew while a job is under way, and the page when the job has ended."""
    if lab.job is None:
        st.caption("Compute: idle")
        return
    st.fragment(_line, run_every=EVERY)(lab, "side")


def progress(lab: Lab, slot: str) -> bool:
    """The same in the page, where the result will be; whether the job is this page's and under way."""
    if lab.job is None or lab.working_on != slot:
        return False
    st.fragment(_line, run_every=EVERY)(lab, slot)
    return True


def result(lab: Lab, slot: str, nothing: str = "", hint: str = "") -> Any | None:
    """What the page's work gave; as long as there is nothing, how far it is, why it failed, or what to press."""
    outcome = lab.outcomes.get(slot)
    if progress(lab, slot) or show_outcome_error(outcome):
        return None
    if outcome is not None:
        return outcome.result
    if nothing:
        st.info(hint, title=nothing)
    return None


def _line(lab: Lab, place: str) -> None:
    job = lab.job
    if job is None:
        return
    if not job.is_live:
        lab.collect()  # here, so that a second run of this fragment does not ask for the page again
        st.rerun()
    ahead = lab.jobs.ahead_of(job)
    text = job.text if not ahead else f"{job.label}: {ahead} ahead in the queue"
    if place == "side":
        st.caption(f"Compute: {plain(text)}")
        st.progress(job.share or 0.0)
    else:
        with st.status(plain(f"{job.label}, {job.elapsed:.0f} s so far"), expanded=True) as status:
            st.progress(job.share or 0.0, text=plain(text))
        status.update(state="running")  # leaving the block has ticked it off
    if st.button("Cancel", key=f"cancel.{place}"):
        job.cancel()
        job.wait(2)
        st.rerun()
