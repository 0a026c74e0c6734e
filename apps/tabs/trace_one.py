"""The causal trace of one prompt: a map of layers and tokens, a cell at a time, and the layers that it suggests."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pandas as pd
import streamlit as st

from editlab.probes.trace_results import Trace
from editlab.viz.files import page_html
from editlab.viz.locate import trace_heatmap, with_points

from .. import commands, downloads, errors, links, panel, session, work
from . import trace_form

SLOT = "locate"
CHART, LAYER, TOKEN = "loc_chart", "loc_layer", "loc_token"


def draw(lab: session.Lab) -> None:
    """Draw the tab."""
    asked, settings, wanted = _form(lab)
    if wanted:
        with errors.shown():
            lab.start(SLOT, "Tracing", work.locate(lab.lm, asked, settings, lab.runs_root))
            st.rerun()
    ran = panel.result(lab, SLOT, "Nothing traced yet.", "Press Trace: the map of layers and tokens will stand here.")
    if ran is not None:
        _result(ran)


def _form(lab: session.Lab) -> tuple[dict[str, Any], dict[str, Any], bool]:
    example = lab.example
    with st.container(border=True):  # no form, so that the tokens below are those of what was typed
        prompt = st.text_input("Prompt", example.text, **links.text("loc_prompt"), help="Ends where the answer begins.")
        columns = st.columns(3)
        subject = columns[0].text_input(
            "Subject", example.subject, **links.text("loc_subject"), help="Must stand in the prompt, once."
        )
        answer = columns[1].text_input(
            "Answer", "", placeholder="what the model says", **links.text("loc_answer"), help="Its first token counts."
        )
        with columns[2]:
            kind = trace_form.kind_field()
        values = trace_form.settings_fields(lab)
        wanted = st.button("Trace", type="primary", disabled=lab.job is not None)
    asked = {"prompt": prompt, "subject": subject, "answer": answer or None}
    settings = trace_form.chosen(lab, kind, values)
    st.caption(_size(lab, prompt, subject, values["samples"]))
    panel.command(commands.locate(lab.lm.name, asked, settings))
    return asked, settings, wanted


def _size(lab: session.Lab, prompt: str, subject: str, samples: int) -> str:
    """What would be traced: the tokens, those of the subject marked, and how much work that is."""
    text = prompt.replace("{}", subject)
    start = text.find(subject.strip()) if subject.strip() else -1
    if start < 0 or not text.strip():
        return "The subject does not stand in the prompt."
    stop = start + len(subject.strip())
    spans = [(first, last) for first, last in lab.lm.tokens(text)[1] if last > first]
    inside = [first < stop and last > start for first, last in spans]
    pieces = [errors.plain(text[first:last]) for first, last in spans]
    shown = [f":orange-background[{piece}]" if i else piece for piece, i in zip(pieces, inside, strict=True)]
    cells = lab.lm.adapter.n_layers * (len(spans) - inside.index(True))
    return f"{' · '.join(shown)}. {cells} cells, from the subject on, of {samples} noise samples each."


def _result(ran: work.Ran) -> None:
    found: Trace = ran.result
    st.subheader("Result")
    columns = st.columns(4)
    columns[0].metric("Answer's first token", repr(found.answer))
    columns[1].metric("P clean", f"{found.p_clean:.1%}")
    columns[2].metric("P corrupted", f"{found.p_corrupt.mean():.1%}", f"{-found.gap:.1%}", delta_color="off")
    peak = found.subject_peak
    columns[3].metric(
        "Subject's peak",
        f"layer {peak.layer}" if peak.is_above_noise else "none",
        f"{peak.effect:+.1%} at {found.tokens[peak.column].strip()!r}",
        delta_color="off",
        help="Which state of the subject's tokens restores most, if that is more than the noise samples differ by. The "
        "prompt's last token always restores the answer in the end.",
    )
    figure = with_points(trace_heatmap(found))
    # Half of the height of a map of many tokens is better than scrolling.
    height = min(720, 130 + 30 * len(found.tokens))
    figure.update_layout(height=height, title=None, margin={"t": 24, "r": 16})
    if st.toggle("Show as table", key="loc_table"):
        st.dataframe(found.to_pandas(), hide_index=True, alt="Effect of each layer and token")
    else:
        name = ran.folder.name
        panel.chart(
            figure,
            CHART,
            found.headline,
            name,
            on_select=lambda: take_clicked(st.session_state, name, len(found.effect)),
            selection_mode="points",
        )
    st.caption(errors.plain(found.headline) + " Tokens marked with a star are the subject's.")
    _suggestion(ran, found)
    _cell(found, ran.folder.name)
    with st.container(horizontal=True):
        downloads.csv("CSV", found.to_pandas, ran.folder.name)
        downloads.json_file("JSON", lambda: _as_json(found), ran.folder.name)
        downloads.html("HTML", lambda: page_html(found.prompt, found._repr_html_(), [figure]), ran.folder.name)
        downloads.folder("Run folder (zip)", ran.folder)


def _suggestion(ran: work.Ran, found: Trace) -> None:
    link = {"ed_prompt": found.prompt, "ed_subject": ran.asked["subject"]}
    trace_form.suggestion(found.suggestion, "loc_use", link)


def take_clicked(state: MutableMapping[Any, Any], name: str, n_layers: int) -> None:
    """The cell that was clicked becomes the one below the map of the run `name`."""
    points = state[f"{CHART}.{name}"]["selection"]["points"]
    if points:
        state[f"{TOKEN}.{name}"], state[f"{LAYER}.{name}"] = divmod(points[0]["point_index"], n_layers)


def _cell(found: Trace, name: str) -> None:
    with st.expander("One cell: its noise samples (choose it here, or click it on the map)"):
        columns = st.columns([1, 2, 3])
        n_layers, n_tokens = found.effect.shape
        peak_layer, peak_token = found.peak
        layer = columns[0].number_input("Layer", 0, n_layers - 1, peak_layer, key=f"{LAYER}.{name}")
        token = columns[1].selectbox(
            "Token",
            range(n_tokens),
            index=peak_token,
            format_func=lambda i: f"{i} {found.tokens[i]!r}",
            key=f"{TOKEN}.{name}",
        )
        values = found.restored[layer, token]
        low, high = pd.Series(values).quantile([0.05, 0.95])
        columns[2].metric(
            "P restored, mean over samples", f"{values.mean():.1%}", f"{values.mean() - found.p_corrupt.mean():+.1%}"
        )
        st.caption(
            f"{len(values)} noise samples; nine tenths of them between {low:.1%} and {high:.1%}. Effects up to "
            f"{found.noise[layer, token]:.1%} are noise here."
            if len(values) > 1
            else "One noise sample: no effect can be told from noise."
        )
        table = pd.DataFrame({"corrupted": found.p_corrupt, "restored": values})
        st.bar_chart(table, stack=False, x_label="noise sample", y_label="P(answer)", height=220)


def _as_json(found: Trace) -> dict[str, Any]:
    return {
        "prompt": found.prompt,
        "tokens": found.tokens,
        "subject_tokens": found.subject,
        "answer": found.answer,
        "p_clean": found.p_clean,
        "p_corrupt": found.p_corrupt.tolist(),
        "effect": found.effect.tolist(),
        "noise": found.noise.tolist(),
        "suggested_layers": found.suggestion.layers,
        "suggestion": found.suggestion.text,
        "config": found.config.model_dump(mode="json"),
        "model": found.model,
    }
