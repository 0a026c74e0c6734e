"""What the Channels page has jobs do; nothing here knows of streamlit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from editlab.config import build
from editlab.errors import ConfigError
from editlab.evaluation.statistics import estimate
from editlab.lm import LM
from editlab.probes.channels import causal, steering
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.controls import control_writers
from editlab.probes.channels.factors import Factors, factorise
from editlab.probes.channels.lists import ListScores, answered, score_lists
from editlab.probes.channels.parts import Channel, Part
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.scan import Config, Scan, scan
from editlab.probes.channels.steer import Subspace, logits_with
from editlab.probes.channels.tasks import TASKS, prompts_of
from editlab.probes.channels.verdicts import Verdicts
from editlab.progress import OnStep, StepInfo
from editlab.runs import run_folder
from editlab.runs.channels import write_scan, write_steering, write_verdicts

from .work import Ran

CONTROLS = 6  # beside a component that is tried: two of each kind


@dataclass(frozen=True)
class Scanned:
    """A scan, and the state of the model that it is of."""

    scan: Scan
    state: str


def scanning(lm: LM, settings: Mapping[str, Any], root: Path) -> Callable[[OnStep], Ran]:
    """Score all pairs, into a run folder."""
    twin, state = lm.fork(), lm.state_hash

    def work(on_step: OnStep) -> Ran:
        config = build(Config, settings, "the scan")
        found = scan(twin, config, on_step)
        folder = run_folder("channels", twin.base_hash, root)
        return Ran(write_scan(folder, twin, found, found.to_pandas(limit=None)), Scanned(found, state))

    return work


def testing(
    lm: LM, found: Scanned, channels: Sequence[Channel], asked: Mapping[str, Any], root: Path
) -> Callable[[OnStep], Ran]:
    """Intervene on channels, into a run folder.

    Args:
        asked: task, prompts, length, controls, seed.

    Raises:
        ConfigError: the model has changed since it was scanned.
    """
    twin = lm.fork()
    if twin.state_hash != found.state:
        raise ConfigError("The model has changed since it was scanned.", "Scan it again.")

    def work(on_step: OnStep) -> Ran:
        config = build(causal.Config, {"controls": asked["controls"], "seed": asked["seed"], "passages": 4}, "the test")
        task = asked["task"]
        made = prompts_of(twin, task, asked["prompts"], length=asked["length"], seed=asked["seed"])
        tests: Verdicts = causal.verify(twin, channels, made, found.scan, config, on_step, task=TASKS[task])
        given = {name: asked[name] for name in ("task", "prompts", "length")}
        return Ran(write_verdicts(run_folder("channels", twin.base_hash, root), twin, tests, given), tests)

    return work


def steered(
    lm: LM, parts: Sequence[Part], settings: Mapping[str, Any], factors: Factors | None, root: Path
) -> Callable[[OnStep], Ran]:
    """Steer list recall with components, into a run folder.

    Raises:
        RequestError: what was named is no component, or of the last layer.
    """
    twin = lm.fork()
    config = build(steering.Config, settings, "steering")
    Subspace.of(twin, parts)

    def work(on_step: OnStep) -> Ran:
        found = steering.steering(twin, parts, config, on_step, factors=factors)
        folder = run_folder("channels", twin.base_hash, root)
        return Ran(write_steering(folder, twin, found, parts, config), found)

    return work


@dataclass(frozen=True)
class Trial:
    """A component scaled by `alpha`, beside the model as it is: answers, and accuracy on prompts of a task.

    Attributes:
        rows: of the model as it is, with the component scaled, and with controls scaled.
    """

    part: Part
    alpha: float
    rows: pd.DataFrame
    answers: tuple[str, str]


def trial(
    lm: LM, part: Part, alpha: float, prompt: str, task: str, length: int, factors: Factors | None = None
) -> Callable[[OnStep], Trial]:
    """Scale a component on a fork and look at the difference, beside the mean of `CONTROLS` random ones of equal rank.

    Args:
        task: what accuracy is measured on, or "own prompt" for none. factors: the model's, if they are known.
    """
    plain, twin = lm.fork(), lm.fork()
    edit = component_edit(lm, [part], alpha)

    def work(on_step: OnStep) -> Trial:
        twin.ledger.apply(edit)
        rows = [] if task == "own prompt" else measured(on_step)
        on_step(StepInfo("answering", 0))
        answers = tuple(model.generate(prompt, 12)[0] for model in (plain, twin))
        return Trial(part, alpha, pd.DataFrame(rows), (answers[0], answers[1]))

    def measured(on_step: OnStep) -> list[dict[str, Any]]:
        setting = Setting(plain, prompts_of(plain, task, 48, length=length))
        known = factors or factorise(plain, prove=False, on_step=on_step)
        others = control_writers(plain, part, part.layer + 1, known, CONTROLS, same_layer=True)
        found = {"as it is": [score_lists(plain, setting.prompts)], str(part): [score_lists(twin, setting.prompts)]}
        beside = found[f"{CONTROLS} random ones (mean)"] = []
        for i, other in enumerate(others):
            on_step(StepInfo("measuring the effect", i, CONTROLS, "controls"))
            patch = (other.layer, other.head, other.scaled(alpha))
            beside.append(answered(setting, logits_with(setting, [patch])))
        return [_effect(name, scores, among_all=task == "repeats") for name, scores in found.items()]

    return work


def _effect(name: str, scores: Sequence[ListScores], *, among_all: bool) -> dict[str, Any]:
    """A row: the mean over `scores`, prompt by prompt. `among_all`: right is the most probable of all tokens."""
    e = estimate(np.mean([s.first if among_all else s.right for s in scores], axis=0).tolist())
    margin = float(np.mean([s.margins for s in scores]))
    row = {"scaled": name, "right": e.mean, "95 % from": e.low, "to": e.high, "margin": margin, "n": e.n}
    return row if among_all else row | {"chance": scores[0].chance}
