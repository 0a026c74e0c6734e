"""The model: what it is, what can be done with it, and what it says with and without the edits."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st
from editlab_apps import answers, card, commands, downloads, errors, links, panel, session, work
from editlab_apps.answers import Answer
from editlab_apps.models import Source
from editlab_apps.sharing import is_shared

TITLE = "Overview"
SECTION = "Model"
ORDER = 0

BASE, EDITED = "Base model", "With your edits"  # the places where answers stand
SAMPLE = "ov.sample"
SMALL = "factworld-llama"


def page() -> None:
    """Draw the page."""
    st.header("Overview")
    failed = session.failure()
    if failed is not None:
        errors.show(failed)
    found = st.session_state.get(session.LAB)
    if found is not None:
        _card(found)
        _try_it(found)
    if found is None and st.button(f"Use {SMALL}", help="A tiny model that knows facts; it comes with editlab."):
        _switch(Source(SMALL))
    with st.expander("Load another model" if found else "Load a model", expanded=found is None):
        _load(found)


def _card(lab: session.Lab) -> None:
    facts = card.facts(lab.lm, lab.parity)
    shown = [(name, value) for name, value in facts.items() if name in card.HEADLINES]
    for column, (name, value) in zip(st.columns(len(shown)), shown, strict=True):
        column.metric(name, value)
    with st.expander("Model card and capabilities"):
        left, right = st.columns(2)
        rows = pd.DataFrame({"property": list(facts), "value": [str(v) for v in facts.values()]})
        left.dataframe(rows, hide_index=True, height="content", alt="Properties of the model")
        can = pd.DataFrame(card.capabilities(lab.lm))
        right.dataframe(can, hide_index=True, height="content", alt="What can be done with this model")
        with left:
            downloads.json_file("Model card (JSON)", lambda: {**facts, "base_hash": lab.lm.base_hash}, "model-card")


def _try_it(lab: session.Lab) -> None:
    st.subheader("Try it")
    has_chat = bool(lab.lm.tokenizer.chat_template)
    with st.form("ov_form"):
        prompt = st.text_input("Prompt", lab.example.text, **links.text("ov_prompt"))
        columns = st.columns([2, 2, 2, 2], vertical_alignment="bottom")
        tokens = columns[0].number_input("New tokens, at most", 1, 256, 12, **links.bound("ov_tokens"))
        greedy = columns[1].toggle(
            "Greedy",
            value=True,
            **links.bound("ov_greedy"),
            help="Always the most probable token; else sampled from all.",
        )
        in_chat = columns[2].toggle(
            "Chat template",
            disabled=not has_chat,
            **links.bound("ov_chat"),
            help="As a turn of a conversation." if has_chat else "This model's tokenizer has no chat template.",
        )
        wanted = columns[3].form_submit_button("Answer", type="primary", width="stretch")
    links.check("ov_tokens", "new tokens", tokens, "1 to 256")
    if wanted or SAMPLE not in st.session_state:
        st.session_state[SAMPLE] = st.session_state.get(SAMPLE, 0) + 1  # each press draws another one
    sample = 0 if greedy else st.session_state[SAMPLE]
    with errors.shown():
        text = lab.lm.as_chat(prompt) if in_chat and has_chat else prompt
        models = {BASE: lab.plain} | ({EDITED: lab.lm} if lab.lm.ledger.active else {})
        said = {name: answers.ask(lab, name, lm, text, tokens, sample=sample) for name, lm in models.items()}
        states = {name: answer for name, answer in said.items() if answer is not None}
        if len(states) < len(models):
            answers.watch(lab, *models)
            return
        base = states[BASE]
        columns = st.columns(2)
        for column, (name, said) in zip(columns, states.items(), strict=False):
            with column:
                _text(name, said, base)
        # Beside each other with edits; else the one table stands where the edited answer would be.
        for column, (name, said) in zip(columns if len(states) > 1 else columns[1:], states.items(), strict=False):
            with column:
                _tokens(name, said)
        rows = [{"model": n, "prompt": text, "answer": s.text} for n, s in states.items()]
        with st.container(horizontal=True):
            downloads.csv("Answers (CSV)", lambda: pd.DataFrame(rows), "answers")
        panel.command(commands.generate(lab.lm.name, text, tokens))


def _text(name: str, said: Answer, base: Answer) -> None:
    st.markdown(f"**{name}**")
    st.code(said.text.strip() or "(nothing)", language=None, wrap_lines=True)
    if said is not base:
        st.caption("Same answer as the base." if said.text == base.text else "Another answer than the base.")
    elif st.session_state[session.LAB].lm.ledger.active:
        st.caption("Without any edit.")
    else:
        st.caption("There is no edit yet. What an edited model says will stand beside this.")
        st.page_link("views/edit.py", label="Edit a fact")


def _tokens(name: str, said: Answer) -> None:
    table = said.tokens.to_pandas()
    table["token"] = table["token"].map(repr)
    st.dataframe(
        table,
        hide_index=True,
        height="content",
        alt=f"{name}: most probable next token {table['token'][0]} at {table['probability'][0]:.0%}",
        column_config={
            "token": st.column_config.TextColumn("most probable next tokens"),
            "probability": st.column_config.ProgressColumn("probability", format="percent", min_value=0, max_value=1),
        },
    )


def _load(lab: session.Lab | None) -> None:
    shared = is_shared()
    with st.form("ov_model"):
        name = st.selectbox(
            "Model",
            card.registered(),
            index=None if lab is None else 0,
            accept_new_options=not shared,
            key="ov_path",
            help="A registered name."
            if shared
            else "A registered name, a folder with config.json and *.safetensors, or a hub id.",
        )
        columns = st.columns(4, vertical_alignment="bottom")
        dtype = columns[0].selectbox("Precision", ["float32", "bfloat16", "auto"], key="ov_dtype")
        device = columns[1].selectbox("Device", ["cpu", "cuda", "auto"], key="ov_device")
        revision = columns[2].text_input(
            "Revision", key="ov_revision", placeholder="newest", help="Branch, tag or commit; of a hub model only."
        )
        wanted = columns[3].form_submit_button("Load", width="stretch")
    if wanted and name:
        source = Source(name, revision or None, dtype or "float32", device or "cpu")
        if lab is not None and lab.is_unsaved:
            _ask(lab, source)
        else:
            _switch(source)


@st.dialog("There are unsaved edits")
def _ask(lab: session.Lab, source: Source) -> None:
    """Another model means another ledger."""
    st.write("The ledger belongs to the model that is loaded now. Loading another one begins a new ledger.")
    columns: list[Any] = st.columns(3)
    if columns[0].button("Save and load", type="primary"):
        with errors.shown():
            work.save_ledger(lab.lm, lab.reports.values(), lab.runs_root)
            _switch(source)
    if columns[1].button("Discard and load"):
        _switch(source)
    if columns[2].button("Stay"):
        st.rerun()


def _switch(source: Source) -> None:
    session.load(source)
    st.rerun()


page()
