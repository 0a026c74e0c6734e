"""All pairs of heads: settings, the map, and the ranked table."""

from __future__ import annotations

from functools import partial

import streamlit as st

from editlab.errors import EditlabError
from editlab.probes.channels.parts import MODES, READS, Mode, Part
from editlab.probes.channels.scan import LEVELS, Level, Scan
from editlab.viz.channel_effects import channel_graph
from editlab.viz.channels import VALUES, composition_map, writers_map
from editlab.viz.files import page_html

from .. import channel_work, errors, links, panel, session, work

SLOT = "channels.scan"


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    with st.form("ch_form"):
        columns = st.columns(3)
        mode = columns[0].selectbox("The reader reads with", **links.chosen("ch_type", list(MODES), READS.__getitem__))
        level = columns[1].selectbox("Looked at", index=1, **links.chosen("ch_level", list(LEVELS), LEVELS.__getitem__))
        delta = columns[2].number_input(
            "Tokens from key to query", 0, 4096, 0, **links.bound("ch_delta"), help="For rotary embeddings; 0 is usual."
        )
        wanted = st.form_submit_button("Scan all pairs", type="primary", disabled=lab.job is not None)
    links.check("ch_type", "reading", mode, "q, k or v")
    links.check("ch_level", "level", level, ", ".join(LEVELS))
    if wanted:
        with errors.shown():
            lab.start(SLOT, "Scanning", channel_work.scanning(lab.lm, {"delta": (int(delta),)}, lab.runs_root))
            st.rerun()
    asked = "" if delta == 0 else f" 'delta=[{delta}]'"
    panel.command(f"editlab channels scan --mode {mode} --level {level} --model {lab.lm.name}{asked}")
    hint = "Press Scan all pairs: the map of writers and readers will stand here."
    ran = panel.result(lab, SLOT, "Nothing scanned yet.", hint)
    found = scanned(lab)
    if ran is not None and found is not None:
        _result(found.scan, ran, mode, level)


def scanned(lab: session.Lab) -> channel_work.Scanned | None:
    """The scan of this session's model as it is now; says so if the model has changed since."""
    outcome = lab.outcomes.get(SLOT)
    if outcome is None or outcome.error is not None:
        return None
    found: channel_work.Scanned = outcome.result.result
    if found.state != lab.state:
        st.warning("Scan again to see it as it is now.", title="The model has changed since this scan.")
    return found


def _result(scan: Scan, ran: work.Ran, mode: Mode, level: Level) -> None:
    name = ran.folder.name
    st.subheader("Result")
    st.caption(errors.plain(scan.headline))
    names = [str(scan.factors.part(i)) for i in range(scan.factors.n)]
    columns = st.columns(2)
    value = columns[0].selectbox("Map of", **links.chosen("ch_value", list(VALUES), VALUES.__getitem__))
    target = columns[1].selectbox("Reader", ["all", *names], **links.bound("ch_dst"))
    only = None if target == "all" else Part.parse(target)
    rows = scan.to_pandas(level, modes=[mode], target=only, limit=50)
    if st.toggle("Show as table", key="ch_table"):
        st.dataframe(rows, hide_index=True, alt="Channels by their scores")
    else:
        figure = composition_map(scan, mode, value) if only is None else writers_map(scan, only, mode)
        panel.chart(figure, "ch_map", scan.headline, name)
        f = scan.factors
        panel.chart(channel_graph(rows, f.n_layers, f.n_heads), "ch_graph", "Heads and their channels", f"{name}-graph")
        st.dataframe(rows.head(10), hide_index=True, alt="The first ten channels")
    st.caption(
        "p is the share of pairs in the wrong order, which cannot communicate, that score as high. Dotted lines are "
        "weight-only: nobody has intervened."
    )
    with st.container(horizontal=True):
        if (
            len(rows)
            and level == "component"
            and st.button(f"Test {rows.iloc[0].source} in the Test tab", key="ch_use")
        ):
            links.go(
                "views/channels.py",
                {"ch_tab": "Test", "ch_source": rows.iloc[0].source, "ch_target": rows.iloc[0].target},
            )
        every = partial(scan.to_pandas, level, limit=None)
        panel.take_away(ran.folder, every, lambda: page_html("Channels", scan._repr_html_(), [scan.plot(mode)]))


def part_field(lab: session.Lab, label: str, key: str, default: str, needs_component: bool = True) -> Part | None:
    """A text field for a head or component; shows what is wrong with it."""
    text = st.text_input(label, default, **links.text(key), help="LAYER.HEAD.COMPONENT, such as 20.0.0.")
    try:
        part = Part.parse(text)
        a = lab.lm.adapter
        part.check(a.n_layers, a.n_heads, a.head_dim)
    except EditlabError as error:
        errors.show(error)
        return None
    if needs_component and part.component is None:
        return Part(part.layer, part.head, 0)
    return part
