"""What a study of memory is made of, and the presets that fit a machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, model_validator

from editlab.config import MethodConfig
from editlab.data.corpus import FACTBOOK
from editlab.data.stimuli import KINDS
from editlab.errors import ConfigError, UnknownName, did_you_mean
from editlab.runs.memory.course import OptState
from editlab.runs.memory.learner import Optimiser, Scope

TIMES = (1, 2, 3, 5, 8, 13, 20)


class TrainingSettings(MethodConfig):
    """How a model is trained; of every study."""

    lr: float = Field(3e-4, gt=0, description="AdamW's learning rate, constant ('editlab memory calibrate' finds one)")
    batch: int = Field(4, ge=1, description="texts of an update")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second decay")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay (paper: 0)")
    scope: Scope = Field("all", description="which weights are trained: all, or those of the MLPs")
    filler_text: str = Field(FACTBOOK, description="text of further training: 'factbook' or a file")
    filler_lr: float | None = Field(None, gt=0, description="learning rate of further training; default lr")
    filler_batch: int = Field(4, ge=1, description="filler sentences of an update")
    seed: int = Field(0, ge=0, description="of texts, order and filler; the i-th repetition adds i")
    block: int = Field(128, ge=16, description="tokens of a text, at most")

    @property
    def optimiser(self) -> Optimiser:
        """AdamW's settings."""
        return Optimiser(self.beta1, self.beta2, self.eps, self.weight_decay)

    @property
    def later_lr(self) -> float:
        """Learning rate of further training."""
        return self.lr if self.filler_lr is None else self.filler_lr

    @property
    def sha256(self) -> str:
        """Of all settings."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class StudySettings(TrainingSettings):
    """Settings of `recognize`, `recall` and `retain`."""

    kinds: tuple[str, ...] = Field(("prose",), min_length=1, description=f"of pairs: {', '.join(KINDS)}")
    file: str | None = Field(None, description="pairs of one's own, in place of the kinds")
    items: int = Field(64, ge=2, description="pairs; both texts of each are studied, in two runs")
    seeds: int = Field(3, ge=1, description="repetitions with texts, order and filler of their own")
    exposures: int = Field(3, ge=1, le=100, description="passes over the studied texts")
    counterbalance: bool = Field(True, description="a second run that studies the foils")
    times: tuple[int, ...] = Field((), description="updates of further training after which memory is probed")
    opt_state: OptState = Field("reset", description="the optimiser at the beginning of further training")
    rouge: bool = Field(False, description="also generate what is not recalled exactly, and score it by ROUGE")

    @model_validator(mode="after")
    def _sound(self) -> StudySettings:
        for kind in self.kinds if self.file is None else ():
            if kind not in KINDS:
                raise ValueError(f"there is no kind '{kind}'. {did_you_mean(kind, list(KINDS))}")
        if list(self.times) != sorted(set(self.times)) or (self.times and self.times[0] < 1):
            raise ValueError("'times' must rise from 1 or more")
        return self


# Sizes by what they cost. On one CPU thread SmolLM2-135M trains on about 45 tokens a second and reads about 140.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"items": 16, "seeds": 1, "counterbalance": False},
    "standard": {"items": 24, "seeds": 3},
    "full": {"items": 64, "seeds": 5, "kinds": ("prose", "sentence", "same-template", "synonym", "words")},
    "paper": {
        "kinds": ("sentence",),
        "items": 600,
        "seeds": 4,
        "batch": 16,
        "lr": 3e-5,
        "filler_batch": 16,
        "filler_lr": 1e-5,
    },
}
PRESET_TIMES: dict[str, tuple[int, ...]] = {
    "quick": TIMES,
    "standard": TIMES,
    "full": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100),
    "paper": (*range(1, 11), *range(20, 101, 10), *range(1000, 10_001, 1000)),
}


def preset(name: str, *, retain: bool) -> dict[str, Any]:
    """The settings of a preset; with its times if memory is to be followed under further training.

    Raises:
        UnknownName: there is none.
    """
    if name not in PRESETS:
        raise UnknownName(f"There is no preset '{name}'.", did_you_mean(name, list(PRESETS)))
    return PRESETS[name] | ({"times": PRESET_TIMES[name]} if retain else {})


def spread(updates: int) -> tuple[int, ...]:
    """Times from 1 to `updates`, dense at the beginning.

    Raises:
        ConfigError: not even one update.
    """
    if updates < 1:
        raise ConfigError(f"{updates} updates of further training are too few.", "Use 1 or more.")
    steps = [1, 2, 3, 5, 8, 13, 20, 30, 50, 75, 100]
    while steps[-1] < updates:
        steps += [steps[-1] * 2]
    return (*(s for s in steps if s < updates), updates)
