"""Norm-anchor scaling: solved values keep the length that they have on the unedited model.

In a long sequence each edit lengthens the matrix, a longer matrix gives longer outputs, and the next values are solved
from those: lengths grow until the model breaks. So every solved value v* = m + delta, with m the MLP's output at the
subject, is rescaled to one length before it is written: the mean ||v*|| of pilot edits on the unedited weights
("Norm Anchors Make Model Edits Last", arXiv 2602.02543). The released code also drops an edit whose value is longer
than twice that; here no edit is dropped without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.data.relations import relation
from editlab.edits.settings import LocateEditSettings
from editlab.edits.solver import Metric
from editlab.edits.targets import forms, shifts
from editlab.progress import OnStep, silent

if TYPE_CHECKING:
    from editlab.lm import LM

PILOTS = 16  # capitals of countries; what is written does not matter, only how long it is


def anchor_norm(lm: LM, layer: int, settings: LocateEditSettings, metric: Metric, on_step: OnStep = silent) -> float:
    """Mean ||v*|| of the pilot edits on the unedited weights; their values are kept, so it costs once a model."""
    base = lm.pristine()
    pilots = relation("capital").facts(stem="The capital of {} is", paraphrases=0, neighbours=0)
    chosen = [form for of in forms(base, pilots[:PILOTS], layer, settings, metric) for form in of]
    values = shifts(base, layer, chosen, settings, on_step=on_step)
    solved = [form.canonical_value + v.delta for form, v in zip(chosen, values, strict=True)]
    return float(torch.stack(solved).double().norm(dim=1).mean())


def rescaled(values: Tensor, norm: float) -> Tensor:
    """(d_model, B) columns of length `norm`."""
    return torch.nn.functional.normalize(values, dim=0) * norm
