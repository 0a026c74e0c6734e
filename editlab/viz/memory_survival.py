"""Figures of taught facts under further training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.memory import add_band, log_axis, log_times
from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.runs.memory.lasting import SurviveResult


def memory_survival(result: SurviveResult) -> go.Figure:
    """Recall, recognition, and what is kept of gain and of weights, against further updates; a colour an engine."""
    from plotly.subplots import make_subplots

    measures = ("recall", "recognition", "gain kept", "weight change kept")
    titles = ("recall (exact)", "recognition (among others)", "log-probability gain kept", "what was written, kept")
    figure = make_subplots(1, 4, subplot_titles=titles, horizontal_spacing=0.04)
    # A side memory changes no weight: what is kept of it is that prompts reach it.
    curve = result.curve.replace({"measure": {"prompts routed": "weight change kept"}})
    for column, measure in enumerate(measures, 1):
        for i, engine in enumerate(result.engines):
            rows = curve[(curve["engine"] == engine) & (curve["measure"] == measure)]
            if len(rows):
                where = {"row": 1, "col": column}
                form = i + i // len(COLOURS)  # a seventh engine has the first one's colour, and another dash
                add_band(figure, log_times(rows["t"]), rows, engine, i, form, place=where, legend=column == 1)
        for before in curve[curve["measure"] == measure]["before"].dropna().head(1):
            figure.add_hline(
                y=before, line_dash="dash", line_color="gray", annotation_text="untaught", row=1, col=column
            )
    figure.update_xaxes(**log_axis(curve["t"].unique()))
    figure.update_yaxes(range=[-0.03, 1.05], tickformat=".0%")
    n = result.rows["item"].nunique()
    streams = f"{result.settings.seeds} stream{'s' if result.settings.seeds > 1 else ''} of filler"
    what = f"{n} facts, {streams}, lr {result.settings.later_lr:g}; bands 95 %"
    figure.update_layout(
        title={"text": f"{result.model}: {what}", "y": 0.98},
        legend={"orientation": "h", "y": -0.2},
        margin={"t": 90},
        height=480,
    )
    return figure


def memory_lifetimes(result: SurviveResult) -> go.Figure:
    """Share of facts that no probe has missed yet (Kaplan and Meier), engine by engine; half-lives where they cross."""
    from plotly.subplots import make_subplots

    names = ("recall", "recognition")
    figure = make_subplots(1, 2, subplot_titles=[f"{n} without a miss" for n in names], shared_yaxes=True)
    times: set[float] = set()
    for column, name in enumerate(names, 1):
        for i, (engine, found) in enumerate(result.lifetimes.items()):
            lives = found[name]
            times |= set(lives.times)
            figure.add_scatter(
                x=log_times(lives.times),
                y=lives.share,
                name=f"{engine} (n={lives.n})",
                legendgroup=engine,
                showlegend=column == 1,
                mode="lines+markers",
                marker={"symbol": MARKERS[i % len(MARKERS)]},
                line={
                    "color": COLOURS[i % len(COLOURS)],
                    "dash": DASHES[(i + i // len(COLOURS)) % len(DASHES)],
                    "shape": "hv",
                },
                hovertemplate="%{x}: %{y:.0%}<extra>%{fullData.name}</extra>",
                row=1,
                col=column,
            )
    figure.add_hline(y=0.5, line_dash="dash", line_color="gray", annotation_text="half of them")
    figure.update_xaxes(**log_axis(times))
    figure.update_yaxes(range=[-0.03, 1.05], tickformat=".0%")
    what = "of what was there at first; recall's n is in the legend"
    figure.update_layout(
        title={"text": f"{result.model}: {what}", "y": 0.98},
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 90},
        height=440,
    )
    return figure
