"""The settings of causal tracing, the same for one prompt and for many facts."""

from __future__ import annotations

from typing import Any

import streamlit as st

from editlab.probes.trace import Config
from editlab.probes.trace_peaks import Suggestion

from .. import errors, links, session

KINDS = {"residual": "residual stream", "mlp": "MLP output", "attention": "attention output"}


def kind_field() -> str:
    """What is restored."""
    kind = st.selectbox("State traced", **links.chosen("loc_kind", list(KINDS), KINDS.__getitem__))
    links.check("loc_kind", "state", kind, f"there are {', '.join(KINDS)}")
    return str(kind)


def settings_fields(lab: session.Lab) -> dict[str, Any]:
    """The settings in a closed expander; inside of a form."""
    default, most = Config(), min(15, lab.lm.adapter.n_layers)
    with st.expander("More settings"):
        columns = st.columns(4)
        window = columns[0].number_input(
            "Window",
            1,
            most,
            None,
            placeholder="by kind",
            **links.bound("loc_win"),
            help="Layers restored together. Default: 1 for the residual stream, a fifth of the model for others.",
        )
        noise = columns[1].number_input(
            "Noise",
            0.5,
            10.0,
            default.noise,
            0.5,
            **links.bound("loc_noise"),
            help="In standard deviations of subjects' embeddings (paper: 3).",
        )
        samples = columns[2].number_input("Noise samples", 1, 50, default.samples, **links.bound("loc_n"))
        seed = columns[3].number_input("Seed", 0, None, default.seed, **links.bound("loc_seed"))
    return {"window": window, "noise": noise, "samples": samples, "seed": seed}


def chosen(lab: session.Lab, kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults; says what a link asked for and could not have."""
    last = lab.lm.adapter.n_layers - 1
    most = min(15, last + 1)
    links.check("loc_win", "window", values["window"], f"1 to {most}; this model has layers 0 to {last}")
    links.check("loc_noise", "noise", values["noise"], "0.5 to 10")
    links.check("loc_n", "noise samples", values["samples"], "1 to 50")
    links.check("loc_seed", "seed", values["seed"], "0 or more")
    default = Config()
    return {k: v for k, v in {"kind": kind, **values}.items() if v != getattr(default, k)}


def suggestion(found: Suggestion, key: str, link: dict[str, str]) -> None:
    """Layers worth trying and what says so; with a way to Edit where there are any."""
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.write(errors.plain(found.text))
        if found.layer is not None and st.button(f"Use layer {found.layer} in Edit", key=key):
            links.go("views/edit.py", {"ed_tab": "Single", "ed_layers": str(found.layer)} | link)
