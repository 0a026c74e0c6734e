"""Many facts: from a table or a file, by a plan, into a run folder that survives a kill."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from editlab.config import build
from editlab.evaluation.statistics import estimate
from editlab.facts import Fact
from editlab.runs import BatchResult, Plan, StopRules
from editlab.runs.records import RunRecord, list_runs
from editlab.viz.edits import batch_points, edits_so_far

from .. import cells, commands, downloads, errors, forms, links, panel, plugins, session, work
from . import facts_file
from . import method as methods

SLOT, COST = "edit.batch", "edit.cost"
MODES = {
    "single": "single: each alone, undone before the next",
    "sequential": "sequential: one after the other, all kept",
    "batch": "batch: all in one edit",
    "sequential-batched": "sequential-batched: some at a time, all kept",
}


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    facts, flawed = _facts(lab)
    facts_file.show_flawed(flawed)
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        method = methods.pick("bt_method", work.FOR_MANY)
    right.caption(errors.plain(plugins.summary(method)))
    with errors.shown():
        _form(lab, method, facts, flawed)
    interrupted = [run for run in list_runs(lab.runs_root) if run.state == "interrupted" and run.is_batch]
    if interrupted and lab.job is None:
        resume(lab, interrupted)
    _cost(lab)
    ran = panel.result(lab, SLOT)
    if ran is not None:
        result(lab, ran)


def _facts(lab: session.Lab) -> tuple[list[Fact], list[cells.Flawed]]:
    given = facts_file.read("bt_file", "Without one, the table below.")
    if given is not None:
        return given
    start = cells.table_of([lab.example])
    table = st.data_editor(
        start,
        num_rows="dynamic",
        hide_index=True,
        key="bt_table",
        alt="Facts to edit, a row each",
        column_config={
            "subject": st.column_config.TextColumn("subject", width="small"),
            "prompt": st.column_config.TextColumn("prompt with {}", width="medium"),
            "target_new": st.column_config.TextColumn("new answer"),
            "target_true": st.column_config.TextColumn("present answer"),
            "paraphrases": st.column_config.TextColumn(f"paraphrases ({cells.SEPARATOR} between)", width="medium"),
            "neighbours": st.column_config.TextColumn(f"neighbours ({cells.SEPARATOR} between)", width="medium"),
        },
    )
    return cells.read_cells(table)


def _cost(lab: session.Lab) -> None:
    """What the run would cost, if that was asked."""
    found = panel.result(lab, COST)
    if found is not None:
        st.info(errors.plain(found.text), title="About what it will cost")


def _form(lab: session.Lab, method: str, facts: list[Fact], flawed: list[cells.Flawed]) -> None:
    with st.form("bt_form"):
        columns = st.columns([3, 1])
        mode = columns[0].selectbox("Mode", list(MODES), index=1, format_func=MODES.__getitem__, key="bt_mode")
        size = columns[1].number_input(
            "Facts at once", 1, None, 16, **links.bound("bt_size"), help="In mode sequential-batched."
        )
        layers, changed = methods.settings_form(lab.lm, method, "bt", "bt_layers")
        with st.expander("Stop when"):
            st.caption("Only where edits are kept. Measured after every so many edits; empty means no limit.")
            stop = forms.fields(StopRules, list(StopRules.model_fields), {}, "bt.stop.", columns=4)
        unready = lab.job is not None or not facts
        with st.container(horizontal=True):
            wanted = st.form_submit_button(
                f"Edit {len(facts)} fact{'s' if len(facts) != 1 else ''}", type="primary", disabled=unready
            )
            asked = st.form_submit_button(
                "What will it cost?", disabled=unready, help="Tries the first facts and scales up; nothing is kept."
            )
    if flawed:
        st.caption(f"{len(flawed)} rows are left out; see above.")
    with errors.shown():
        chosen = methods.checked(lab.lm, method, layers, changed)
        given = {"method": method, "mode": mode, "batch_size": size, "settings": chosen.settings, "stop": stop}
        plan = build(Plan, given, "the run")
        if wanted:
            lab.start(SLOT, "Editing a batch", work.batch(lab.plain, facts, plan, lab.runs_root))
            st.rerun()
        if asked:
            lab.start(COST, "Trying the first facts", work.cost(lab.plain, facts, plan))
            st.rerun()
        with panel.command(commands.batch(lab.lm.name, plan)):
            downloads.json_lines("facts.jsonl", lambda: facts_file.lines(facts), "facts")
    st.caption("A batch starts from the unedited model; your ledger stays as it is.")


def resume(lab: session.Lab, interrupted: list[RunRecord]) -> None:
    """A line for runs that can be gone on with."""
    with st.container(border=True, horizontal=True, vertical_alignment="bottom"):
        by_name = {run.name: run for run in interrupted[::-1]}
        name = st.selectbox("Interrupted run", list(by_name), key="bt_resume", width=360)
        if st.button("Resume", help="What is done is put back, not done again."):
            with errors.shown():
                lab.start(SLOT, "Going on with a batch", work.resume(lab.plain, by_name[name].folder))
                st.rerun()


def result(lab: session.Lab, ran: work.Ran) -> None:
    """What a batch gave."""
    found: BatchResult = ran.result
    st.subheader("Result")
    columns = st.columns(4)
    n = len(found.reports)
    columns[0].metric("Facts that fire", f"{found.fired} of {n}")
    columns[1].metric("Failed rows", len(found.failed))
    changed, asked = (
        (sum(counts) for counts in zip(*(r.disturbed for r in found.reports), strict=True)) if n else (0, 0)
    )
    columns[2].metric("Neighbours changed", f"{changed} of {asked}")
    columns[3].metric("Seconds a fact", f"{sum(r.seconds for r in found.reports) / n:.1f}" if n else "-")
    if n:
        share = estimate([float(r.fires) for r in found.reports])
        st.caption(f"{share.mean:.0%} fire; 95 % interval {share.low:.0%} to {share.high:.0%}, n = {n}.")
    if found.stopped:
        st.warning(errors.plain(found.stopped), title="The run ended early, by a stop rule.")
    st.dataframe(per_fact(found), hide_index=True, alt=f"{found.fired} of {n} facts fire")
    if n > 1:
        left, right = st.columns(2)
        config = downloads.image_options(ran.folder.name)
        alt = "Probability of the new answer against the share of neighbours that changed"
        left.plotly_chart(batch_points(found.reports), key="bt_chart", height=340, alt=alt, config=config)
        alt = f"Shares of the first facts, over how many they are; {found.fired} of all {n} fire"
        right.plotly_chart(edits_so_far(found.reports), key="bt_curve", height=340, alt=alt, config=config)
    with st.container(horizontal=True):
        if st.button("Put these edits into the ledger", disabled=bool(len(lab.lm.ledger)) or not n):
            with errors.shown():
                lab.lm.load_edits(ran.folder)
                st.rerun()
        downloads.csv("CSV", lambda: pd.concat([r.to_pandas() for r in found.reports]), ran.folder.name)
        downloads.folder("Run folder (zip)", ran.folder)
    st.code(commands.of_folder("eval", ran.folder), language="bash", wrap_lines=True)


def per_fact(found: BatchResult) -> pd.DataFrame:
    """A row per fact, the failed ones with their reason."""
    rows = [
        {
            "fact": r.fact.text,
            "new answer": r.fact.target_new,
            "now says": r.rows[0].answer[1].strip().split("\n")[0],
            "fires": "yes" if r.fires else "no",
            "P(new)": f"{r.rows[0].p_new[0]:.0%} → {r.rows[0].p_new[1]:.0%}" if r.rows[0].p_new else "",
            "paraphrases that follow": "{} of {}".format(*r.followed),
            "neighbours changed": r.disturbed[0],
            "reason": "",
        }
        for r in found.reports
    ]
    rows += [{"fact": f.fact, "fires": "failed", "reason": f.reason} for f in found.failed]
    return pd.DataFrame(rows)
