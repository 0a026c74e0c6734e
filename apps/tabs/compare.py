"""Two to six runs beside each other: how they were made, what they scored, and what of it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pandas as pd
import streamlit as st

from editlab.evaluation.compare import compare
from editlab.evaluation.results import Evaluation
from editlab.runs.records import RunRecord
from editlab.viz.scores import score_points

from .. import commands, downloads, errors, links

MOST = 6
MADE_BY = ("kind", "config", "base", "dtype", "device", "versions")  # of a manifest: what a run's numbers rest on


def draw(runs: list[RunRecord]) -> None:
    """Draw the tab."""
    by_name = {run.name: run for run in runs}
    evaluated = [run.name for run in runs if is_evaluation(run)]
    chosen = st.multiselect(
        "Runs", list(by_name), (evaluated if len(evaluated) > 1 else list(by_name))[:2], max_selections=MOST,
        **links.bound("rn_ids"), help=f"Two to {MOST}; the first is what the others are compared with.",
    )  # fmt: skip
    if len(chosen) < 2:
        st.info("Choose at least two runs.")
        return
    st.markdown("**What differs in how they were made**")
    differs = differences({name: by_name[name].manifest for name in chosen})
    st.dataframe(differs, hide_index=True, height="content", alt=f"{len(differs)} settings differ")
    missing = [name for name in chosen if name not in evaluated]
    if missing:
        st.info(
            f"{errors.plain(', '.join(missing))}: open it and press Evaluate.",
            title="Scores can be compared only between evaluations.",
        )
    measured = [by_name[name] for name in chosen if name in evaluated]
    if len(measured) > 1:
        with errors.shown():
            _scores(measured)


def is_evaluation(run: RunRecord) -> bool:
    """Whether the folder holds an evaluation."""
    return (run.folder / "evaluation.json").is_file()


def _scores(runs: list[RunRecord]) -> None:
    found = {run.name: Evaluation.load(run.folder) for run in runs}
    metrics = shared_metrics(found)
    if not metrics:
        st.warning(
            "They measured different things: there is no score that all of them have.", title="Nothing to compare."
        )
        return
    metric = st.selectbox("Score", metrics, **links.bound("rn_metric"), help="One at a time: scores have own scales.")
    links.check("rn_metric", "score", metric, "not all of these runs have it")
    lines = {name: evaluation[metric].edited for name, evaluation in found.items()}
    left, right = st.columns([3, 2])
    left.plotly_chart(
        score_points(lines, metric),
        key="rn_scores",
        alt=f"{metric}: " + ", ".join(f"{name} {line.mean:.3g}" for name, line in lines.items()),
        config=downloads.image_options(f"{metric}-of-{len(lines)}-runs"),
    )
    table = pd.DataFrame(
        [{"run": n, "score": e.mean, "95 % from": e.low, "to": e.high, "n": e.n} for n, e in lines.items()]
    )
    right.dataframe(table, hide_index=True, height="content", alt=f"{metric} of each run")
    first, *others = runs
    for other in others:
        _paired(found, first, other)


def _paired(found: Mapping[str, Evaluation], first: RunRecord, other: RunRecord) -> None:
    st.markdown(
        f"**{errors.plain(other.name)} minus {errors.plain(first.name)}**, over shared items; p from a paired "
        "permutation test, q adjusted for the number of scores"
    )
    comparison = compare(found[first.name], found[other.name])
    for remark in comparison.remarks:
        st.warning(errors.plain(remark))
    table = comparison.to_pandas()
    st.dataframe(table, hide_index=True, height="content", alt=f"{len(table)} scores, and their differences")
    st.code(commands.of_folder("runs compare", first.folder, other.folder), language="bash", wrap_lines=True)


def shared_metrics(found: Mapping[str, Evaluation]) -> list[str]:
    """The scores that every evaluation has, in the first one's order."""
    first, *others = [[line.metric for line in evaluation.lines] for evaluation in found.values()]
    return [metric for metric in first if all(metric in other for other in others)]


def differences(manifests: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The settings, models and versions that are not the same in all manifests; a column for each run."""
    flat = {name: _flat({k: manifest.get(k) for k in MADE_BY}) for name, manifest in manifests.items()}
    settings = list(dict.fromkeys(key for values in flat.values() for key in values))
    rows = [
        {"setting": key, **{name: str(values.get(key, "")) for name, values in flat.items()}}
        for key in settings
        if any(a.get(key) != b.get(key) for a, b in pairwise(flat.values()))
    ]
    return pd.DataFrame(rows, columns=["setting", *flat])


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        out |= _flat(inner, f"{name}.") if isinstance(inner, dict) else {name: inner}
    return out
