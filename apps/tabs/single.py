"""One fact: solved and measured on a fork, looked at, and then kept or dropped."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from editlab.data.formats import read_fact
from editlab.facts import Fact
from editlab.report import EditReport
from editlab.viz.edits import edit_probabilities
from editlab.viz.files import page_html
from editlab.viz.routing import routing_points

from .. import cells, commands, downloads, errors, links, panel, plugins, session, work
from . import method as methods

SLOT = "edit.preview"
_BESIDE = "editlab.ed_beside"  # the fact that the fields of paraphrases and neighbours were filled for, and with what
# In pixels: what changed is in sight on a narrow screen too.
WIDTHS = {
    name: st.column_config.TextColumn(width=w) for name, w in {"prompt": 150, "before": 105, "after": 105}.items()
}
KINDS = {"rewrite": "the edit itself", "paraphrase": "paraphrase", "neighbour": "neighbour"}

SUBJECT = (
    "What the fact is about. Methods that write at its last token need it; grace, wise, ultraedit, ft and lora do not."
)


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        method = methods.pick("ed_method", work.FOR_ONE)
    right.caption(errors.plain(plugins.summary(method)))
    with errors.shown():
        row, layers, changed, wanted = _form(lab, method)
        if wanted:
            with errors.shown():
                chosen = methods.checked(lab.lm, method, layers, changed)
                fact = read_fact(row)
                lab.start(SLOT, "Editing", work.preview(lab.lm, fact, method, chosen.settings))
                st.rerun()
    kept = len(lab.lm.ledger.active)
    if kept:
        nothing = f"{kept} edit{'s are' if kept > 1 else ' is'} in force."
        hint = "Overview shows what the model says now, Ledger takes edits back; or preview another one."
    else:
        nothing, hint = "Nothing previewed yet.", "Press Preview edit: nothing is kept until you say so."
    found = panel.result(lab, SLOT, nothing, hint)
    if found is not None:
        _result(lab, found)


def _form(lab: session.Lab, method: str) -> tuple[dict[str, Any], str, dict[str, Any], bool]:
    example = lab.example
    with st.form("ed_form"):
        prompt = st.text_input(
            "Prompt",
            example.text,
            **links.text("ed_prompt"),
            help="Holds the subject, and ends where the answer begins.",
        )
        columns = st.columns(3)
        subject = columns[0].text_input("Subject", example.subject, **links.text("ed_subject"), help=SUBJECT)
        target = columns[1].text_input("New answer", example.target_new, **links.text("ed_target"))
        true = columns[2].text_input(
            "Present answer",
            example.target_true or "",
            **links.text("ed_true"),
            help="Optional: its probability is shown.",
        )
        layers, changed = methods.settings_form(lab.lm, method, "ed", "ed_layers")
        first = _beside_first(example, prompt, subject)
        with st.expander("Paraphrases and neighbours"):
            columns = st.columns(2)
            paraphrases = columns[0].text_area(
                "Paraphrases, one a line",
                first["ed_paraphrases"],
                **links.text("ed_paraphrases"),
                help="Other ways to ask. Empty: suggested, and marked so.",
            )
            neighbours = columns[1].text_area(
                "Neighbours, one a line",
                first["ed_neighbours"],
                **links.text("ed_neighbours"),
                help=f"Prompts that must keep their answers. Each may state its own after {cells.ANSWER}; else it is "
                "what the model says before the edit. Empty: suggested, and marked so.",
            )
        st.session_state[_BESIDE] = (prompt, subject), {"ed_paraphrases": paraphrases, "ed_neighbours": neighbours}
        wanted = st.form_submit_button("Preview edit", type="primary", disabled=lab.job is not None)
    links.check("ed_layers", "layers", layers, f"0 to {lab.lm.adapter.n_layers - 1}")
    row = {
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "target_true": true or None,
        "paraphrases": _lines(paraphrases),
        "neighbours": [cells.neighbour_of(line) for line in _lines(neighbours)],
    }
    return row, layers, changed, wanted


def fill_beside(fact: Fact) -> None:
    """Put a fact's paraphrases and neighbours into the form, which is about to get the fact itself."""
    texts = _texts_beside(fact)
    st.session_state.update(texts)
    st.session_state[_BESIDE] = (fact.text, fact.subject), texts


def _beside_first(example: Fact, prompt: str, subject: str) -> dict[str, str]:
    """What the fields of paraphrases and neighbours begin with.

    What stands there for one fact says nothing about another: it goes when the fact changes and it does not.
    """
    texts = _texts_beside(example)
    was, then = st.session_state.get(_BESIDE, ((example.text, example.subject), texts))
    if (prompt, subject) != was:
        for key, text in then.items():
            if st.session_state.get(key) == text:
                st.session_state[key] = ""
    return texts if (prompt, subject) == (example.text, example.subject) else dict.fromkeys(texts, "")


def _texts_beside(fact: Fact) -> dict[str, str]:
    return {
        "ed_paraphrases": "\n".join(fact.paraphrases),
        "ed_neighbours": "\n".join(cells.text_of(q) for q in fact.neighbours),
    }


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _result(lab: session.Lab, found: work.Preview) -> None:
    report = found.report
    st.subheader("Preview")
    if found.parent != lab.state:
        st.warning("Preview it again to keep it.", title="The ledger has changed since this was solved.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Keep edit", type="primary", disabled=found.parent != lab.state):
            with errors.shown():
                _keep(lab, found)
                st.rerun()
        if st.button("Discard"):
            del lab.outcomes[SLOT]
            st.rerun()
        st.markdown(errors.plain(report.headline))
    _warnings(lab, report)
    _side_by_side(report)
    st.dataframe(
        _table(report),
        hide_index=True,
        height="content",
        alt=f"Answers before and after: {report.headline}",
        column_config=WIDTHS,
    )
    apart = [f"{r.prompt} ({r.apart})" for r in report.rows if r.apart]
    if apart:
        st.caption(errors.plain(f"Not counted among the neighbours: {'; '.join(apart)}."))
    _drift(found)
    st.plotly_chart(
        edit_probabilities(report),
        key="ed_chart",
        alt=f"Probabilities before and after. {report.headline}",
        config=downloads.image_options("edit"),
    )
    _routing(found)
    _take_away(lab, found)


def _keep(lab: session.Lab, found: work.Preview) -> None:
    entry = lab.lm.ledger.apply(found.report.entry.edit)
    lab.reports[entry.id] = EditReport(entry, found.report.fact, found.report.rows, found.report.seconds)
    del lab.outcomes[SLOT]
    st.toast(f"Kept as {entry.id}. The ledger has {len(lab.lm.ledger.active)} active.")


def _warnings(lab: session.Lab, report: EditReport) -> None:
    for warning in report.entry.edit.info.get("warnings", []):
        st.warning(errors.plain(str(warning)))
    if not report.fires:
        p = report.rows[0].p_new
        st.warning(
            f"After the edit the new answer has a probability of {p[1] if p else 0:.1%}. Try another layer.",
            title="The edit does not yet fire.",
        )
    changed = [r for r in report.rows if r.may_show_damage and r.changed]
    if changed:
        st.warning(
            errors.plain("; ".join(r.prompt for r in changed)),
            title=f"{len(changed)} prompt{'s' if len(changed) > 1 else ''} that should keep the answer changed.",
        )
    if lab.lm.tokenizer.chat_template:
        st.caption("The edit was made with the raw prompt; in a conversation the model may answer otherwise.")


def _side_by_side(report: EditReport) -> None:
    row = report.rows[0]
    for i, (column, name) in enumerate(zip(st.columns(2), ("Before", "After"), strict=True)):
        with column:
            st.markdown(f"**{name}**: {errors.plain(row.prompt)}")
            st.code(row.answer[i].strip() or "(nothing)", language=None, wrap_lines=True)
            with st.container(horizontal=True):
                for role, pair in (("new", row.p_new), ("present", row.p_true)):
                    if pair is not None:
                        text = report.fact.target_new if role == "new" else report.fact.target_true
                        delta = f"{pair[1] - pair[0]:+.1%}" if i else None
                        st.metric(f"P({text})", f"{pair[i]:.1%}", delta, delta_color="off")


def _table(report: EditReport) -> pd.DataFrame:
    def percent(pair: tuple[float, float] | None) -> str:
        return "" if pair is None else f"{pair[0]:.0%} → {pair[1]:.0%}"

    def first(answer: str) -> str:
        return answer.strip().split("\n")[0]

    return pd.DataFrame(
        [
            {
                "what": KINDS.get(r.kind, r.kind) + (" (suggested)" if r.is_suggested else ""),
                "prompt": r.prompt,
                "changed": ("same" if not r.changed else "changed" if r.apart else "● changed"),
                "before": first(r.answer[0]),
                "after": first(r.answer[1]),
                f"P({report.fact.target_new})": percent(r.p_new),
                "own answer": r.own or "",
                "P(own answer)": percent(r.p_true),
            }
            for r in report.rows
        ]
    )


def _drift(found: work.Preview) -> None:
    kl, same = (found.drift[name].edited for name in work.DRIFT)
    with st.container(border=True):
        columns = st.columns([3, 2, 2, 3], vertical_alignment="center")
        columns[0].markdown(
            f"**Drift** from the unedited model, at {kl.n} control prompts that have nothing to do with the edit"
        )
        columns[1].metric("Mean KL, nats", f"{kl.mean:.4f}", help="Of the next token. 0: nothing moved.")
        columns[2].metric("Same next token", f"{same.mean:.0%}", help="Share of control prompts with the same one.")
        # On a scale on which 0.1 nats, a tenth of what undoes most batches, fills the bar.
        columns[3].progress(
            min(1.0, kl.mean / 0.1), text="small" if kl.mean < 0.01 else "noticeable" if kl.mean < 0.1 else "large"
        )


def _routing(found: work.Preview) -> None:
    if not found.routing.routes:
        return
    st.markdown("**Who answers**: a prompt goes to the side memory if its indicator is above the threshold (over 1)")
    left, right = st.columns(2)
    table = found.routing.to_pandas().drop(columns="path")
    left.dataframe(table, hide_index=True, height="content", alt="Which side memory answers each prompt")
    right.plotly_chart(
        routing_points(found.routing),
        key="ed_routing",
        alt="Indicator of each prompt over its threshold",
        config=downloads.image_options("routing"),
    )


def _take_away(lab: session.Lab, found: work.Preview) -> None:
    report = found.report
    fact: Fact = report.fact
    settings = {
        k: v for k, v in report.entry.edit.config.items() if v != methods.own_default(report.entry.edit.method, k)
    }
    with st.container(horizontal=True):
        downloads.csv("CSV", report.to_pandas, "edit")
        downloads.json_file(
            "JSON", lambda: {"prompts": report.to_records(), "info": report.entry.edit.info, "config": settings}, "edit"
        )
        figure = edit_probabilities(report)
        downloads.html("HTML", lambda: page_html(fact.text, report._repr_html_(), [figure]), "edit")
    panel.command(commands.edit(lab.lm.name, fact, report.entry.edit.method, settings))
