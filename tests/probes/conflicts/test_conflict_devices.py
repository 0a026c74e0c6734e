"""Head maps, pruning, flow and contrasts on a pretended device: no operation mixes two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conflict_items import known_items, made_items
from tiny_lm import make_lm

from editlab import LM
from editlab.probes.conflicts.contrast import contrast_generate
from editlab.probes.conflicts.flow import flow
from editlab.probes.conflicts.heads import HeadSettings, map_heads
from editlab.probes.conflicts.juice import DualRun
from editlab.probes.conflicts.path_patching import head_scores
from editlab.probes.conflicts.prune import PruneSettings, prune


def test_maps_pruning_and_flow_of_a_fact_world(
    there: Callable[[LM], LM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    monkeypatch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 2)
    lm = there(LM.from_pretrained("factworld-gpt2"))
    items = known_items(lm, subjects=16, draws=1)
    heads = map_heads(lm, items.split("discovery"), HeadSettings(exact=False))
    assert prune(lm, items, heads, PruneSettings(controls=2, grid=(1,), ablation="mean")).headline
    assert flow(lm, items.split("discovery")).headline


def test_patching_and_contrasts(there: Callable[[LM], LM]) -> None:
    lm = there(make_lm("llama", num_hidden_layers=2))
    for estimand in ("path", "direct", "total", "gradient"):
        head_scores(lm, made_items(lm), estimand=estimand)
    for a in (0.5, None):
        assert contrast_generate(lm, ["The old", "In"], ["old", "the"], a=a, max_new_tokens=3)
    DualRun(lm, [lm.tokens("The old town")[0]], [(0, 1)]).every({(0, 1): 0.5})
