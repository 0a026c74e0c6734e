"""What the Channels page has jobs do; nothing here knows of streamlit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from editlab.config import build
from editlab.errors import ConfigError
from editlab.lm import LM
from editlab.probes.channels import causal, steering
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.factors import Factors
from editlab.probes.channels.lists import score_lists
from editlab.probes.channels.parts import Channel, Part
from editlab.probes.channels.scan import Config, Scan, scan
from editlab.probes.channels.steer import Subspace
from editlab.probes.channels.tasks import TASKS, prompts_of
from editlab.probes.channels.verdicts import Verdicts
from editlab.progress import OnStep, StepInfo
from editlab.runs import run_folder
from editlab.runs.channels import write_scan, write_steering, write_verdicts

from .work import Ran


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
    """A component scaled by `alpha`, beside the model as it is: answers, and accuracy on prompts of a task."""

    part: Part
    alpha: float
    rows: pd.DataFrame
    answers: tuple[str, str]


def trial(lm: LM, part: Part, alpha: float, prompt: str, task: str, length: int) -> Callable[[OnStep], Trial]:
    """Scale a component on a fork and look at the difference; a random component of equal rank is the control."""
    twin, control, plain = lm.fork(), lm.fork(), lm.fork()
    edit = component_edit(lm, [part], alpha)
    other = Part(part.layer, (part.head + 1) % lm.adapter.n_heads, part.component)

    def work(on_step: OnStep) -> Trial:
        twin.ledger.apply(edit)
        control.ledger.apply(component_edit(control, [other], alpha))
        models = {"as it is": plain, f"{part} times {alpha:g}": twin, f"control: {other} times {alpha:g}": control}
        rows = []
        if task != "own prompt":
            prompts = prompts_of(plain, task, 48, length=length)
            for i, (name, model) in enumerate(models.items()):
                on_step(StepInfo("measuring the effect", i, len(models), "models"))
                scores = score_lists(model, prompts)
                right = float(scores.right.mean()) if task != "repeats" else float(scores.first.mean())
                rows.append({"model": name, "right": right, "margin": float(scores.margins.mean()), "n": len(prompts)})
        on_step(StepInfo("answering", 0))
        answers = tuple(model.generate(prompt, 12)[0] for model in (plain, twin))
        return Trial(part, alpha, pd.DataFrame(rows), (answers[0], answers[1]))

    return work
