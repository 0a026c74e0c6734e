"""Figures of a study: scores by method, what they cost, and how they depend on the batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.studies.results import StudyResult

SHARES = ("efficacy", "paraphrase", "neighbourhood", "score")
COSTS = ("perplexity", "control_kl", "norm_ratio")
PANELS = 7


def figures(result: StudyResult) -> dict[str, go.Figure]:
    """By name: always "scores", the others where the study has what they show."""
    points = _labelled(result.points)
    found = {"scores": score_panels(points, _labelled(result.runs), result.metrics)}
    costs = [name for name in COSTS if name in result.metrics]
    if "score" in result.metrics and costs:
        found["costs"] = cost_scatter(points, costs[0])
    if points["batch_size"].nunique() > 1 and "score" in result.metrics:
        found["batch_size"] = batch_lines(points, "score")
    return found


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """With one column "who": the method, and whatever else tells the points of a model apart."""
    others = [k for k in ("settings", "facts", "n_facts", "mode", "batch_size") if rows[k].nunique() > 1]
    who = [", ".join(str(row[k]) for k in ("method", *others) if str(row[k])) for row in rows.to_dict("records")]
    return rows.assign(who=who)


def score_panels(points: pd.DataFrame, runs: pd.DataFrame, names: list[str]) -> go.Figure:
    """A panel a metric: methods down, value across, a colour and marker a model; single seeds as small dots."""
    from plotly.subplots import make_subplots

    first = [name for name in (*SHARES, *COSTS) if name in names]
    shown = (first + [name for name in names if name not in first])[:PANELS]
    figure: go.Figure = make_subplots(1, len(shown), shared_yaxes=True, subplot_titles=shown, horizontal_spacing=0.03)
    rows = list(dict.fromkeys(points["who"]))
    models = list(dict.fromkeys(points["model"]))
    for i, model in enumerate(models):
        for column, name in enumerate(shown, 1):
            here = (points["model"] == model) & (points["metric"] == name)
            found, seeds = points[here], runs[(runs["model"] == model) & (runs["metric"] == name)]
            # Models a little apart, so that none hides another.
            offset = 0.22 * (i - (len(models) - 1) / 2)
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "symbol": MARKERS[i % len(MARKERS)]}
            figure.add_scatter(
                x=seeds["edited_mean"], y=[rows.index(w) + offset for w in seeds["who"]], mode="markers",
                marker={**look, "size": 4, "opacity": 0.5}, showlegend=False, customdata=seeds["seed"],
                hovertemplate=f"{model}, seed %{{customdata}}<br>{name} %{{x:.4g}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=found["edited_mean"], y=[rows.index(w) + offset for w in found["who"]], mode="markers", name=model,
                legendgroup=model, showlegend=column == 1, marker={**look, "size": 10}, error_x=_bars(found),
                customdata=found[["edited_n", "base_mean"]],
                hovertemplate=f"{model}<br>{name} %{{x:.4g}}, n=%{{customdata[0]}}, unedited %{{customdata[1]:.4g}}"
                "<extra></extra>", row=1, col=column,
            )  # fmt: skip
            if name in SHARES:
                figure.update_xaxes(range=[-0.04, 1.04], row=1, col=column)
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, autorange="reversed", automargin=True)
    figure.update_layout(height=180 + 56 * len(rows), legend={"orientation": "h", "y": -0.2})
    return figure


def _bars(found: pd.DataFrame) -> dict[str, Any]:
    return {
        "array": found["edited_high"] - found["edited_mean"],
        "arrayminus": found["edited_mean"] - found["edited_low"],
    }


def cost_scatter(points: pd.DataFrame, cost: str) -> go.Figure:
    """What a method gains (S) against what it costs (perplexity over the unedited model's, or drift)."""
    import plotly.graph_objects as go

    wide = points.pivot_table(index=["model", "who"], columns="metric", values="edited_mean", sort=False).reset_index()
    base = points[points["metric"] == cost].set_index(["model", "who"])["base_mean"]
    wide["cost"] = [
        row[cost] / (base[row["model"], row["who"]] if cost == "perplexity" else 1.0) for row in wide.to_dict("records")
    ]
    figure = go.Figure()
    for i, (model, found) in enumerate(wide.groupby("model", sort=False)):
        figure.add_scatter(
            x=found["cost"], y=found["score"], text=found["who"], mode="markers+text", name=str(model),
            textposition="top center", marker={"color": COLOURS[i % len(COLOURS)], "symbol": MARKERS[i % len(MARKERS)],
            "size": 10}, hovertemplate="%{text}<br>S %{y:.3g}, cost %{x:.4g}<extra></extra>",
        )  # fmt: skip
    title = "perplexity over the unedited model's" if cost == "perplexity" else cost
    figure.update_layout(xaxis_title=title, yaxis_title="S (harmonic mean)", height=460)
    return figure


def batch_lines(points: pd.DataFrame, metric: str) -> go.Figure:
    """A score against the facts of one edit, a line a model and method."""
    import plotly.graph_objects as go

    figure = go.Figure()
    chosen = points[points["metric"] == metric]
    for i, (key, found) in enumerate(chosen.groupby(["model", "method", "settings", "mode"], sort=False)):
        found = found.sort_values("batch_size")
        figure.add_scatter(
            x=found["batch_size"], y=found["edited_mean"], error_y=_bars(found), mode="lines+markers",
            name=", ".join(part for part in map(str, key) if part),
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]},
        )  # fmt: skip
    figure.update_layout(xaxis={"title": "facts of one edit", "type": "log"}, yaxis_title=metric, height=460)
    return figure
