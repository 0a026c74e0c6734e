"""From the name of a method and some settings to what computes edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from editlab import registry
from editlab.config import build
from editlab.edits.presets import with_preset
from editlab.edits.settings import LocateEditSettings, check_subjects
from editlab.errors import EditlabError, ModelError
from editlab.hooks.wrappers import quantisation
from editlab.progress import OnStep

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM
    from editlab.state.edit import Edit

Compute = Callable[[Sequence["Fact"], OnStep], "Edit"]


def engine(lm: LM, method: str, settings: Mapping[str, Any]) -> Compute:
    """The method with these settings over those of the model's preset, ready for facts.

    Raises:
        UnknownName: there is no such method. ConfigError: a setting is invalid. EditlabError: the model is offloaded.
        ModelError: it is quantised.
    """
    if any(p.is_meta for p in lm.model.parameters()):
        raise EditlabError(
            f"{lm.name} cannot be edited: some of its weights are kept off the device.",
            "Load it without a device map, in bfloat16 if need be.",
        )
    stored = quantisation(lm.model)
    if stored is not None:
        raise ModelError(
            f"{lm.name} cannot be edited: its weights are quantised ({stored}).",
            "Load it in float32, bfloat16 or float16.",
        )
    module = registry.get(method)
    config = build(module.Config, with_preset(lm.adapter, method, settings), f"method '{method}'")

    def compute(facts: Sequence[Fact], on_step: OnStep) -> Edit:
        if isinstance(config, LocateEditSettings):
            check_subjects(method, facts)
        before = lm.state_hash
        edit: Edit = module.compute(lm, list(facts), config, on_step)
        if lm.state_hash != before:
            raise EditlabError(f"Method '{method}' changed the weights itself.", "It must return deltas.")
        return edit

    return compute
