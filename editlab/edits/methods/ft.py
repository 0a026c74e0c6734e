"""FT-M: fine-tune one MLP matrix on the target's tokens where they stand, no entry moving far.

Adam on W' of one down projection, projected after each step onto |W' - W| <= norm_constraint, entry by entry (Zhu et
al., arXiv 2012.00363). The loss is teacher-forced, as in EasyEdit's FT-M. FT-L as released with ROME, which asks for
every target token at the end of the prompt, is `ft-l`. Layer 0 and the constraint are those of its settings for GPT-2
XL; on a small model that is hardly a change, and the edit says so when the target has not become likely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from editlab.edits.finetune import FineTuneSettings, tuned_matrices
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


class Config(FineTuneSettings):
    """Settings of `ft`."""

    layer: int = Field(0, ge=0, description="layer whose down projection is trained (paper: 0)")
    norm_constraint: float | None = Field(
        5e-4, gt=0, description="how far an entry may move; none: as far as it likes (EasyEdit's FT-M)"
    )


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The change of one matrix that fine-tuning on all facts gives.

    Raises:
        RequestError: there is no fact. EditFailed: the loss is not finite, or the targets are answered already.
    """
    layer = lm.adapter.check_layer(config.layer)
    return tuned_matrices(
        lm, "ft", facts, config, [lm.adapter.down(lm.model, layer).name], config.norm_constraint, on_step
    )
