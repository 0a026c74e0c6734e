"""The frame that pages share: their tabs, the command that does the same, work under way, and what it gave.

Work under way is a line with progress and a way to cancel it, kept up to date by a fragment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from . import downloads, links
from .errors import plain
from .session import Lab, show_outcome_error

EVERY = "0.7s"


def tabs(lab: Lab, key: str, draws: Mapping[str, Callable[[Lab], None]]) -> None:
    """Tabs by name, of which only the open one is drawn; `key` is their name in a link."""
    for tab, draw in zip(st.tabs(list(draws), on_change="rerun", **links.bound(key)), draws.values(), strict=True):
        if tab.open:
            with tab:
                draw(lab)


def command(text: str) -> Any:
    """The command line that does the same, folded away; gives its place, for more beside it."""
    place = st.expander("The same on the command line")
    place.code(text, language="bash", wrap_lines=True)
    return place


def chart(figure: Any, key: str, alt: str, file: str, **more: Any) -> None:
    """A figure whose camera button gives a picture called `file`; where `file` is another, it is another chart."""
    st.plotly_chart(figure, key=f"{key}.{file}", alt=alt, config=downloads.image_options(file), **more)


def take_away(run: Path, table: Callable[[], pd.DataFrame], page: Callable[[], str]) -> None:
    """Buttons for a run: its table, a page with its figures (HTML), and its folder."""
    downloads.csv("CSV", table, run.name)
    downloads.html("HTML", page, run.name)
    downloads.folder("Run folder (zip)", run)


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
