"""FT-L: fine-tune one MLP matrix, no entry moving far; the baseline of ROME (arXiv 2202.05262, appendix E).

Adam on W' of one down projection, projected after each step onto |W' - W| <= norm_constraint, entry by entry (Zhu et
al., arXiv 2012.00363). Layer 0 and the constraint are those of the released settings for GPT-2 XL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from editlab.edits.finetune import FineTuneSettings, fine_tune
from editlab.errors import RequestError
from editlab.progress import OnStep, silent
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


class Config(FineTuneSettings):
    """Settings of `ft`."""

    layer: int = Field(0, ge=0, description="layer whose down projection is trained (paper: 0)")
    norm_constraint: float = Field(5e-4, gt=0, description="how far an entry may move (paper's code: 5e-4)")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The change of one matrix that fine-tuning on all facts gives.

    Raises:
        RequestError: there is no fact. EditFailed: the loss is not finite, or the targets are answered already.
    """
    if not facts:
        raise RequestError("ft was given no fact.", "Give at least one.")
    name = lm.adapter.down(lm.model, lm.adapter.check_layer(config.layer)).name
    weight = lm.model.get_parameter(name)
    change = torch.zeros_like(weight, dtype=torch.float32).requires_grad_()
    losses = fine_tune(
        lm,
        facts,
        [change],
        lambda: {name: change},
        config,
        on_step,
        after_step=lambda: change.clamp_(-config.norm_constraint, config.norm_constraint),
    )
    found = change.detach()
    return Edit(
        method="ft",
        config=config.model_dump(mode="json"),
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas={name: Delta(dense=found)},
        info={
            "parameter": name,
            "rank": min(found.shape),
            "relative_norm": float(found.norm() / weight.float().norm()),
            "losses": losses,
        },
    )
