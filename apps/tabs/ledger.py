"""The ledger: what was changed, taking it back, and the model as it was after the first k edits."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import streamlit as st

from editlab.facts import Fact
from editlab.state.ledger import Entry

from .. import answers, clicks, downloads, errors, links, panel, session, work
from . import single

SLOT = "edit.replay"
PLACE = "ledger.state"
TABLE, CHOSEN = "ed_entries", "ed_entry"


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    entries = list(lab.lm.ledger)
    if not entries:
        st.info(
            "Preview an edit and keep it, or put the edits of a run in force on the Runs page.",
            title="The ledger is empty: this is the base model, bit for bit.",
        )
        return
    st.dataframe(
        _table(entries),
        hide_index=True,
        height="content",
        alt=f"The ledger: {len(lab.lm.ledger.active)} of {len(entries)} edits active",
        key=TABLE,
        on_select=lambda: clicks.take_row(st.session_state, TABLE, CHOSEN, [entry.id for entry in entries]),
        selection_mode="single-row",
    )
    if panel.progress(lab, SLOT):
        return
    session.show_outcome_error(lab.outcomes.get(SLOT))
    _change(lab, entries)
    _states(lab)


def _table(entries: list[Entry]) -> pd.DataFrame:
    """The entries, those marked that share a subject or were solved on another state."""
    shared = Counter(subject for entry in entries if entry.is_active for subject in subjects(entry))
    rows = []
    for entry in entries:
        record = entry.to_record()
        notes = ["solved on another state"] * entry.solved_elsewhere
        notes += [f"shares the subject {s}" for s in sorted(subjects(entry)) if entry.is_active and shared[s] > 1]
        rows.append(
            {
                "entry": record["id"],
                "state": record["state"],
                "what": record["what"],
                "method": record["method"],
                "note": "; ".join(notes),
                "norm": f"{record['norm']:.3g}",
                "changes": record["parameters"].replace(".weight", "").replace("model.", ""),
                "created": record["created"][:16].replace("T", " "),
            }
        )
    return pd.DataFrame(rows)


def subjects(entry: Entry) -> set[str]:
    """What an edit is about."""
    return {str(request["subject"]) for request in entry.edit.requests if request.get("subject")}


def _change(lab: session.Lab, entries: list[Entry]) -> None:
    by_id = {entry.id: entry for entry in entries}
    busy = lab.job is not None
    chosen = st.selectbox(
        "Entry",
        list(by_id),
        index=len(by_id) - 1,
        format_func=lambda i: f"{i}  {by_id[i].edit.summary}",
        key=CHOSEN,
    )
    entry = by_id[chosen]
    later = [e for e in entries[entries.index(entry) + 1 :] if e.is_active]
    with st.container(horizontal=True):
        if st.button("Remove", disabled=busy or not entry.is_active, help="Take it out; later edits stay as they are."):
            with errors.shown():
                lab.lm.undo(entry.id)
                st.rerun()
        if st.button(
            "Remove and replay",
            disabled=busy or not entry.is_active or not later,
            help=f"Take it out and solve the later ones again: {len(later)} to solve.",
        ):
            with errors.shown():
                state = lab.state
                work_on = work.replay(lab.lm, entry.id)
                lab.start(SLOT, "Solving later edits again", work_on, lambda twin: lab.take_over(twin, state))
                st.rerun()
        if st.button("Redo", disabled=busy or entry.is_active, help="Put it back, in its old place."):
            with errors.shown():
                lab.lm.redo(entry.id)
                st.rerun()
        if entry.edit.requests:
            st.button(
                "Duplicate to Single", on_click=_duplicate, args=(entry,), help="Its fact and method in the form."
            )
        downloads.pack("This edit (zip)", lab.lm, f"edit-{entry.id}", only=[entry.id])
        downloads.pack("Whole ledger (zip)", lab.lm, f"edits-{lab.lm.base_hash[:8]}")


def _duplicate(entry: Entry) -> None:
    """Fill the Single tab's form; a callback, because these widgets have been drawn when the button is."""
    request = entry.edit.requests[0]
    single.fill_beside(Fact.model_validate(request))
    filled = {
        "ed_method": entry.edit.method,
        "ed_subject": request.get("subject", ""),
        "ed_target": request["target_new"],
    }
    filled |= {"ed_prompt": request["prompt"].replace("{}", request.get("subject", ""))}
    filled |= {"ed_true": request.get("target_true") or "", "ed_tab": "Single"}
    st.session_state.update(filled)


def _states(lab: session.Lab) -> None:
    """A slider over the states that the ledger went through."""
    active = lab.lm.ledger.active
    st.markdown("**The model after the first k edits**")
    columns = st.columns([3, 2])
    prompt = columns[0].text_input("Prompt", lab.example.text, **links.text("ed_state_prompt"))
    if active:
        count = columns[1].slider("Edits in force", 0, len(active), len(active), key="ed_state")
    else:
        count = 0
        columns[1].caption("No edit is active.")
    with errors.shown():
        said = answers.ask(lab, PLACE, lab.lm, prompt, 12, first=count)
        if said is None:
            answers.watch(lab, PLACE)
            return
        st.code(said.text.strip() or "(nothing)", language=None, wrap_lines=True)
        names = ", ".join(entry.id for entry in active[:count]) or "none: the base"
        st.caption(f"Edits in force: {names}.")
