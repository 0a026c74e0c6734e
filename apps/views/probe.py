"""Probes of prompts: any that is registered, with a form made from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
from editlab_apps import commands, downloads, errors, forms, links, panel, plugins, session, work

TITLE = "Probe"
SECTION = "Analyse"
ORDER = 90

SLOT = "probe"


def page() -> None:
    """Draw the page."""
    st.header("Probe")
    lab = session.lab()
    names = list(plugins.found("probes"))
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        name = str(st.selectbox("Probe", names, **links.bound("pr_name")))
    links.check("pr_name", "probe", name, f"there are {', '.join(names)}")
    with errors.shown():
        right.caption(errors.plain(plugins.summary(name, "probes")))
        _form(lab, name)
    ran = panel.result(lab, SLOT, "Nothing probed yet.", "Press Run: a figure and a table will stand here.")
    if ran is not None:
        _result(ran)


def _form(lab: session.Lab, name: str) -> None:
    model = plugins.module(name, "probes").Config
    with st.form("pr_form"):
        text = st.text_area("Prompts, one a line", lab.example.text, **links.text("pr_prompt"))
        settings = forms.fields(model, list(model.model_fields), {}, f"pr.{name}.")
        wanted = st.form_submit_button("Run", type="primary", disabled=lab.job is not None)
    prompts = [line for line in (text or "").splitlines() if line.strip()]
    panel.command(commands.probe(lab.lm.name, name, prompts, settings))
    if wanted:
        lab.start(SLOT, f"Running {name}", work.probe(lab.lm, name, prompts, settings, lab.runs_root))
        st.rerun()


def _result(ran: work.Ran) -> None:
    found: Any = ran.result
    folder: Path = ran.folder
    st.subheader(str(ran.asked["probe"]))
    st.caption(errors.plain(found.headline))
    figure = found.plot()
    panel.chart(figure, "pr_chart", found.headline, folder.name)
    st.dataframe(found.to_pandas(), hide_index=True, alt="Every finding of the probe")
    with st.container(horizontal=True):
        downloads.csv("CSV", found.to_pandas, folder.name)
        downloads.folder("Run folder (zip)", folder)


page()
