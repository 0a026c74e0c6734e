"""Figures of memory: curves with their intervals and the level of chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.runs.memory.acquired import AcquireResult
    from editlab.runs.memory.curves import StudyResult
    from editlab.runs.memory.live import SoFar

SHARE = {"title": "share of studied texts", "range": [-0.03, 1.03], "tickformat": ".0%"}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
START = 0.5  # where t = 0 stands on a logarithmic axis


def memory_exposures(result: StudyResult) -> go.Figure:
    """Recognition and exact recall after each exposure, a colour a kind of pair."""
    import plotly.graph_objects as go

    figure = go.Figure()
    curve = result.curve[result.curve["t"] == 0]
    for i, kind in enumerate(result.kinds):
        for j, measure in enumerate(("recognition", "recall")):
            rows = curve[(curve["kind"] == kind) & (curve["measure"] == measure)]
            add_band(figure, rows["exposure"], rows, f"{measure}, {kind}", i if len(result.kinds) > 1 else j, j)
    _add_level(figure, result)
    return _finish(figure, result, {"title": "exposures", "dtick": 1})


def memory_retention(result: StudyResult) -> go.Figure:
    """Recognition and exact recall against updates of further training, with the best fit of each."""
    import numpy as np
    import plotly.graph_objects as go

    figure = go.Figure()
    curve = result.curve[result.curve["exposure"] == result.settings.exposures]
    end = int(curve["t"].max())
    for i, kind in enumerate(result.kinds):
        for j, measure in enumerate(("recognition", "recall")):
            rows = curve[(curve["kind"] == kind) & (curve["measure"] == measure)]
            colour = i if len(result.kinds) > 1 else j
            add_band(figure, log_times(rows["t"]), rows, f"{measure}, {kind}", colour, j)
            fits = result.fits[kind].get(measure, [])
            if fits:
                before = result.value("recall", exposure=0, kind=kind).mean
                level = result.level("recognition", kind) if measure == "recognition" else before
                top = 1.0 if measure == "recognition" else result.value("recall", kind=kind).mean
                t = np.geomspace(1, end, 60)
                figure.add_scatter(
                    x=t,
                    y=level + (top - level) * fits[0].at(t),
                    name=f"{fits[0].family} (R² {fits[0].r2:.2f})",
                    mode="lines",
                    line={"color": COLOURS[colour], "dash": "dot", "width": 1},
                )
    _add_level(figure, result)
    return _finish(figure, result, log_axis(curve["t"].unique()))


def memory_items(result: StudyResult) -> go.Figure:
    """Items down, times across: which are still recalled exactly, the longest-lived on top."""
    import numpy as np
    import plotly.graph_objects as go

    t, recalled = result.item_matrix("exact")
    order = np.argsort(-recalled.sum(1), kind="stable")
    figure = go.Figure(
        go.Heatmap(
            z=recalled[order],
            x=[str(x) for x in t],
            y=list(range(1, len(order) + 1)),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            showscale=False,
            hovertemplate="item %{y}, %{x} updates: %{z:.0f}<extra></extra>",
        )
    )
    figure.update_layout(
        title="Exact recall of each item (bright: recalled)",
        xaxis_title="updates of further training",
        yaxis={"autorange": "reversed", "title": "items, by how long they last"},
    )
    return figure


def memory_losses(result: StudyResult) -> go.Figure:
    """Losses of studied texts and foils before and after the study, on shared bins."""
    from plotly.subplots import make_subplots

    p = result.pairs
    figure = make_subplots(2, 1, shared_xaxes=True, subplot_titles=("before the study", "after it"))
    last = result.settings.exposures
    high = float(max(p["loss", role].max() for role in ("studied", "foil")))
    bins = {"start": 0.0, "end": high, "size": max(high, 1e-6) / 40}
    for row, exposure in enumerate((0, last), 1):
        here = p[(p["exposure"] == exposure) & (p["later"] == 0)]
        for i, role in enumerate(("studied", "foil")):
            figure.add_histogram(
                x=here["loss", role],
                xbins=bins,
                name=role,
                marker_color=COLOURS[i],
                opacity=0.6,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_layout(barmode="overlay", legend=LEGEND, xaxis2_title="mean loss of a text (nats)", margin={"t": 60})
    return figure


def memory_acquisition(result: AcquireResult) -> go.Figure:
    """Rise of log-probability along the run, a panel a scenario, a colour a depth; dotted lines are injections."""
    from plotly.subplots import make_subplots

    curve = result.curve
    scenarios = list(dict.fromkeys(curve["scenario"]))
    figure = make_subplots(1, len(scenarios), subplot_titles=scenarios, shared_yaxes=True, horizontal_spacing=0.03)
    for column, scenario in enumerate(scenarios, 1):
        for i, depth in enumerate(dict.fromkeys(curve["depth"])):
            rows = curve[(curve["scenario"] == scenario) & (curve["depth"] == depth)]
            if len(rows):  # a cut passage may have no probe of some depth
                add_band(figure, rows["t"], rows, depth, i, place={"row": 1, "col": column}, legend=column == 1)
        shown = {"never": (), "once": result.settings.injected[:1]}.get(scenario, result.settings.injected)
        for t in shown:
            figure.add_vline(x=t, line_dash="dot", line_color="gray", row=1, col=column)
    figure.update_xaxes(title="updates")
    figure.update_yaxes(title="rise of log-probability (nats a token)", col=1)
    figure.update_layout(
        title={"text": f"{result.model}: {result.settings.seeds} seeds; bands 95 %, over passages", "y": 0.98},
        legend={"orientation": "h", "y": -0.2},
        margin={"t": 90},
        height=460,
    )
    return figure


def memory_retainability(result: AcquireResult) -> go.Figure:
    """The share of what was gained that is left, against updates since the last maximum, on a logarithmic axis."""
    import plotly.graph_objects as go

    from editlab.probes.memory.acquisition import DEPTHS

    figure = go.Figure()
    for i, depth in enumerate(DEPTHS):
        for j, scenario in enumerate(("paraphrase", "duplication", "once")):
            if not ((result.rows["scenario"] == scenario) & (result.rows["depth"] == depth)).any():
                continue  # no probe of what was injected
            found = result.acquired(scenario, depth)
            a, _ = found.decay()
            figure.add_scatter(
                x=log_times(found.times),
                y=found.retainability,
                name=f"{depth}, {scenario} (n={int(found.kept.sum())}, {a:+.2f} lost per decade)",
                mode="lines+markers",
                line={"color": COLOURS[i], "dash": DASHES[j]},
                marker={"symbol": MARKERS[j]},
            )
    figure.add_hline(y=0, line_dash="dash", line_color="gray", annotation_text="nothing left")
    figure.update_layout(
        title={"text": f"{result.model}: retainability", "y": 0.98},
        xaxis=log_axis([0, *(t for t in found.times if t)]) | {"title": "updates since the last maximum"},
        yaxis={"title": "share of the gain that is left"},
        margin={"t": 60},
    )
    return figure


def memory_live(found: SoFar) -> go.Figure:
    """Means so far, against updates since each course began."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (series, rows) in enumerate(found.curves.groupby("series", sort=False)):
        figure.add_scatter(
            x=rows["update"],
            y=rows["value"],
            name=str(series),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[(i + i // len(COLOURS)) % len(DASHES)]},
            marker={"symbol": MARKERS[i % len(MARKERS)]},
            customdata=rows["n"],
            hovertemplate="update %{x}: %{y:.3f} (n=%{customdata})<extra>%{fullData.name}</extra>",
        )
    if found.is_share:
        figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_layout(
        xaxis={"title": "updates", "rangemode": "tozero"}, yaxis={"title": found.measure}, legend=LEGEND, height=340
    )
    return figure


def add_band(
    figure: go.Figure,
    x: Any,
    rows: pd.DataFrame,
    name: str,
    colour: int,
    form: int | None = None,
    *,
    place: dict[str, int] | None = None,
    legend: bool = True,
) -> None:
    """A line with its 95 % band; `rows` has mean, low, high and n."""
    where = place or {}
    form = colour if form is None else form
    xs = list(x)
    shade = COLOURS[colour % len(COLOURS)]
    figure.add_scatter(
        x=[*xs, *xs[::-1]],
        y=[*rows["high"], *rows["low"][::-1]],
        fill="toself",
        fillcolor=shade,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        **where,
    )
    figure.add_scatter(
        x=xs,
        y=rows["mean"],
        name=f"{name} (n={int(rows['n'].max())})",
        mode="lines+markers",
        line={"color": shade, "dash": DASHES[form % len(DASHES)]},
        marker={"symbol": MARKERS[form % len(MARKERS)]},
        legendgroup=name,
        customdata=rows[["low", "high"]],
        hovertemplate="%{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra>%{fullData.name}</extra>",
        showlegend=legend,
        **where,
    )


def add_chance(figure: go.Figure, level: float = 0.5, what: str = "chance of recognition") -> None:
    """The level that knows nothing, drawn and named."""
    figure.add_hline(y=level, line_dash="dash", line_color="gray", annotation_text=what, annotation_font_color="gray")


def _add_level(figure: go.Figure, result: StudyResult) -> None:
    """The level of recognition without memory; without counterbalancing, that of every kind before any study."""
    if result.settings.counterbalance:
        add_chance(figure)
        return
    for kind in result.kinds:
        of = f" of {kind}" if len(result.kinds) > 1 else ""
        add_chance(figure, result.level("recognition", kind), f"recognition{of} before any study")


def log_times(t: Any) -> list[float]:
    """Times on a logarithmic axis, on which 0 stands apart."""
    return [START if x == 0 else float(x) for x in t]


def log_axis(times: Any) -> dict[str, Any]:
    """A logarithmic axis of updates, whose first tick is 0."""
    ticks = sorted(int(t) for t in times)
    return {
        "type": "log",
        "title": "updates of further training (0 stands apart)",
        "tickvals": log_times(ticks),
        "ticktext": [str(t) for t in ticks],
    }


def _finish(figure: go.Figure, result: StudyResult, xaxis: dict[str, Any]) -> go.Figure:
    n = result.value("recognition").n
    seeds = result.rows["seed"].nunique()
    figure.update_layout(
        title={
            "text": f"{result.model}: {n} studied texts, {seeds} seeds; bands: 95 %",
            "y": 0.98,
        },
        xaxis=xaxis,
        yaxis=SHARE,
        legend=LEGEND,
        margin={"t": 90},
    )
    return figure
