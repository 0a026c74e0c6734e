"""Memory against context: who wins, which heads decide, and pruning them."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st
from editlab_apps import commands, conflict_work, downloads, errors, links, panel, session, work
from editlab_apps.tabs import conflict_prune, facts_file

from editlab.data.conflicts import FORMATS, Case, cases_of_facts, cases_of_relation
from editlab.data.relations import relations
from editlab.evaluation.prefixes import settle
from editlab.probes.conflicts.items import ItemSettings
from editlab.viz.conflicts import conflict_shares, head_roles
from editlab.viz.files import page_html

TITLE = "Conflicts"
SECTION = "Analyse"
ORDER = 10

SLOT = "conflicts"
DRAWS = 3
SOURCES = ("bundled", "upload")
STYLES = {
    "substitution": "the prompt itself, completed otherwise",
    "repeated": "the same, twice",
    "reversed": "bare statement in other words",
    "question": "bare statement, then a question",
    "paragraph": "coherent paragraph",
    "irrelevant": "irrelevant (a control)",
}


def page() -> None:
    """Draw the page."""
    st.header("Conflicts")
    lab = session.lab()
    st.caption(
        "A context contradicts what the model knows. Does it answer from memory or from the context, which attention "
        "heads decide, and what does pruning them do?"
    )
    _form(lab)
    hint = "Press Ask: shares of answers and a map of the heads will stand here."
    ran = panel.result(lab, SLOT, "Nothing asked yet.", hint)
    if ran is not None:
        _result(lab, ran)


def _form(lab: session.Lab) -> None:
    source = str(
        st.segmented_control("Facts source", default="bundled", **links.chosen("cf_src", SOURCES, _source_name))
        or "bundled"
    )
    cases: tuple[Case, ...] | None = None
    upload = (
        facts_file.read("cf_file", "Memory's answer is target_true, the context's target_new.")
        if (source == "upload")
        else None
    )
    with st.form("cf_form"):
        columns = st.columns(4)
        names = list(relations())
        relation = str(
            columns[0].selectbox("Relation", names, disabled=source == "upload", **links.bound("cf_rel")) or names[0]
        )
        style = str(columns[1].selectbox("Context style", **links.chosen("cf_ctx", list(FORMATS), _style)))
        n = int(columns[2].number_input("Items", 8, 500, 90, **links.bound("cf_n"), help="Conflicts that are asked."))
        seed = int(columns[3].number_input("Seed", 0, None, 0, **links.bound("cf_seed"), help="Of splits and draws."))
        wanted = st.form_submit_button("Ask", type="primary", disabled=lab.job is not None)
    links.check("cf_rel", "relation", relation, f"there are {', '.join(names)}")
    links.check("cf_ctx", "context style", style, f"there are {', '.join(FORMATS)}")
    links.check("cf_n", "items", n, "8 to 500")
    draws = DRAWS if source == "bundled" else 1
    subjects = max(6, math.ceil(n / draws))
    asked: dict[str, Any] = {"relation": relation} if source == "bundled" else {"file": "facts.jsonl"}
    asked |= {"format": style, "draws": draws, "subjects": subjects, "seed": seed}
    st.caption(
        "Answers are read at the last position, by the model's own next token: no judge. Subjects are split: heads are "
        "found on 30 %, K is chosen on 20 %, pruning is measured on 50 %."
    )
    verbs = ("probe", "heads", "prune")
    panel.command("\n".join(commands.conflicts(verb, lab.lm.name, asked, {}) for verb in verbs))
    if wanted:
        with errors.shown():
            if upload is not None:
                facts_file.show_flawed(upload[1])
                cases = cases_of_facts(settle(lab.lm, upload[0]))
            cases = cases if cases is not None else cases_of_relation(relation)
            settings = ItemSettings(format=style, draws=draws, subjects=subjects, seed=seed)
            lab.outcomes.pop(conflict_prune.SLOT, None)
            lab.start(SLOT, "Asking", conflict_work.analyse(lab.lm, cases, settings, lab.runs_root))
            st.rerun()


def _source_name(source: str) -> str:
    return {"bundled": "Bundled facts", "upload": "Upload"}[source]


def _style(name: str) -> str:
    return STYLES[name]


def _result(lab: session.Lab, ran: work.Ran) -> None:
    found: conflict_work.Analysis = ran.result
    behaviour, heads, name = found.behaviour, found.heads, ran.folder.name
    if found.parent != lab.state:
        st.warning("Ask again to see it as it is now.", title="The ledger has changed since this was asked.")
    st.subheader("Who wins")
    row = next(r for r in behaviour.rows if r.condition == behaviour.items.settings.format)
    columns = st.columns(4)
    for column, source in zip(columns, ("memory", "context", "other"), strict=False):
        share = getattr(row, source)
        column.metric(f"From {source}", f"{share.mean:.0%}", f"{share.low:.0%} to {share.high:.0%}", delta_color="off")
    columns[3].metric("Conflicts, subjects", f"{row.items}, {row.memory.n}")
    figure = conflict_shares(behaviour.rows)
    if st.toggle("Show as table", key="cf_table"):
        st.dataframe(behaviour.to_pandas(), hide_index=True, alt="Shares of answers by condition")
    else:
        panel.chart(figure, "cf_shares", behaviour.headline, name)
    st.caption(errors.plain(f"{behaviour.items.headline} Intervals: 95 %, over subjects."))
    if behaviour.items.rejected:
        with st.expander(f"Left out: {sum(behaviour.items.rejected.values())}"):
            rows = [{"reason": reason, "how many": n} for reason, n in behaviour.items.rejected.items()]
            st.dataframe(rows, hide_index=True, alt="Why facts and draws were left out")
    st.subheader("Which heads")
    conflict_prune.draw(lab, ran)
    with st.expander("What kind of head: recall, copy, copy suppression"):
        alt = "Each head's score without the subject against its score without the context's answer"
        panel.chart(head_roles(heads), "cf_roles", alt, f"{name}-roles")
    with st.container(horizontal=True):
        downloads.csv("Answers as CSV", behaviour.to_pandas, name)
        downloads.csv("Heads as CSV", heads.to_pandas, f"{name}-heads")
        text = behaviour._repr_html_() + heads._repr_html_()
        downloads.html("HTML", lambda: page_html("Conflicts", text, [figure, heads.plot()]), name)
        downloads.folder("Run folder (zip)", ran.folder)


page()
