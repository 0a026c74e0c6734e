"""One component: its spectrum, tokens in and out, and a slider that scales it, before and after."""

from __future__ import annotations

import streamlit as st

from editlab.errors import EditlabError
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.factors import Factors
from editlab.probes.channels.parts import Part
from editlab.probes.channels.readout import LABEL, read_out
from editlab.probes.channels.scan import Scan
from editlab.viz.channels import spectrum

from .. import channel_work, errors, links, panel, session
from .channel_scan import part_field, scanned

SLOT = "channels.trial"
TASKS = {"own prompt": "own prompt only", "ioi": "two names", "lists": "list recall", "repeats": "repeated tokens"}


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    middle = lab.lm.adapter.n_layers // 2
    part = part_field(lab, "Component", "ch_comp", f"{middle}.0.0")
    if part is None:
        return
    found = scanned(lab)
    if found is not None:
        _card(lab, found.scan, part)
    else:
        st.caption("Scan all pairs first to see its spectrum, its tokens and its readers here.")
    factors = found.scan.factors if found is not None and found.state == lab.state else None
    _trial(lab, part, factors)


def _card(lab: session.Lab, scan: Scan, part: Part) -> None:
    names = [str(scan.factors.part(i)) for i in range((part.layer + 1) * scan.factors.n_heads, scan.factors.n)]
    columns = st.columns(2)
    target = columns[0].selectbox("Reader", ["none", *names], key="ch_reader")
    mode = columns[1].selectbox("It reads with", list(scan.compositions), key="ch_reader_mode")
    reader = None if target == "none" else Part.parse(target)
    st.plotly_chart(spectrum(scan, part, reader, mode), key=f"ch_spectrum.{part}", alt=f"Components of {part.whole}")
    if bool(scan.factors.degenerate_ov[scan.factors.index(part), part.component]):
        st.warning(
            "Its neighbour has the same singular value: only the two together mean something.", title="Degenerate"
        )
    rows = scan.to_pandas(source=part, limit=8)
    if len(rows):
        st.dataframe(rows, hide_index=True, alt=f"Readers of {part}")
    with st.expander(f"Tokens in and out ({LABEL})"):
        st.dataframe(read_out(lab.lm, scan.factors, part).to_pandas(), hide_index=True, alt=f"Tokens of {part}")


def _trial(lab: session.Lab, part: Part, factors: Factors | None) -> None:
    with st.form("ch_trial"):
        columns = st.columns(3)
        alpha = columns[0].slider(
            "Scale", -3.0, 3.0, 0.0, 0.25, **links.bound("ch_scale"), help="0 removes, 1 leaves alone."
        )
        task = columns[1].selectbox("Effect on", **links.chosen("ch_task", list(TASKS), TASKS.__getitem__))
        length = columns[2].number_input("Items of a list", 2, 20, 4, **links.bound("ch_length"))
        prompt = st.text_input("Prompt", lab.example.text, **links.text("ch_prompt"))
        wanted = st.form_submit_button("Try it", type="primary", disabled=lab.job is not None)
    if wanted:
        with errors.shown():
            asked = channel_work.trial(lab.lm, part, float(alpha), prompt, task, int(length), factors)
            lab.start(SLOT, "Scaling a component", asked)
            st.rerun()
    panel.command(f"editlab channels edit {part} --scale {alpha:g} --model {lab.lm.name}")
    found: channel_work.Trial | None = panel.result(lab, SLOT)
    if found is None:
        return
    st.subheader(f"{found.part} times {found.alpha:g}")
    left, right = st.columns(2)
    left.markdown("**As it is**")
    left.code(found.answers[0], language=None, wrap_lines=True)
    right.markdown("**Scaled**")
    right.code(found.answers[1], language=None, wrap_lines=True)
    if len(found.rows):
        st.dataframe(found.rows, hide_index=True, alt="Accuracy and margin, beside controls")
        st.caption(
            "Scaled alike as controls: other components of its head, components of the same rank of its layer's other "
            "heads, and random directions that its head can write."
        )
    if st.button("Keep as an edit", key="ch_keep", disabled=lab.job is not None):
        try:
            entry = lab.lm.ledger.apply(component_edit(lab.lm, [found.part], found.alpha))
        except EditlabError as error:
            errors.show(error)
        else:
            lab.outcomes.pop(SLOT)
            st.toast(f"Kept as {entry.id}")
            st.rerun()
