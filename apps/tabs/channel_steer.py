"""Steering list recall with components: scaled, and set by place; chosen on some prompts, judged on others."""

from __future__ import annotations

import streamlit as st

from editlab.probes.channels.parts import Part
from editlab.probes.channels.steering import Config, Steering
from editlab.viz.files import page_html

from .. import channel_work, errors, links, panel, session, work
from .channel_scan import scanned

SLOT = "channels.steer"
STARTS = Config()


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    a = lab.lm.adapter
    with st.form("ch_steer"):
        text = st.text_input(
            "Components", f"{a.n_layers // 2}.0.0", **links.text("ch_parts"), help="As in 20.0.0, 22.1.0."
        )
        columns = st.columns(4)
        length = columns[0].number_input("Items of a list", 2, 20, STARTS.length, key="ch_steer_length")
        dev = columns[1].number_input("Prompts a place to choose on", 1, 200, STARTS.dev, key="ch_steer_dev")
        test = columns[2].number_input("To judge on", 2, 200, STARTS.test, key="ch_steer_test")
        samples = columns[3].number_input("Points tried", 2, 4096, STARTS.samples, key="ch_steer_samples")
        wanted = st.form_submit_button("Steer", type="primary", disabled=lab.job is not None)
    named = str(text).replace(",", " ").split()
    settings = {"length": int(length), "dev": int(dev), "test": int(test), "samples": int(samples)}
    if wanted:
        with errors.shown():
            parts = [Part.parse(part) for part in named]
            for part in parts:
                part.check(a.n_layers, a.n_heads, a.head_dim)
            scan = scanned(lab)
            factors = scan.scan.factors if scan is not None else None
            lab.start(SLOT, "Steering", channel_work.steered(lab.lm, parts, settings, factors, lab.runs_root))
            st.rerun()
    changed = [f"{name}={value}" for name, value in settings.items() if value != getattr(STARTS, name)]
    panel.command(" ".join(["editlab channels steer", *named, *changed, "--model", lab.lm.name]))
    ran = panel.result(lab, SLOT)
    if ran is not None:
        _result(ran)


def _result(ran: work.Ran) -> None:
    found: Steering = ran.result
    for column, (name, gain) in zip(
        st.columns(2), (("Scaled", found.scaled), ("Set by place", found.placed)), strict=True
    ):
        d = gain.paired.difference
        change = f"{d.mean:+.1%} ({d.low:+.1%} to {d.high:+.1%})"
        column.metric(f"{name}: lists recalled", f"{gain.steered.right.mean():.1%}", change, delta_color="off")
        column.caption(errors.plain(gain.headline))
    st.caption("Set by place is told where the answer stands: an upper bound, and no way of answering.")
    if st.toggle("Show as table", key="ch_steer_table"):
        st.dataframe(found.to_pandas(), hide_index=True, alt="Both ways of steering")
    else:
        panel.chart(found.plot(), "ch_places", found.chart.headline, ran.folder.name)
    with st.container(horizontal=True):
        panel.take_away(ran.folder, found.to_pandas, lambda: page_html("Steering", found._repr_html_(), [found.plot()]))
