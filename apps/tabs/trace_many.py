"""The average of causal traces over many facts, with intervals: layers by the role that a token plays."""

from __future__ import annotations

import streamlit as st

from editlab.data.relations import relation
from editlab.probes.trace_results import TraceAverage
from editlab.viz.files import page_html
from editlab.viz.locate import trace_lines

from .. import commands, downloads, errors, links, panel, session, work
from . import facts_file, trace_form

SLOT = "locate.many"
EXAMPLE, STEM = "capital", "The capital of {} is"  # the facts that are traced where no file is given


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    given = facts_file.read("loc_file", f"Without one, facts of the relation '{EXAMPLE}'.")
    facts, flawed = given if given is not None else (list(relation(EXAMPLE).facts(stem=STEM)), [])
    facts_file.show_flawed(flawed)
    with st.form("loc_many"):
        columns = st.columns(2)
        count = columns[0].number_input(
            "Facts, at most",
            1,
            None,
            4,
            **links.bound("loc_facts"),
            help="Those that the model answers otherwise are left out.",
        )
        with columns[1]:
            kind = trace_form.kind_field()
        values = trace_form.settings_fields(lab)
        wanted = st.form_submit_button("Trace them", type="primary", disabled=lab.job is not None or not facts)
    links.check("loc_facts", "facts", count, "1 or more")
    settings = trace_form.chosen(lab, kind, values)
    if wanted:
        with errors.shown():
            lab.start(SLOT, "Tracing facts", work.locate_many(lab.lm, facts[: int(count)], settings, lab.runs_root))
            st.rerun()
    file = "facts.jsonl"
    with panel.command(commands.locate_file(lab.lm.name, file, int(count), settings)):
        if given is None:
            downloads.json_lines(file, lambda: facts_file.lines(facts[: int(count)]), "facts")
    hint = "Press Trace them: the average with its intervals will stand here."
    ran = panel.result(lab, SLOT, "Nothing traced yet.", hint)
    if ran is not None:
        _result(ran)


def _result(ran: work.Ran) -> None:
    found: TraceAverage = ran.result
    st.subheader("Result")
    columns = st.columns(3)
    columns[0].metric("Facts traced", len(found.effects))
    columns[1].metric("Left out", len(found.left_out))
    columns[2].metric("P clean, corrupted", f"{found.p_clean.mean():.1%}, {found.p_corrupt.mean():.1%}")
    figure = trace_lines(found)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(title=None, margin={"t": 48, "r": 48}, height=420, legend=legend, modebar={"orientation": "v"})
    if st.toggle("Show as table", key="loc_many_table"):
        st.dataframe(
            found.to_pandas().dropna(subset=["effect", "low"]),
            hide_index=True,
            alt="Effect by layer and role of the token",
        )
    else:
        panel.chart(figure, "loc_many_chart", found.headline, ran.folder.name)
    st.caption(
        errors.plain(found.headline)
        + " Bands: 95 % bootstrap intervals over facts. Hollow points are no more than noise."
    )
    trace_form.suggestion(found.suggestion, "loc_many_use", {})
    if found.left_out:
        with st.expander(f"Facts that were left out: {len(found.left_out)}"):
            rows = [{"fact": fact, "reason": reason} for fact, reason in found.left_out]
            st.dataframe(rows, hide_index=True, alt="Facts that were left out, and why")
    with st.container(horizontal=True):
        title = f"{len(found.effects)} facts"
        panel.take_away(ran.folder, found.to_pandas, lambda: page_html(title, found._repr_html_(), [figure]))
