"""How facts are acquired: passages injected into training on other text, probed at three depths (arXiv 2406.11813).

One continuous run per seed. Every update trains on filler; at the updates of the schedule each passage is added as rows
of its own. Three scenarios share the run, each with passages of its own: the same passage every time ("duplication"), a
new wording every time ("paraphrase"), or the first time only ("once"). Passages that are never injected are probed all
the same: what moves there is style and drift, not knowledge.

The optimiser is carried throughout. Probes are read before an injection, densely after it, then ever more sparsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from editlab.data.formats import load_records
from editlab.data.formats.fictional import FictionalPassage
from editlab.data.stimuli import invented_passages
from editlab.errors import ConfigError
from editlab.evaluation.scorer import force
from editlab.probes.memory.acquisition import DEPTHS
from editlab.progress import OnStep, silent
from editlab.runs.memory.course import Course, Phase, Row
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.settings import TrainingSettings, spread
from editlab.runs.memory.study import filler_batches, ids_of

if TYPE_CHECKING:
    from editlab.lm import LM

SCENARIOS = ("paraphrase", "duplication", "once")
CONTROL = "never"
_FIELDS = dict(zip(DEPTHS, ("mem", "gen", "hard_gen"), strict=True))


class AcquireSettings(TrainingSettings):
    """Settings of `acquire`."""

    file: str | None = Field(None, description="passages in the layout 'fictional'; default invented ones")
    passages: int = Field(2, ge=1, description="passages of each scenario")
    controls: int = Field(1, ge=1, description="passages that are probed and never injected")
    injections: int = Field(3, ge=1, description="how often a passage is injected (paper: 10)")
    interval: int = Field(20, ge=2, description="updates between injections (paper: 100)")
    after: int = Field(50, ge=3, description="updates after the last injection (paper: 1500)")
    window: int = Field(20, ge=1, description="updates after an injection in which its maximum lies (paper: 50)")
    seeds: int = Field(2, ge=1, description="repetitions with passages and filler of their own")
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate, constant")
    block: int = Field(160, ge=16, description="tokens of a passage, at most")

    @property
    def injected(self) -> tuple[int, ...]:
        """Updates at which passages are injected."""
        return tuple(i * self.interval for i in range(self.injections))

    @property
    def probes(self) -> tuple[int, ...]:
        """Updates before which probes are read."""
        found = {0}
        for start in self.injected:
            last = start == self.injected[-1]
            found |= {start + s for s in (0, *spread(self.after if last else self.interval))}
        return tuple(sorted(found))


def passages_for(settings: AcquireSettings, seed: int) -> list[FictionalPassage]:
    """So many passages as all scenarios and controls need.

    Raises:
        ConfigError: the file has fewer, or holds something else.
    """
    need = len(SCENARIOS) * settings.passages + settings.controls
    if settings.file is None:
        return list(invented_passages(need, seed))
    records = load_records(Path(settings.file)).records
    found = [r for r in records if isinstance(r, FictionalPassage)]
    if len(found) < need:
        raise ConfigError(
            f"'{settings.file}' has {len(found)} fictional passages, {need} are needed.",
            "Use fewer (passages, controls), or a larger file in the layout 'fictional'.",
        )
    start = seed * need % (len(found) - need + 1)
    return found[start : start + need]


def acquire_courses(lm: LM, settings: AcquireSettings, on_step: OnStep = silent) -> list[Course]:
    """One course a seed.

    Raises:
        ConfigError: there are too few passages, or none of their probes fits, or too little filler.
    """
    courses = []
    for i in range(settings.seeds):
        seed = settings.seed + i
        passages = passages_for(settings, seed)
        n = settings.passages
        plan = [(s, p) for j, s in enumerate(SCENARIOS) for p in passages[j * n : (j + 1) * n]]
        plan += [(CONTROL, p) for p in passages[len(SCENARIOS) * n :]]
        updates = settings.injected[-1] + settings.after
        batches = [list(b) for b in filler_batches(lm, settings, updates, seed, [p.train_context for p in passages])]
        for k, update in enumerate(settings.injected):
            for scenario, passage in plan:
                text = _injected(scenario, passage, k)
                if text:
                    batches[update].insert(0, ids_of(lm, text, settings.block))
        courses.append(
            Course(
                name=f"seed {seed}",
                phases=(Phase(tuple(tuple(b) for b in batches), settings.lr, "carry"),),
                probes=settings.probes,
                measure=partial(_measure, plan=plan, seed=seed),
            )
        )
    return courses


def _injected(scenario: str, passage: FictionalPassage, k: int) -> str:
    """The passage's text at the k-th injection, or ""."""
    if scenario == CONTROL or (scenario == "once" and k):
        return ""
    # Files of the layout may lack paraphrases; then the passage itself stands in.
    wordings = (passage.train_context, *passage.paraphrases) if scenario == "paraphrase" else (passage.train_context,)
    return wordings[k % len(wordings)]


def _measure(learner: Learner, update: int, *, plan: Sequence[tuple[str, FictionalPassage]], seed: int) -> list[Row]:
    asked = [
        (scenario, p.id, depth, i, prompt, target)
        for scenario, p in plan
        for depth, name in _FIELDS.items()
        for i, (prompt, target) in enumerate(
            zip(getattr(p, f"{name}_input"), getattr(p, f"{name}_target"), strict=True)
        )
    ]
    scores = force(learner.lm, [(prompt, target) for *_, prompt, target in asked])
    return [
        {"seed": seed, "t": update, "scenario": scenario, "passage": passage, "depth": depth, "probe": i,
         "lp": -s.nll, "lp_sum": -s.nll * len(s.target), "exact": int(s.is_argmax)}
        for (scenario, passage, depth, i, _, _), s in zip(asked, scores, strict=True)
    ]  # fmt: skip
