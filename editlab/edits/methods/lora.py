"""LoRA-FT: fine-tune low-rank changes of the attention's query and value projections (arXiv 2106.09685).

W' = W + (alpha / rank) B A, B = 0 at the start, in all layers; rank, alpha and the projections are those with which
EasyEdit runs it as a baseline. Where query, key and value are one matrix, that matrix is trained, as peft does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from editlab.edits.finetune import FineTuneSettings, fine_tune, hardly_learned
from editlab.errors import AdapterError, RequestError
from editlab.hooks.adapter import weight_ref
from editlab.progress import OnStep, silent
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


class Config(FineTuneSettings):
    """Settings of `lora`."""

    steps: int = Field(70, ge=1, le=10_000, description="steps of Adam at most (EasyEdit: 70)")
    lr: float = Field(5e-3, gt=0, description="Adam's learning rate (EasyEdit: 5e-3)")
    rank: int = Field(8, ge=1, description="rank of each change")
    alpha: float = Field(32.0, gt=0, description="scale: the change is alpha / rank times the factors' product")
    seed: int = Field(0, ge=0, description="seed of the first factors")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The low-rank changes that fine-tuning on all facts gives.

    Raises:
        RequestError: there is no fact. AdapterError: the projections could not be told apart. EditFailed: the loss is
            not finite, or the targets are answered already.
    """
    if not facts:
        raise RequestError("lora was given no fact.", "Give at least one.")
    paths = [part.path for layer in lm.adapter.layers for part in (layer.q, layer.v) if part is not None]
    if not paths:
        raise AdapterError(f"The query and value projections of {lm.adapter.family} are not known.", "Use 'ft'.")
    refs = [weight_ref(lm.model, path) for path in dict.fromkeys(paths)]
    generator = torch.Generator().manual_seed(config.seed)
    scale = config.alpha / config.rank
    factors: dict[str, tuple[Tensor, Tensor]] = {}  # in the stored layout: (rows, r) and (r, cols)
    for ref in refs:
        rows, cols = lm.model.get_parameter(ref.name).shape
        rank = min(config.rank, rows, cols)
        fan_in = rows if ref.transposed else cols
        first = torch.empty((rows, rank) if ref.transposed else (rank, cols))
        bound = 1 / math.sqrt(fan_in)
        first = first.uniform_(-bound, bound, generator=generator).to(lm.device)
        second = torch.zeros((rank, cols) if ref.transposed else (rows, rank), device=lm.device)
        left, right = (first, second) if ref.transposed else (second, first)
        factors[ref.name] = (left.requires_grad_(), right.requires_grad_())
    losses = fine_tune(
        lm,
        facts,
        [t for pair in factors.values() for t in pair],
        lambda: {name: scale * left @ right for name, (left, right) in factors.items()},
        config,
        on_step,
    )
    deltas = {name: Delta(scale * left.detach(), right.detach()) for name, (left, right) in factors.items()}
    norms = [deltas[r.name].norm() / float(lm.model.get_parameter(r.name).float().norm()) for r in refs]
    return Edit(
        method="lora",
        config=config.model_dump(mode="json"),
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas=deltas,
        info={
            "parameter": f"{len(deltas)} projections",
            "rank": config.rank,
            "relative_norm": max(norms),
            "losses": losses,
            "warnings": hardly_learned(losses),
        },
    )
