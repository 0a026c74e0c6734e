"""What was run: folders with manifest, results and figures; open, go on, measure, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from editlab_apps import clicks, commands, downloads, errors, links, notebooks, panel, session, work
from editlab_apps.sharing import is_shared
from editlab_apps.tabs import batch, compare

from editlab.evaluation.results import Evaluation
from editlab.runs import read_run
from editlab.runs.records import RunRecord, list_runs
from editlab.viz.files import load_figures

TITLE = "Runs"
SECTION = "Records"
ORDER = 0

SLOT = "runs.evaluate"
PER_PAGE = 50
TABLE = "rn_table"
MEMORY = "memory"  # the kind of its runs, and the slot of the Memory page
MARKS = {
    "complete": "complete",
    "stopped": "stopped by a rule",
    "interrupted": "● interrupted",
    "unreadable": "unreadable",
}


def page() -> None:
    """Draw the page."""
    st.header("Runs")
    lab = session.lab()
    runs = sorted(list_runs(lab.runs_root), key=lambda run: run.name, reverse=True)
    runs.sort(key=lambda run: run.state != "interrupted")
    if not runs:
        st.info(
            "A trace, a batch of edits, or Save work makes one.",
            title=f"There is no run in {'your folder' if is_shared() else lab.runs_root.absolute()} yet.",
        )
        return
    _list(runs)
    running = any(panel.progress(lab, slot) for slot in (SLOT, batch.SLOT, MEMORY))
    if not running:
        for slot in (SLOT, batch.SLOT):
            session.show_outcome_error(lab.outcomes.get(slot))
    tabs = st.tabs(["Open", "Compare"], on_change="rerun", **links.bound("rn_tab"))
    if tabs[0].open:
        with tabs[0]:
            _open(lab, runs)
    if tabs[1].open:
        with tabs[1]:
            compare.draw(runs)


def _list(runs: list[RunRecord]) -> None:
    kinds = sorted({run.kind for run in runs})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.selectbox("Kind", ["all", *kinds], key="rn_kind", persist_state="session", width=200)
        text = st.text_input("Name or headline contains", key="rn_text", persist_state="session", width=320)
    shown = [
        run
        for run in runs
        if kind in ("all", run.kind) and (text or "").casefold() in f"{run.name} {run.headline}".casefold()
    ]
    pages = max(1, -(-len(shown) // PER_PAGE))
    number = st.pagination(pages, key="rn_page") if pages > 1 else 1
    shown = shown[(number - 1) * PER_PAGE : number * PER_PAGE]
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "run": run.name,
                    "state": MARKS[run.state],
                    "kind": run.kind,
                    "headline": run.headline,
                    "written (UTC)": (run.written or "").replace("T", " ")[:16],
                    "model": run.model,
                }
                for run in shown
            ]
        ),
        hide_index=True,
        height=min(360, 38 + 35 * max(1, len(shown))),
        alt=f"{len(shown)} of {len(runs)} run folders; a click on a row opens it",
        column_config={"headline": st.column_config.TextColumn(width=230)},
        key=TABLE,
        on_select=lambda: _take_clicked([run.name for run in shown]),
        selection_mode="single-row",
    )


def _take_clicked(names: Sequence[str]) -> None:
    if clicks.take_row(st.session_state, TABLE, "rn_run", names):
        st.session_state["rn_tab"] = "Open"


def _open(lab: session.Lab, runs: list[RunRecord]) -> None:
    by_name = {run.name: run for run in runs}
    name = st.selectbox("Run", list(by_name), **links.bound("rn_run"))
    links.check("rn_run", "run", name, "there is no such folder")
    run = by_name[str(name)]
    if run.headline:
        st.markdown(errors.plain(run.headline))
    made_on, loaded = run.manifest.get("base", {}).get("hash", lab.lm.base_hash), lab.lm.base_hash
    other = made_on != loaded
    if other:
        st.warning(
            f"It was made with {errors.plain(str(run.model))} ({made_on[:8]}), and {errors.plain(lab.lm.name)} "
            f"({loaded[:8]}) is loaded: it can be looked at, but not gone on with or put in force.",
            title="This run belongs to another model.",
        )
    _buttons(lab, run, other)
    for title, figure in load_figures(run.folder).items():
        alt = run.headline or f"{title} of {run.name}"
        st.plotly_chart(figure, key=f"rn.{run.name}.{title}", alt=alt, config=downloads.image_options(run.name))
    if compare.is_evaluation(run):
        with errors.shown():
            found = Evaluation.load(run.folder)
            st.dataframe(summary(found), hide_index=True, height="content", alt="Summary of the evaluation")
            st.caption(errors.plain(found.caption))
    results = _results(run.folder)
    if results is not None:
        with st.expander(f"Results ({len(results)} rows)", expanded=not load_figures(run.folder)):
            st.dataframe(results, hide_index=True, alt=f"Results of {run.name}")
    if run.manifest:
        with st.expander("Manifest"):
            st.json(run.manifest, expanded=1)


def _buttons(lab: session.Lab, run: RunRecord, other: bool) -> None:
    is_pack = (run.folder / "pack.json").is_file()
    busy = lab.job is not None
    with st.container(horizontal=True):
        can_go_on = run.state == "interrupted" and (run.is_batch or run.kind == MEMORY)  # a study: by its command
        if can_go_on and st.button("Resume", type="primary", disabled=busy):
            with errors.shown():
                if run.kind == MEMORY:
                    lab.start(MEMORY, "Going on with a study", work.resume_memory(lab.plain, run.folder))
                else:
                    lab.start(batch.SLOT, "Going on with a batch", work.resume(lab.plain, run.folder))
                st.rerun()
        if is_pack:
            if st.button(
                "Put its edits in force",
                disabled=busy or other or bool(len(lab.lm.ledger)),
                help="Needs an empty ledger: Overview, Load another model, begins a new one.",
            ):
                with errors.shown():
                    lab.lm.load_edits(run.folder)
                    lab.saved = lab.state
                    st.rerun()
            if st.button("Evaluate", disabled=busy or other, help="Every score, beside the unedited model."):
                with errors.shown():
                    lab.start(SLOT, "Evaluating", work.evaluate(lab.plain, run.folder, lab.runs_root))
                    st.rerun()
        if run.is_batch and run.state != "interrupted":
            again = "The same facts, method and settings, from the base."
            if st.button("Run again", disabled=busy or other, help=again):
                with errors.shown():
                    plan, _, facts = read_run(run.folder)
                    lab.start(batch.SLOT, "Editing a batch", work.batch(lab.plain, facts, plan, lab.runs_root))
                    st.rerun()
        _open_link(run)
        if notebooks.can_write(run):
            downloads.notebook("Notebook", lambda: notebooks.of_run(run), run.name)
        downloads.folder("Run folder (zip)", run.folder)
    line = commands.of_run(run)
    if line is not None:
        st.code(line, language="bash", wrap_lines=True)


def _open_link(run: RunRecord) -> None:
    asked = run.manifest.get("asked")
    if run.kind == "locate" and asked:
        config: dict[str, Any] = run.manifest.get("config", {})
        named = {"loc_noise": "noise", "loc_n": "samples", "loc_seed": "seed", "loc_win": "window"}
        link = {f"loc_{name}": value for name, value in asked.items() if value}
        link |= {key: config[name] for key, name in named.items() if config.get(name) is not None}
        if st.button("Open with these settings"):
            links.go("views/locate.py", link)


def _results(folder: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(folder / "results.parquet")
    except (OSError, ValueError):
        return None


def summary(found: Evaluation) -> pd.DataFrame:
    """An evaluation's lines, as people read them."""
    return pd.DataFrame(
        [
            {
                "metric": line.metric,
                "unedited": line.base.mean,
                "edited": line.edited.mean,
                "95 % from": line.edited.low,
                "to": line.edited.high,
                "n": line.edited.n,
                "chance": line.chance,
            }
            for line in found.lines
        ]
    )


page()
