"""The learning rate at which texts are recalled after the exposures that are planned, and what it costs other texts.

Every rate of a grid, ascending, is tried on texts of their own (a seed that no reported study should use), in one
direction and without further training; the first at which exact recall reaches the aim is chosen, and larger ones are
not tried. A learning rate does not carry over to another number of texts or batch size: updates do the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from editlab.errors import ConfigError
from editlab.progress import OnStep, StepInfo, silent
from editlab.runs.memory.course import Course, Row, check_fits
from editlab.runs.memory.learner import Diverged, Learner
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.study import study_courses
from editlab.state.saved import Saved

if TYPE_CHECKING:
    from editlab.lm import LM

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
AIM = 0.9
OWN_SEED = 7_000_000  # added to the seed, so that no reported study shares its texts


@dataclass(frozen=True)
class Calibration(Saved):
    """What each rate gave.

    Attributes:
        table: lr, recognition after one exposure, recall and loss of foils (and its rise) after the last.
        chosen: the smallest rate that reaches the aim; None if none does.
    """

    table: pd.DataFrame
    chosen: float | None
    aim: float
    items: int

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.chosen is None:
            return f"No rate reaches an exact recall of {self.aim:.0%} on {self.items} texts; try more exposures."
        row = self.table[self.table["lr"] == self.chosen].iloc[0]
        return (
            f"lr={self.chosen:g} is the smallest that recalls {row['recall']:.0%} of {self.items} texts exactly "
            f"(aim {self.aim:.0%}); other texts cost {row['drift']:+.2f} nats."
        )


def calibrate(
    lm: LM, settings: StudySettings, grid: tuple[float, ...] = GRID, aim: float = AIM, on_step: OnStep = silent
) -> Calibration:
    """Try the rates of `grid` with the settings' items, batch and exposures.

    Raises:
        ConfigError: the grid is empty, or a setting is wrong.
    """
    if not grid or min(grid) <= 0:
        raise ConfigError("The grid of learning rates needs positive numbers.", "Write lr=[1e-4,3e-4].")
    alone = settings.model_copy(
        update={"seeds": 1, "seed": settings.seed + OWN_SEED, "counterbalance": False, "times": (), "rouge": False}
    )
    learner = Learner(lm, settings.optimiser, settings.scope)
    rows: list[Row] = []
    chosen = None
    for i, lr in enumerate(sorted(grid)):
        on_step(StepInfo("calibrating", i, len(grid), "rates", f"lr {lr:g}"))
        course = study_courses(lm, alone.model_copy(update={"lr": lr}))[0]
        check_fits(lm, [course], "Use a smaller 'block'.")
        row = _try(learner, course, lr)
        rows.append(row)
        if row["recall"] >= aim:
            chosen = lr
            break
    on_step(StepInfo("calibrating", len(grid), len(grid), "rates"))
    return Calibration(pd.DataFrame(rows), chosen, aim, settings.items)


def _try(learner: Learner, course: Course, lr: float) -> Row:
    learner.restore()
    first, last = course.probes[1], course.probes[-1]
    found = {}
    try:
        for update in range(last + 1):
            if update in (first, last):
                found[update] = course.measure(learner, update)
            if update < last:
                course.step(learner, update)
    except Diverged:
        return {"lr": lr, "recognition": float("nan"), "recall": 0.0, "loss": float("nan"), "drift": float("nan")}
    studied = [r for r in found[last] if r["role"] == "studied"]
    foils = [r for r in found[last] if r["role"] == "foil"]
    once = found[first]
    half = len(once) // 2
    a, b = once[:half], once[half:]
    return {
        "lr": lr,
        "recognition": sum(x["loss"] < y["loss"] for x, y in zip(a, b, strict=True)) / half,
        "recall": sum(r["exact"] for r in studied) / len(studied),
        "loss": sum(r["loss"] for r in studied) / len(studied),
        "drift": sum(r["loss"] - r["base_loss"] for r in foils) / len(foils),
    }
