"""Few-shot memory of the default model: recognised after one exposure, recalled after three, forgotten in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from editlab.lm import LM
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings, preset
from editlab.runs.memory.verbs import VERBS

pytestmark = pytest.mark.model


def test_the_quick_preset_recognises_recalls_and_forgets_in_order(tmp_path: Path) -> None:
    """Two seeds of "quick". Over three seeds: AUC 0.93 to 1, recall 0.81 to 0.94, and 0.13 to 0.31 after 20 updates."""
    lm = LM.from_pretrained()
    settings = StudySettings(**preset("quick", retain=True) | {"seeds": 2, "times": (20,)})
    result = run_memory(lm, VERBS["retain"], settings, tmp_path / "run")
    assert result.value("AUC", exposure=1).mean >= 0.85
    assert result.value("recall", exposure=0).mean == 0 and result.value("recall").mean >= 0.8
    assert result.value("recall", t=20).mean < result.value("recall").mean - 0.25
    assert result.value("recognition", t=20).mean >= 0.9
    assert lm.state_hash == lm.base_hash
