"""Tracing models that know facts: the effect sits where the fact worlds were made to keep what they know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from editlab import LM
from editlab.data.relations import relation
from editlab.evaluation.known import known
from editlab.probes.trace import Config, trace_many
from editlab.probes.trace_results import ROLES


@pytest.mark.parametrize("name", ["factworld-gpt2", "factworld-llama"])
def test_a_known_fact_is_carried_by_the_subject_early_and_by_the_last_token_late(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    lm = LM.from_pretrained(name)
    facts = [f for f in known(lm, relation("capital")).facts() if " " in f.subject][::3][:8]
    found = trace_many(lm, facts, Config(samples=4))
    assert len(found.effects) >= 6
    assert float((found.p_clean - found.p_corrupt).mean()) > 0.4
    mean = np.nanmean(found.effects, 0)
    subject, end = ROLES.index("last subject token"), ROLES.index("last token")
    gap = float((found.p_clean - found.p_corrupt).mean())
    # Trained to gather what is known at the subject's last token by layer 2, and to fetch it from there.
    assert mean[2, subject] > 0.5 * gap
    assert mean[0, end] < 0.2 * gap and mean[5, end] == pytest.approx(gap, abs=1e-4)
    assert mean[5, subject] < 1e-4
    suggested = found.suggest_layers()
    assert suggested[0] <= 3
