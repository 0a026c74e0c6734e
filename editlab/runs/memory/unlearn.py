"""Forgetting half of what was studied, by dampening: what goes, what stays, and where to stop (arXiv 2308.07707).

1. Study one text of each pair, as in `study`. The first half of them is to be forgotten, the rest kept; the foils were
   never studied. With two kinds of pairs the one is forgotten and the other kept, which is easier: as a class of images
   in the paper, the two have weights of their own.
2. Importances: of the texts to forget, and of the kept ones together with filler.
3. Dampen with every alpha of a grid, each from the studied weights, and read all texts. The stop rule takes the largest
   alpha at which the texts to forget cost again what they cost before the study.

What counts is the distance between two shares: of what study had taken off the loss of the texts to forget, how much is
back; and of the kept ones, how much. Dampening that cannot tell them apart loses both alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from pydantic import Field

from editlab.data.stimuli import filler, read_stimuli, stimuli
from editlab.display import text_table
from editlab.evaluation.statistics import estimate_nested
from editlab.probes.memory.reading import Reading, read
from editlab.progress import OnStep, silent
from editlab.runs.memory.course import Course, Row
from editlab.runs.memory.dampening import GRID, dampened, importance, share, stop_at
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.result import MemoryResult
from editlab.runs.memory.settings import StudySettings
from editlab.runs.memory.study import Items, ids_of, items_of, study_course

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.lm import LM

ROLES = ("forget", "keep", "novel")


class UnlearnSettings(StudySettings):
    """Settings of `unlearn`."""

    kinds: tuple[str, ...] = Field(
        ("sentence",),
        min_length=1,
        max_length=2,
        description="of pairs; if two, the first is forgotten, the second kept",
    )
    items: int = Field(16, ge=4, description="pairs; half of the studied texts is forgotten")
    seeds: int = Field(2, ge=1, description="repetitions with texts and order of their own")
    alphas: tuple[float, ...] = Field(GRID, min_length=1, description="alphas to try")
    strength: float = Field(1.0, gt=0, description="lambda: smaller dampens more (paper: 1)")
    embeddings: bool = Field(False, description="dampen embeddings too: rows of tokens that only some texts have")
    reference: int = Field(0, ge=0, description="filler sentences beside the kept texts, as reference")


def unlearn_courses(lm: LM, settings: UnlearnSettings, on_step: OnStep = silent) -> list[Course]:
    """A course per seed: the study, and at its end the sweep.

    Raises:
        ConfigError: texts are too short.
    """
    plain = StudySettings(
        **settings.model_dump(exclude={"alphas", "strength", "reference", "embeddings"}) | {"times": (), "rouge": False}
    )
    names = _dampened_names(lm, settings.embeddings)
    courses = []
    for i in range(settings.seeds):
        seed = settings.seed + i
        items = _items(lm, settings, seed)
        reference = [
            ids_of(lm, text, settings.block) for text in filler(settings.reference, 10**6 + seed, settings.filler_text)
        ]
        course = replace(study_course(items, (), plain, seed, "a", {}), spoilt=lambda rows: "")
        measure = partial(
            _measure, items=items, reference=reference, settings=settings, seed=seed, names=names, end=course.updates
        )
        courses.append(replace(course, name=f"seed {seed}", probes=(0, course.updates), measure=measure))
    return courses


def _dampened_names(lm: LM, embeddings: bool) -> list[str]:
    """The matrices of the blocks; norms and biases never. Tied embeddings count once."""
    blocks = tuple(f"{paths.block}." for paths in lm.adapter.layers)
    ends = (lm.model.get_input_embeddings(), lm.model.get_output_embeddings())
    own = {id(end.weight) for end in ends if end is not None} if embeddings else set()
    named = lm.model.named_parameters()
    return [name for name, w in named if (w.dim() == 2 and name.startswith(blocks)) or id(w) in own]


def _items(lm: LM, settings: UnlearnSettings, seed: int) -> Items:
    """The texts to forget, then those to keep."""
    if settings.file is not None:
        return items_of(lm, read_stimuli(Path(settings.file), settings.items, seed), settings.block)
    if len(settings.kinds) == 1:
        return items_of(lm, stimuli(settings.kinds[0], settings.items, seed), settings.block)
    forget, keep = (items_of(lm, stimuli(kind, settings.items // 2, seed), settings.block) for kind in settings.kinds)
    n = min(len(forget.a), len(keep.a))
    both = [(x[:n] + y[:n]) for x, y in ((forget.a, keep.a), (forget.b, keep.b))]
    return Items(forget.stimuli, both[0], both[1], forget.dropped + keep.dropped)


def _measure(
    learner: Learner,
    update: int,
    *,
    items: Items,
    reference: list[tuple[int, ...]],
    settings: UnlearnSettings,
    seed: int,
    names: list[str],
    end: int,
) -> list[Row]:
    half = len(items.a) // 2

    def rows(state: str, alpha: float | None, dampened_share: float | None) -> list[Row]:
        found: list[Reading] = read(learner.lm, items.rows)
        roles = ["forget"] * half + ["keep"] * (len(items.a) - half) + ["novel"] * len(items.b)
        base = {"seed": seed, "state": state, "alpha": alpha, "dampened": dampened_share}
        return [
            {**base, "item": i, "role": role, **reading.to_record()}
            for i, (role, reading) in enumerate(zip(roles, found, strict=True))
        ]

    if update < end:
        return rows("before", None, None)
    out = rows("studied", None, None)
    studied = {name: learner.weights[name].detach().clone() for name in names}
    of_forget = importance(learner.lm, items.a[:half], names)
    of_reference = importance(learner.lm, [*items.a[half:], *reference], names)
    for alpha in settings.alphas:
        changed = dampened(studied, of_forget, of_reference, alpha, settings.strength)
        _put(learner, changed)
        out += rows("dampened", alpha, share(of_forget, of_reference, alpha))

    def loss(alpha: float) -> float:
        _put(learner, dampened(studied, of_forget, of_reference, alpha, settings.strength))
        return _mean_loss(read(learner.lm, items.a[:half]))

    enough = stop_at(loss, _mean_loss(read(learner.source, items.a[:half])))
    if enough is not None:
        loss(enough)
        out += rows("stopped", enough, share(of_forget, of_reference, enough))
    _put(learner, studied)
    return out


def _mean_loss(readings: list[Reading]) -> float:
    return sum(r.loss for r in readings) / len(readings)


def _put(learner: Learner, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            learner.weights[name].copy_(value)


@dataclass(frozen=True)
class UnlearnResult(MemoryResult):
    """Rows: one per seed, state (before, studied, dampened with an alpha, or stopped by the rule) and text."""

    settings: UnlearnSettings

    @cached_property
    def curve(self) -> pd.DataFrame:
        """state, alpha, role, loss and exact recall with intervals, share of weights dampened."""
        out = []
        for key, group in self.rows.groupby(["state", "alpha", "role"], sort=False, dropna=False):
            where = dict(zip(("state", "alpha", "role"), key, strict=True))
            for name in ("loss", "exact"):
                e = estimate_nested([g.to_list() for _, g in group.groupby("seed")[name]])
                where |= {name: e.mean, f"{name}_low": e.low, f"{name}_high": e.high, "n": e.n}
            out.append(where | {"dampened": group["dampened"].mean()})
        return pd.DataFrame(out)

    @cached_property
    def chosen(self) -> dict[int, float | None]:
        """By seed the alpha that the stop rule took; None if none brings the loss back."""
        stopped = self.rows[self.rows["state"] == "stopped"].groupby("seed")["alpha"].first()
        found = {int(str(seed)): float(alpha) for seed, alpha in stopped.items()}
        return {int(seed): found.get(int(seed)) for seed in sorted(set(self.rows["seed"]))}

    def at(self, state: str, role: str, column: str = "loss") -> float:
        """Mean of a role's loss or recall in a state, over the seeds at which the stop rule found an alpha."""
        seeds = [seed for seed, alpha in self.chosen.items() if alpha is not None]
        rows = self.rows[self.rows["seed"].isin(seeds) & (self.rows["role"] == role) & (self.rows["state"] == state)]
        return float(rows[column].mean())

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """By alpha: `forgotten` and `lost` (of the kept), shares of what study had taken off the loss that are back."""
        mean = self.rows.groupby(["state", "role"])["loss"].mean().unstack()
        dampened = self.rows[self.rows["state"] == "dampened"].groupby(["alpha", "role"])["loss"].mean().unstack()
        back = (dampened - mean.loc["studied"]) / (mean.loc["before"] - mean.loc["studied"])
        found = back.rename(columns={"forget": "forgotten", "keep": "lost"})[["forgotten", "lost"]].reset_index()
        return found.sort_values("alpha", ascending=False, ignore_index=True)

    @property
    def separation(self) -> dict[str, float]:
        """Where forgotten less lost is largest: alpha, forgotten, lost."""
        f = self.frontier
        best = int((f["forgotten"] - f["lost"]).fillna(-1).to_numpy().argmax())
        return {str(name): float(value) for name, value in f.iloc[best].items()}

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        if all(alpha is None for alpha in self.chosen.values()):
            b = self.separation
            return (
                "No alpha brings the forgotten texts back to what they cost before the study; at best, with alpha "
                f"{b['alpha']:g}, {b['forgotten']:.0%} of their gain is gone, and {b['lost']:.0%} of the kept texts'."
            )
        told = ", ".join(f"{role} {self.at('studied', role):.2f} to {self.at('stopped', role):.2f}" for role in ROLES)
        before = self.at("before", "forget")
        alphas = ", ".join("none" if a is None else f"{a:g}" for a in self.chosen.values())
        return f"Dampened with alpha {alphas}: loss of texts to {told} nats (to forget before the study: {before:.2f})."

    def to_pandas(self) -> pd.DataFrame:
        """The curve."""
        return self.curve

    def table(self) -> str:
        """Losses and recall by alpha."""
        cells = []
        for key, group in self.curve.groupby(["state", "alpha"], sort=False, dropna=False):
            by = {r["role"]: r for r in group.to_dict("records")}
            losses = [f"{by[role]['loss']:.2f}" for role in ROLES]
            recall = [f"{by[role]['exact']:.0%}" for role in ROLES[:2]]
            state, alpha = key
            touched = group["dampened"].iloc[0]
            is_dampened = state == "dampened"
            cells.append(
                [state, alpha if is_dampened else "-", f"{touched:.2%}" if is_dampened else "-", *losses, *recall]
            )
        heads = ["state", "alpha", "dampened", *(f"loss, {role}" for role in ROLES)]
        return text_table([*heads, *(f"recall, {role}" for role in ROLES[:2])], cells)

    def figures(self) -> dict[str, go.Figure]:
        """By name."""
        from editlab.viz.memory_dampening import memory_dampening, memory_frontier

        return {"dampening": memory_dampening(self), "frontier": memory_frontier(self)}

    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""
        says: list[str] = []
        b = self.separation
        says.append(
            f"Forgotten and kept are furthest apart at alpha {b['alpha']:g}: {b['forgotten']:.0%} of the one's gain is "
            f"gone, {b['lost']:.0%} of the other's."
        )
        what = "and the embeddings, no norms" if self.settings.embeddings else "neither norms nor embeddings"
        says.append(f"Dampened: the matrices of the blocks, {what}. Reference: the kept texts")
        says[-1] += f", and {self.settings.reference} filler sentences." if self.settings.reference else " alone."
        says.append("A loss above that before the study is overshoot, and tells that the text was known.")
        return says
