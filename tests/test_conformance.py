"""What every method and every probe keeps to, on three tiny architectures; a new file is tested once it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_lm import make_lm

from editlab import LM, registry
from editlab.config import build, settings_of
from editlab.progress import StepInfo

FAMILIES = ["gpt2", "llama", "gptj"]
FACT = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "in the sea"}
PROMPTS = ["The old town by the river", "In the sea", "many years and the stone"]
# The least that still does everything, where a method has such a setting.
QUICK: dict[str, Any] = {"steps": 2, "contexts": {3: 1}, "stats_tokens": 600, "negatives": 4}


def quick(method: str) -> dict[str, Any]:
    return {name: value for name, value in QUICK.items() if name in registry.get(method).Config.model_fields}


def hooks_of(lm: LM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def logits(lm: LM) -> torch.Tensor:
    return lm.forward(lm.encode(PROMPTS))


@pytest.mark.parametrize("kind", ["methods", "probes"])
def test_every_plug_in_explains_itself(kind: str) -> None:
    for name in registry.names(kind):
        module = registry.get(name, kind)
        assert module.__doc__, name
        assert all(row["description"] for row in settings_of(module.Config)), name
        defaults = module.Config()
        again = build(module.Config, json.loads(defaults.model_dump_json()), name)
        assert again == defaults, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", registry.names())
def test_a_method_computes_and_changes_nothing_itself(
    method: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))  # else values may be there already
    lm = make_lm(family)
    before, base = logits(lm), lm.state_hash
    steps: list[StepInfo] = []
    entry = lm.edit([FACT], method, on_step=steps.append, **quick(method))
    assert lm.state_hash != base
    assert steps
    assert entry.edit.method == method
    assert build(registry.get(method).Config, entry.edit.config, method).model_dump(mode="json") == entry.edit.config

    lm.save_edits(tmp_path / "pack")
    other = make_lm(family)
    other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash
    assert torch.equal(logits(other), logits(lm))

    lm.undo(entry.id)
    assert lm.state_hash == base
    assert torch.equal(logits(lm), before)
    assert hooks_of(lm) == 0
    assert all(not p.requires_grad or p.grad is None for p in lm.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probe", registry.names("probes"))
def test_a_probe_reads_and_changes_nothing(probe: str, family: str) -> None:
    lm = make_lm(family)
    base, state = logits(lm), lm.state_hash
    found = lm.probe(PROMPTS, probe)
    rows = found.to_pandas()
    assert found.headline.endswith(".")
    assert {found.x, found.value, found.series} <= set(rows)
    json.dumps(rows.to_dict("records"))
    assert found._repr_html_().count("<tr") > 1
    assert len(found.plot().data) == rows[found.series].nunique()
    assert found.table().row_count == min(len(rows), 40)
    alone = lm.probe(PROMPTS[:1], probe).to_pandas()
    of_first = rows[rows["prompt"] == PROMPTS[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_first, alone, atol=1e-4, rtol=1e-4)  # whatever else is in the batch
    assert lm.state_hash == state
    assert torch.equal(logits(lm), base)
    assert hooks_of(lm) == 0
