"""Few-shot memory of the default model: recognised after one exposure, recalled after three, forgotten in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from editlab.lm import LM
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.settings import StudySettings, preset
from editlab.runs.memory.verbs import VERBS

pytestmark = pytest.mark.model


def test_the_quick_preset_on_fewer_texts(tmp_path: Path) -> None:
    """Half the texts of "quick" in half its batches, so that it stays under a minute.

    Measured (seed 0): AUC 0.95 after one exposure; 5 of 8 recalled exactly after three, 7 one update later and 1 after
    ten; recognition 1.0 from the first exposure on.
    """
    lm = LM.from_pretrained()
    small = {"items": 8, "batch": 2, "filler_batch": 2, "times": (1, 10)}
    result = run_memory(lm, VERBS["retain"], StudySettings(**preset("quick", retain=True) | small), tmp_path / "run")
    assert result.value("AUC", exposure=1).mean >= 0.85
    assert result.value("recall", exposure=0).mean == 0 and result.value("recall").mean >= 0.5
    assert result.value("recall", t=10).mean <= result.value("recall").mean - 0.25
    assert result.value("recognition", t=10).mean >= 0.9
    assert lm.state_hash == lm.base_hash
