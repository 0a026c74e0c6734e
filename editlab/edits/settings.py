"""Settings that the locate-and-edit methods share, and where a model is edited when nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from editlab.config import MethodConfig
from editlab.errors import RequestError
from editlab.facts import Fact
from editlab.hooks.adapter import ModelAdapter


def default_layer(adapter: ModelAdapter) -> int:
    """Where a model without a preset is edited: a sixth of its depth."""
    return adapter.n_layers // 6


def memory_layer(adapter: ModelAdapter, layer: int | None) -> int:
    """Where a side memory goes: the layer asked for, else at 27/32 of the depth (EasyEdit, Llama-2-7B: 27 of 32).

    Raises:
        ConfigError: there is no such layer.
    """
    return adapter.check_layer(adapter.n_layers * 27 // 32 if layer is None else layer)


class EditSettings(MethodConfig):
    """What every method's settings have."""

    preset: Literal["tuned", "published"] = Field(
        "tuned", description="settings of the model below those given here: tuned for it, or as the source has them"
    )


class LocateEditSettings(EditSettings):
    """How keys are averaged, values optimised, and ordinary text preserved."""

    layer: int | None = Field(None, ge=0, description="layer whose down projection is edited; default by model")
    steps: int = Field(20, ge=1, le=500, description="losses evaluated when optimising the value (paper: 20)")
    lr: float = Field(
        1.0, gt=0, description="Adam's learning rate for the value (paper: 0.5; 1.0 needs half the steps)"
    )
    clamp: float = Field(0.9, gt=0, description="longest shift, in norms of the reference state (MEMIT's code: 0.75)")
    decay: float = Field(0.5, ge=0, description="weight of the shift's norm in the loss (paper's code: 0.5)")
    kl_factor: float = Field(0.0625, ge=0, description="weight of the KL term (paper's code: 0.0625)")
    stop_loss: float = Field(0.08, ge=0, description="a value is done when its loss falls below this (paper: 0.05)")
    contexts: dict[PositiveInt, PositiveInt] = Field(
        default={10: 5}, description="random texts put in front of the prompt: {length in tokens: how many}"
    )
    forms: Literal["both", "memit", "rome"] = Field(
        "both",
        description="rows of a prompt: both (after a sink token and bare), or those of memit's or rome's released code",
    )
    relative_to: Literal["stream", "output"] = Field(
        "stream",
        description="state that clamp and decay are relative to: the stream, or the MLP's output (ROME)",
    )
    steps_on_top: int = Field(
        0, ge=0, description="end once the target led behind every context in so many losses; 0: never (ENCORE: 2 to 4)"
    )
    seed: int = Field(0, ge=0, description="seed of the contexts")
    stats_text: str = Field("factbook", description="ordinary text: 'factbook' or a file")
    stats_tokens: int | None = Field(None, ge=1, description="tokens of it; default twenty per key dimension")


class SeveralLayersSettings(LocateEditSettings):
    """Settings of methods that write many facts, spread over layers."""

    layers: tuple[NonNegativeInt, ...] | None = Field(
        default=None, min_length=1, description="layers to edit, in any order; default by model"
    )
    spread: Literal["uniform", "last_only"] = Field(
        default="uniform",
        description="uniform: each layer closes an equal part of the gap that is left; last_only: the last layer all",
    )

    value_norm_anchor: bool = Field(
        default=False,
        description="rescale each solved value to the length it has on the unedited model (arXiv 2602.02543)",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> SeveralLayersSettings:
        if self.layer is not None and self.layers is not None:
            raise ValueError("'layer' and 'layers' exclude each other")
        return self


def edit_layers(adapter: ModelAdapter, settings: SeveralLayersSettings) -> tuple[int, ...]:
    """The layers to edit, ascending: those asked for, or the model's defaults.

    Raises:
        ConfigError: there is no such layer.
    """
    if settings.layer is not None:
        return (adapter.check_layer(settings.layer),)
    if settings.layers is not None:
        return tuple(sorted({adapter.check_layer(layer) for layer in settings.layers}))
    return (default_layer(adapter),)


def edit_layer(adapter: ModelAdapter, settings: LocateEditSettings) -> int:
    """The layer to edit: the one asked for, or the model's default.

    Raises:
        ConfigError: there is no such layer.
    """
    return adapter.check_layer(default_layer(adapter) if settings.layer is None else settings.layer)


def check_subjects(method: str, facts: Sequence[Fact]) -> None:
    """Refuse facts that do not say what they are about, for a method that writes at the subject's last token.

    Raises:
        RequestError: with the rows that have no subject.
    """
    without = [i for i, fact in enumerate(facts) if not fact.has_subject]
    if without:
        named = [f"'{facts[i].id}'" if facts[i].id else f"request {i}" for i in without]
        more = f" and {len(named) - 20} more" if len(named) > 20 else ""
        raise RequestError(
            f"{method} writes at the subject's last token, and {len(without)} of {len(facts)} facts name no subject: "
            f"{', '.join(named[:20])}{more}.",
            "Give each a subject, or use a method that needs none (grace, wise, ultraedit, ft, lora).",
        )


def only_fact(facts: Sequence[Fact]) -> Fact:
    """The one fact of a method that writes one at a time.

    Raises:
        RequestError: there are none or several.
    """
    if len(facts) != 1:
        raise RequestError(f"ROME writes one fact at a time, {len(facts)} were given.", "Edit them one by one.")
    return facts[0]
