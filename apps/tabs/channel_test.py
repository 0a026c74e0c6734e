"""Does a channel do anything: its edge cut and its source removed, beside matched controls."""

from __future__ import annotations

import streamlit as st

from editlab.probes.channels.parts import MODES, READS, Channel
from editlab.probes.channels.tasks import TASKS
from editlab.probes.channels.verdicts import Verdicts
from editlab.viz.files import page_html

from .. import channel_work, errors, panel, session, work
from .channel_scan import part_field, scanned

SLOT = "channels.test"


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    found = scanned(lab)
    if found is None:
        st.info(
            "A status needs the null of a scan: press Scan all pairs in the first tab.", title="Nothing scanned yet."
        )
        return
    a = lab.lm.adapter
    columns = st.columns(2)
    with columns[0]:
        source = part_field(lab, "Writer", "ch_source", f"{a.n_layers // 2}.0.0", needs_component=False)
    with columns[1]:
        target = part_field(lab, "Reader", "ch_target", f"{a.n_layers - 1}.0", needs_component=False)
    with st.form("ch_test"):
        columns = st.columns(4)
        mode = columns[0].selectbox("The reader reads with", list(MODES), format_func=READS.get, key="ch_test_mode")
        task = columns[1].selectbox("Prompts", list(TASKS), format_func=TASKS.__getitem__, key="ch_test_task")
        prompts = columns[2].number_input("How many", 8, 1000, 200, key="ch_test_n")
        controls = columns[3].number_input("Controls", 20, 200, 24, key="ch_test_controls")
        wanted = st.form_submit_button("Test", type="primary", disabled=lab.job is not None)
    if wanted and source is not None and target is not None:
        with errors.shown():
            asked = {"task": task, "prompts": int(prompts), "length": 4, "controls": int(controls), "seed": 0}
            channels = [Channel(source, target.whole, mode)]
            lab.start(SLOT, "Testing", channel_work.testing(lab.lm, found, channels, asked, lab.runs_root))
            st.rerun()
    panel.command(
        f"editlab channels test {source} {target} --mode {mode} --task {task} --prompts {prompts} --model {lab.lm.name}"
    )
    ran = panel.result(lab, SLOT)
    if ran is not None:
        _result(ran)


def _result(ran: work.Ran) -> None:
    tests: Verdicts = ran.result
    (one,) = tests.tested
    columns = st.columns(3)
    columns[0].metric("Status", one.status)
    edge, node = one.edge.estimate, one.node.estimate
    columns[1].metric("Edge cut", f"{edge.mean:+.3f}", f"{edge.low:+.3f} to {edge.high:+.3f}", delta_color="off")
    columns[2].metric("Source removed", f"{node.mean:+.3f}", f"{node.low:+.3f} to {node.high:+.3f}", delta_color="off")
    st.caption(errors.plain(f"{tests.headline} {one.why}"))
    if one.is_repaired:
        st.warning(
            "The edge does more than twice what removing the source does: later heads make up for it.",
            title="Self-repair",
        )
    if st.toggle("Show as table", key="ch_test_table"):
        st.dataframe(tests.to_pandas().T.astype(str), alt="All numbers of the test")
    else:
        panel.chart(tests.plot(), "ch_effects", tests.headline, ran.folder.name)
    with st.container(horizontal=True):
        panel.take_away(ran.folder, tests.to_pandas, lambda: page_html("Channels", tests._repr_html_(), [tests.plot()]))
