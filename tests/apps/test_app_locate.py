"""The Locate page beyond one trace: a click on its map, and the average over facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from app_driver import App
from editlab_apps.tabs.trace_one import CHART, LAYER, TOKEN, take_clicked

from editlab.runs.records import list_runs
from editlab.viz.locate import with_points


def test_a_clicked_cell_is_the_one_below_the_map(app: App, place: Path) -> None:
    app.open("locate").fill(loc_n=2).do("Trace")
    found = app.lab.outcomes["locate"].result
    name, trace = found.folder.name, found.result
    layer, token = 1, len(trace.tokens) - 1
    figure = with_points(trace.plot())
    points = figure.data[1]
    index = next(
        i for i, (x, y) in enumerate(zip(points.x, points.y, strict=True)) if x == layer and y[0] == str(token)
    )
    state: dict[str, object] = {f"{CHART}.{name}": {"selection": {"points": [{"point_index": index}]}}}
    take_clicked(state, name, len(trace.effect))
    chosen = {key: state[f"{key}.{name}"] for key in (LAYER, TOKEN)}
    assert chosen == {LAYER: layer, TOKEN: token}
    assert np.isclose(points.customdata[index], trace.restored[layer, token].mean())
    for key, value in chosen.items():
        app.at.session_state[f"{key}.{name}"] = value
    app.run()
    assert app.metrics["P restored, mean over samples"] == f"{trace.restored[layer, token].mean():.1%}"


def test_points_lie_on_the_cells_of_a_heat_map() -> None:
    figure = with_points(go.Figure(go.Heatmap(z=[[1, 2, 3], [4, 5, 6]], x=[0, 1, 2], y=["a", "b"])))
    points = figure.data[1]
    assert list(zip(points.x, points.y, points.customdata, strict=True)) == [
        (0, "a", 1), (1, "a", 2), (2, "a", 3), (0, "b", 4), (1, "b", 5), (2, "b", 6),
    ]  # fmt: skip


def test_facts_are_traced_and_averaged(app: App, place: Path) -> None:
    app.open("locate", loc_tab="Many facts").fill(loc_facts=5, loc_n=2).do("Trace them")
    traced, left_out = int(app.metrics["Facts traced"]), int(app.metrics["Left out"])
    assert traced + left_out == 5 and traced > 1
    (run,) = list_runs(place / "runs")
    assert run.kind == "locate" and f"{traced} facts" in run.headline
    assert len(json.loads((run.folder / "manifest.json").read_text())["left_out"]) == left_out
    app.fill(loc_many_table=True).run()
    table = app.table("role")
    assert set(table["n"]) <= set(range(1, traced + 1))
    # Restored after the last block, what is not read at the end does nothing, and that is certain.
    nothing = table[(table["layer"] == 5) & (table["role"] != "last token")]
    assert len(nothing) and (nothing[["effect", "low", "high"]].abs() < 1e-6).all(axis=None)
    assert any("--file facts.jsonl --limit 5" in code for code in app.codes)
    (use,) = (b.label for b in app.at.button if b.label.startswith("Use layer"))
    app.click(use)
    assert app.at.session_state["ed_layers"] == use.split()[2]


def test_the_subjects_tokens_are_marked_before_anything_is_traced(app: App) -> None:
    app.open("locate").fill(loc_prompt="The capital of {} is", loc_subject="Sri Lanka", loc_n=3).run()
    (shown,) = (c.value for c in app.at.main.caption if "noise samples each" in c.value)
    marked = "".join(part.split("]")[0] for part in shown.split(":orange-background[")[1:])
    assert marked.replace("\\", "").replace(" ", "") == "SriLanka" and "3 noise samples" in shown
    app.fill(loc_subject="Atlantis", loc_prompt="The capital of France is").run()
    assert "The subject does not stand in the prompt." in [c.value for c in app.at.main.caption]
