"""FT-L as released with ROME: fine-tune one MLP's output map at the prompt's end (arXiv 2202.05262, appendix E).

Adam on the weight and the bias of one down projection, each entry projected after each step onto |W' - W| <=
norm_constraint. The loss is the mean of -log p over the target's tokens, all of them read at the last token of the bare
prompt: with several tokens the model is taught to say any of them first. That is what kmeng01/rome and EasyEdit's
"prompt_last" compute; the teacher-forced form is `ft`.

Deviation: all facts are one batch; the released code takes a step for every 64.
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
    """Settings of `ft-l`."""

    layer: int = Field(0, ge=0, description="layer whose down projection is trained (released: 0)")
    norm_constraint: float | None = Field(
        5e-4, gt=0, description="how far an entry may move (released: 5e-5 to 2e-3 by model); none: as far as it likes"
    )


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The change of one map that fine-tuning on all facts gives.

    Raises:
        RequestError: there is no fact. EditFailed: the loss is not finite, or the targets are answered already.
    """
    weight = lm.adapter.down(lm.model, lm.adapter.check_layer(config.layer)).name
    bias = f"{weight.removesuffix('.weight')}.bias"
    names = [name for name in (weight, bias) if name in dict(lm.model.named_parameters())]
    return tuned_matrices(lm, "ft-l", facts, config, names, config.norm_constraint, on_step, at_prompt_end=True)
