"""The Conflicts page: asking, the head map, measuring what pruning does, keeping and undoing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_driver import App
from editlab_apps.notebooks import of_run
from editlab_apps.tabs.conflict_prune import CHART, HEADS, take_clicked

from editlab.runs.records import list_runs
from editlab.viz.conflicts import head_map
from editlab.viz.locate import with_points


@pytest.fixture(autouse=True)
def little_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 2)


def test_conflicts_are_asked_pruned_kept_and_undone(app: App, place: Path) -> None:
    app.open("conflicts", cf_n="60", cf_k="4", cf_seed="3").do("Ask")
    found = app.lab.outcomes["conflicts"].result
    behaviour, heads = found.result.behaviour, found.result.heads
    assert app.metrics["From memory"] == "100%" and app.metrics["Conflicts, subjects"] == "60, 20"
    assert any("conflicts prune --model factworld-llama" in code for code in app.codes)
    app.fill(cf_table=True, cf_heads_table=True).run()
    assert list(app.table("condition")["condition"])[:2] == ["closed-book", "substitution"]
    assert len(app.table("kv_group")) == heads.mean.size
    base = app.lab.state
    app.do("Measure effect")
    pruning = app.lab.outcomes["conflicts.prune"].result.result
    assert [row.k for row in pruning.rows] == [1, 3, 4] and len(pruning.controls[0].rises) == 10
    assert pruning.rows[-1].heads == tuple(heads.ranked("memory")[:4])
    assert behaviour.items.settings.subjects == 20
    assert f"From context, K={pruning.best.k}" in app.metrics and "Closed-book recall kept" in app.metrics
    assert app.lab.state == base  # measured on a fork
    app.click(next(label for label in app.enabled if label.startswith("Keep pruning")))
    (entry,) = app.lab.lm.ledger.active
    assert entry.edit.method == "prune" and "pruned" in app.sidebar and app.lab.state != base
    assert "The ledger has changed since this was asked." in app.said
    app.click("Undo last")
    assert app.lab.state == base
    runs = list_runs(place / "runs")
    assert [run.kind for run in runs] == ["conflicts", "conflicts"]
    for run in runs:
        cells = ["".join(cell["source"]) for cell in of_run(run)["cells"] if cell["cell_type"] == "code"]
        assert all(compile(cell, run.name, "exec") for cell in cells) and "'subjects': 20, 'seed': 3" in cells[2]
    assert "'grid': [1, 3, 4]" in cells[4] and "'controls': 10" in cells[4] and "ranked=read_heads('" in cells[4]


def test_a_clicked_head_joins_those_chosen_by_hand_and_leaves_them(app: App, place: Path) -> None:
    app.open("conflicts", cf_n="24").do("Ask")
    found = app.lab.outcomes["conflicts"].result
    heads, name = found.result.heads, found.folder.name
    points = with_points(head_map(heads)).data[1]
    index = next(i for i, (x, y) in enumerate(zip(points.x, points.y, strict=True)) if (x, y[0]) == (4, "6"))
    assert np.isclose(points.customdata[index], heads.mean[4, 6])
    state: dict[str, object] = {f"{CHART}.{name}": {"selection": {"points": [{"point_index": index}]}}, HEADS: "1.2"}
    take_clicked(state, name, len(heads.mean))
    assert state[HEADS] == "1.2, 4.6"
    take_clicked(state, name, len(heads.mean))
    assert state[HEADS] == "1.2"
    app.fill(cf_heads="9.9").run()
    assert "There is no layer 9" in app.said
    app.fill(cf_heads="1.2, 4.6").run().do("Measure effect")
    pruning = app.lab.outcomes["conflicts.prune"].result.result
    assert pruning.rows[-1].heads == ((1, 2), (4, 6))


def test_a_link_that_asks_for_too_much_and_a_relation_that_is_not_known(app: App) -> None:
    app.open("conflicts", cf_n="9000", cf_ctx="poem")
    assert "9000" in app.said and "poem" in app.said
