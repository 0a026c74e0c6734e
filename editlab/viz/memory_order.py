"""Figure of sequence order recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.memory import add_chance
from editlab.viz.style import COLOURS, MARKERS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.runs.memory.ordered import OrderResult


def memory_order(result: OrderResult) -> go.Figure:
    """Left: debiased accuracy by distance, a colour a condition. Right: how often the answer is A, whatever A is."""
    from plotly.subplots import make_subplots

    titles = ("right order, letters cancelled", "says A")
    figure = make_subplots(1, 2, subplot_titles=titles, column_widths=[0.72, 0.28], shared_yaxes=True)
    curve = result.curve
    for i, condition in enumerate(dict.fromkeys(curve["condition"])):
        here = curve[curve["condition"] == condition]
        rows = here[(here["measure"] == "debiased") & (here["distance"] != "all")]
        n = int(here["n"].max())
        figure.add_scatter(
            x=rows["distance"],
            y=rows["mean"],
            error_y=_bars(rows),
            name=f"{condition} (n={n})",
            mode="lines+markers",
            line={"color": COLOURS[i]},
            marker={"symbol": MARKERS[i]},
            row=1,
            col=1,
        )
        says = here[(here["measure"] == "says_a") & (here["distance"] == "all")]
        figure.add_bar(
            x=[condition],
            y=says["mean"],
            error_y=_bars(says),
            marker_color=COLOURS[i],
            showlegend=False,
            row=1,
            col=2,
        )
    if result.settings.file is None:  # the order of real text can be guessed, as 'none' shows
        add_chance(figure, what="chance")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_xaxes(title="words between their beginnings", type="category", row=1, col=1)
    what = f"{result.rows['seed'].nunique()} seeds; bars 95 %, over texts"
    figure.update_layout(
        title={"text": f"{result.model}: {what}", "y": 0.98},
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 90},
    )
    return figure


def _bars(rows: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["mean"]).to_list(),
        "arrayminus": (rows["mean"] - rows["low"]).to_list(),
    }
