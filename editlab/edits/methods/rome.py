"""ROME: write one fact into one MLP matrix by a rank-one update (arXiv 2202.05262), with one key throughout.

1. k: the average key at the subject's last token over contexts (eq. 3); m: the average output W k + b.
2. v* = m_0 + delta: the output that makes the model say the target (eq. 4), m_0 from the prompt itself.
3. W' = W + (v* - m) (C^-1 k)^T / (k^T C^-1 k) (eq. 2), the hard-constraint solution of the shared objective.

Deviation: the reference code uses the average key in C^-1 k but the bare prompt's key in the denominator, which can
blow the update up ("disabling edits", arXiv 2403.07175, 2406.11263); here it is one key, as in R-ROME. The two-key
original is `rome-legacy`. A prompt whose key stands apart in one of its forms (the subject is the very first token, for
one; see `targets.py`) brings a second key, and both constraints are met in one solve; such an edit has rank two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.edits.preserve import preserving
from editlab.edits.settings import LocateEditSettings
from editlab.edits.single import write_one
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("C", "0", "one fact: D = (v* - m)(C^-1 k)^T / (k^T C^-1 k)")


class Config(LocateEditSettings):
    """Settings of `rome`."""


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The rank-one change that writes one fact.

    Raises:
        RequestError: not exactly one fact. EditFailed: the optimisation diverged or the keys are dependent.
    """
    return write_one(lm, "rome", facts, config, lambda layer: preserving(lm, layer, config, on_step), on_step)
