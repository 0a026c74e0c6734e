"""How facts are acquired: passages injected into training on other text, probed at three depths (arXiv 2406.11813).

One continuous run per seed. Every update trains on filler; at the updates of the schedule each passage is added as rows
of its own. Three scenarios share the run, each with passages of its own: the same passage every time ("duplication"), a
new wording every time ("paraphrase"), or the first time only ("once"). Passages that are never injected are probed all
the same: what moves there is style and drift, not knowledge.

A passage that is longer than `block` is cut, and probes of what was cut off are left out: a memorisation probe must
stand in what is injected, a semantic one goes with its memorisation probe, and a compositional one is kept if its
target is there. Targets of compositional probes often stand in the passage word for word, so that more than
composition may bring them forth; rows say which.

The optimiser is carried throughout. Probes are read before an injection, densely after it, then ever more sparsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from editlab.data.formats import load_records
from editlab.data.formats.fictional import FictionalPassage
from editlab.data.stimuli import invented_passages
from editlab.errors import ConfigError
from editlab.evaluation.scorer import force
from editlab.joining import join
from editlab.probes.memory.acquisition import DEPTHS
from editlab.progress import OnStep, silent
from editlab.rows import target_ids
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
        ConfigError: there are too few passages, or no probe of a depth is left after the cut, or too little filler.
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
        asked = _asked(lm, plan, settings.block)
        probed = (target_ids(lm, probe.prompt, probe.target, sink=False) for probe in asked)
        unseen = [p.train_context for scenario, p in plan if scenario == CONTROL]
        unseen += [f"{probe.prompt} {probe.target}" for probe in asked if probe.depth != DEPTHS[0]]
        courses.append(
            Course(
                name=f"seed {seed}",
                phases=(Phase(tuple(tuple(b) for b in batches), settings.lr, "carry"),),
                probes=settings.probes,
                measure=partial(_measure, asked=asked, seed=seed),
                forbidden=frozenset(ids_of(lm, text, settings.block) for text in unseen),
                reads=max(len(prompt) + len(target) for prompt, target in probed),
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


@dataclass(frozen=True)
class Probe:
    """One opening and what should follow.

    Attributes:
        verbatim: the target stands in the passage. wordings: of the passage that there are to inject.
    """

    scenario: str
    passage: str
    depth: str
    index: int
    prompt: str
    target: str
    verbatim: bool
    wordings: int


def _asked(lm: LM, plan: Sequence[tuple[str, FictionalPassage]], block: int) -> list[Probe]:
    """The probes of what is left of each passage.

    Raises:
        ConfigError: there are none of some depth.
    """
    found = []
    for scenario, p in plan:
        ids, spans = lm.tokens(p.train_context)
        is_whole = len(ids) <= block
        seen = p.train_context if is_whole else p.train_context[: spans[block - 1][1]]
        said = ["".join(join(prompt, target)) in seen for prompt, target in zip(p.mem_input, p.mem_target, strict=True)]
        for depth, name in _FIELDS.items():
            pairs = zip(getattr(p, f"{name}_input"), getattr(p, f"{name}_target"), strict=True)
            for i, (prompt, target) in enumerate(pairs):
                stands = target in seen if depth == DEPTHS[2] or i >= len(said) else said[i]
                if is_whole or stands:
                    verbatim = target in p.train_context
                    found.append(Probe(scenario, p.id, depth, i, prompt, target, verbatim, 1 + len(p.paraphrases)))
    left = [p.depth for p in found if p.scenario != CONTROL]
    lacking = [depth for depth in DEPTHS if depth not in left] or ([CONTROL] if len(left) == len(found) else [])
    if lacking:
        what = "probe of a passage that is never injected" if lacking[0] == CONTROL else f"{lacking[0]} probe"
        raise ConfigError(f"No {what} asks about the first {block} tokens of it.", "Use a larger 'block'.")
    return found


def _measure(learner: Learner, update: int, *, asked: Sequence[Probe], seed: int) -> list[Row]:
    scores = force(learner.lm, [(probe.prompt, probe.target) for probe in asked])
    return [
        {"seed": seed, "t": update, "scenario": p.scenario, "passage": p.passage, "depth": p.depth, "probe": p.index,
         "verbatim": int(p.verbatim), "wordings": p.wordings, "lp": -s.nll, "lp_sum": -s.nll * len(s.target),
         "exact": int(s.is_argmax)}
        for p, s in zip(asked, scores, strict=True)
    ]  # fmt: skip
