"""How long do facts last that were trained, or edited, into a model, when it is trained on other text?

1. Every engine teaches the same facts to the unedited model: ROME, MEMIT, EMMET, AlphaEdit, WISE or any other method;
   "train", AdamW on prompt and answer for some passes; "train, matched", for every edit one training of as many
   updates as give the answers the mean gain in log-probability that this edit gave (the last update scaled down until
   it is met, for what decays depends on where it starts).
2. Each taught model is trained on one and the same stream of filler, with a fresh optimiser, and asked at the same
   times. Side memories stay in force and are not trained.
3. Lifetimes of single facts give half-lives (Kaplan and Meier) and log-rank tests.

Beside what the model says stands what became of the weights: the share of the taught change that is still there,
<W_t - W_0, D> / ||D||^2 with D what the engine changed, or for a side memory the share of prompts that still reach it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator

from editlab.data.formats import load_facts, read_fact
from editlab.data.relations import relation
from editlab.data.stimuli import filler
from editlab.errors import ConfigError, EditFailed, EditlabError, RequestError
from editlab.evaluation.known import known
from editlab.evaluation.prefixes import settle
from editlab.hooks.placement import in_float64
from editlab.probes.memory.reading import Ids, read
from editlab.probes.memory.taught import FactReading, others_of, prompts_of, read_facts
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import target_ids
from editlab.runs.memory.course import Course, Phase, Row
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.settings import TIMES, TrainingSettings
from editlab.runs.memory.study import exposure_batches, filler_batches, ids_of

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

LOADED, TRAIN, MATCHED = "loaded edits", "train", "train, matched"
ENGINES = (TRAIN, MATCHED, "rome", "memit", "emmet", "alphaedit", "wise")
CONTROLS = 12  # sentences whose loss says how the model is otherwise
MOST_UPDATES = 300
TOLERANCE = 0.02  # of the gain that a matched training is to meet
MATCH = 0.1  # of it that it has to meet to be called matched


def matched_to(engine: str) -> str:
    """The engine that trains to the gain of an edit."""
    return f"{MATCHED} to {engine}"


class SurviveSettings(TrainingSettings):
    """Settings of `survive`."""

    engines: tuple[str, ...] = Field(
        ENGINES, min_length=1, description=f"who teaches: '{TRAIN}', '{MATCHED}', '{LOADED}', or methods"
    )
    file: str | None = Field(None, description="facts, in any layout; default facts of the relation that it knows")
    relation: str = Field("capital", description="counterfactuals of this relation that the model knows")
    items: int = Field(16, ge=2, description="facts")
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of methods, over their presets: {rome: {layer: 3}}"
    )
    seeds: int = Field(2, ge=1, description="streams of filler")
    exposures: int = Field(10, ge=1, le=1000, description=f"passes of '{TRAIN}'")
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate, of training and of filler")
    times: tuple[int, ...] = Field(TIMES, min_length=1, description="updates on filler after which facts are asked")

    @field_validator("times")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or value[0] < 1:
            raise ValueError("must rise from 1 or more")
        return value


def facts_for(lm: LM, settings: SurviveSettings, on_step: OnStep = silent) -> list[Fact]:
    """The facts that are taught: those of loaded edits, of a file, or what the model knows of a relation.

    Raises:
        ConfigError: there are fewer than two, or the file cannot be read.
    """
    if lm.ledger.active:
        facts = [read_fact(row) for entry in lm.ledger.active for row in entry.edit.requests]
    elif settings.file is not None:
        facts = settle(lm, load_facts(Path(settings.file))[: settings.items], on_step)
    else:
        facts = list(known(lm, relation(settings.relation), on_step=on_step).facts(seed=settings.seed))
        random.Random(f"facts {settings.seed}").shuffle(facts)
        facts = facts[: settings.items]
    if not facts:
        raise ConfigError("There is no fact to teach.", "Name a file of facts, or a relation that the model knows.")
    return facts


@dataclass
class Teacher:
    """Makes taught models, each once.

    Attributes:
        lm: the model as given, with its edits; `plain` without them.
    """

    lm: LM
    facts: Sequence[Fact]
    settings: SurviveSettings
    on_step: OnStep = silent
    _edited: dict[str, LM | EditFailed | RequestError] = field(default_factory=dict)
    _trained: tuple[str, LM] | None = None  # the latest alone: each holds all weights

    def __post_init__(self) -> None:
        self.plain = self.lm.pristine()
        self.others = others_of(self.facts, self.settings.seed)
        self.rows = [_sentence(self.plain, fact) for fact in self.facts]

    @property
    def asked(self) -> list[Ids]:
        """Every prompt that probes read, with the answers to it."""
        parts = (target_ids(self.plain, *asked, sink=False) for asked in prompts_of(self.facts, self.others))
        return [(*prompt, *target) for prompt, target in parts]

    @property
    def edits(self) -> list[str]:
        """Engines that edit."""
        return [e for e in self.settings.engines if e not in (TRAIN, MATCHED)]

    @property
    def engines(self) -> list[str]:
        """All, in the order they teach; one matched training for every edit.

        Raises:
            ConfigError: there is no edit to match.
        """
        if MATCHED in self.settings.engines and not self.edits:
            raise ConfigError(f"'{MATCHED}' has no edit to match.", "Name a method among the engines.")
        found = []
        for engine in self.settings.engines:
            found += [matched_to(e) for e in self.edits] if engine == MATCHED else [engine]
        return found

    def taught(self, engine: str) -> LM:
        """The model that an engine taught.

        Raises:
            EditFailed, RequestError: it could not.
        """
        if engine == LOADED:
            return self.lm
        if engine in self.edits:
            if engine not in self._edited:
                self.on_step(StepInfo("teaching", len(self._edited), len(self.edits), "methods", engine))
                try:
                    self._edited[engine] = self._edit(engine)
                except (EditFailed, RequestError) as error:
                    self._edited[engine] = error
            made = self._edited[engine]
            if isinstance(made, EditlabError):
                raise made
            return made
        if self._trained is None or self._trained[0] != engine:
            self._trained = None
            made = self._train() if engine == TRAIN else self._train_to(engine)
            self._trained = (engine, made)
        return self._trained[1]

    def _edit(self, method: str) -> LM:
        twin, own = self.plain.fork(), self.settings.methods.get(method, {})
        try:
            twin.edit(list(self.facts), method, on_step=self.on_step, **own)
        except RequestError:
            if len(self.facts) == 1:
                raise
            for fact in self.facts:  # a method that writes one at a time
                twin.edit(fact, method, on_step=self.on_step, **own)
        return twin

    def _batches(self, passes: int) -> tuple[tuple[Ids, ...], ...]:
        return exposure_batches(self.rows, passes, self.settings.batch, self.settings.seed)

    def _train(self) -> LM:
        learner = Learner(self.plain, self.settings.optimiser, self.settings.scope)
        for batch in self._batches(self.settings.exposures):
            learner.step(batch, self.settings.lr)
        return learner.lm

    def gain(self, lm: LM) -> float:
        """Mean rise of the new answers' log-probability over the unedited model, in nats."""
        base = self.before
        now = read_facts(lm, self.facts, [()] * len(self.facts))
        return sum(a.lp - b.lp for a, b in zip(now, base, strict=True)) / len(base)

    @cached_property
    def before(self) -> list[FactReading]:
        """The facts under the unedited model."""
        return read_facts(self.plain, self.facts, self.others)

    def _train_to(self, engine: str) -> LM:
        """Train until the gain of the edit that `engine` is matched to is met."""
        edit = next(e for e in self.edits if matched_to(e) == engine)
        try:
            aim = self.gain(self.taught(edit))
        except (EditFailed, RequestError):
            raise EditFailed(f"'{edit}' could not teach, so there is nothing to match.", "See why.") from None
        if aim <= 0:
            raise EditFailed(
                f"'{edit}' gained {aim:.2f} nats, so there is nothing to match.", "Use other settings of it."
            )
        learner = Learner(self.plain, self.settings.optimiser, self.settings.scope)
        passes = -(-MOST_UPDATES * self.settings.batch // len(self.rows))
        for n, batch in enumerate(self._batches(passes)[:MOST_UPDATES]):
            before = {name: w.detach().clone() for name, w in learner.trained.items()}
            learner.step(batch, self.settings.lr)
            found = self.gain(learner.lm)
            self.on_step(StepInfo("matching the strength", n, None, "updates", f"gain {found:.2f} of {aim:.2f}"))
            if found >= aim * (1 - TOLERANCE):
                _shorten(learner, before, lambda: self.gain(learner.lm), aim)
                return learner.lm
        raise EditFailed(
            f"{MOST_UPDATES} updates of training do not reach the gain of {aim:.2f} nats of '{edit}'.",
            "Use a larger lr.",
        )


def _shorten(learner: Learner, before: dict[str, torch.Tensor], gain: Callable[[], float], aim: float) -> None:
    """Bisect the length of the last step, from `before` to the weights as they are, until the gain is met."""
    after = {name: w.detach().clone() for name, w in learner.trained.items()}
    low, high = 0.0, 1.0
    while abs(gain() / aim - 1) > TOLERANCE and high - low > 1e-3:
        low, high = (low, (low + high) / 2) if gain() > aim else ((low + high) / 2, high)
        with torch.no_grad():
            for name, w in learner.trained.items():
                w.copy_(torch.lerp(before[name], after[name], (low + high) / 2))


def _sentence(lm: LM, fact: Fact) -> Ids:
    prompt, target = target_ids(lm, fact.text, fact.target_new, fact.target_prefix, sink=False)
    return (*prompt, *target)


def survive_courses(lm: LM, settings: SurviveSettings, on_step: OnStep = silent) -> list[Course]:
    """A course for every engine and every stream of filler; the course of an engine that cannot teach ends at once.

    Raises:
        ConfigError: there is no fact. UnknownName: no such engine.
    """
    if lm.ledger.active:
        settings = settings.model_copy(
            update={"engines": (LOADED, *(e for e in settings.engines if e in (TRAIN, MATCHED)))}
        )
    elif LOADED in settings.engines:
        raise ConfigError(f"'{LOADED}' needs edits.", "Name a run or pack.")
    from editlab import registry

    for engine in settings.engines:
        if engine not in (LOADED, TRAIN, MATCHED):
            registry.get(engine)
    teacher = Teacher(lm, facts_for(lm, settings, on_step), settings, on_step)
    texts = [fact.statement(fact.text, fact.target_new) for fact in teacher.facts]
    controls = [ids_of(lm, t, settings.block) for t in filler(CONTROLS, 10**6 + settings.seed, settings.filler_text)]
    courses = []
    for engine in teacher.engines:
        for i in range(settings.seeds):
            seed = settings.seed + i
            later = filler_batches(lm, settings, max(settings.times), seed, texts, without=frozenset(controls))
            where = {"engine": engine, "seed": seed}
            courses.append(
                Course(
                    name=f"{engine}, filler {seed}",
                    phases=(Phase(later, settings.later_lr),),
                    probes=(0, *settings.times),
                    measure=partial(_measure, teacher=teacher, where=where, controls=controls),
                    begin=partial(teacher.taught, engine),
                    forbidden=frozenset({*teacher.rows, *controls}),
                    reads=max(map(len, (*controls, *teacher.asked))),
                )
            )
    return courses


def _measure(learner: Learner, update: int, *, teacher: Teacher, where: Row, controls: Sequence[Ids]) -> list[Row]:
    found = read_facts(learner.lm, teacher.facts, teacher.others)
    others = read(learner.lm, controls)
    state: dict[str, Any] = {
        "t": update,
        "kept": kept_share(learner, teacher.plain),
        "routed": routed_share(learner.lm, [fact.text for fact in teacher.facts]),
        "control_loss": sum(r.loss for r in others) / len(others),
    }
    return [
        {**where, **state, "item": i, "fact": fact.text, **now.to_record(),
         **{f"base_{name}": value for name, value in before.to_record().items()}}
        for i, (fact, now, before) in enumerate(zip(teacher.facts, found, teacher.before, strict=True))
    ]  # fmt: skip


def kept_share(learner: Learner, base: LM) -> float | None:
    """<W_t - W_0, D> / ||D||^2 over all weights, D = source - base; None if the source changed no weight."""
    along, length = 0.0, 0.0
    taught = dict(learner.source.model.named_parameters())
    with torch.no_grad():
        for name, before in base.model.named_parameters():
            start = taught[name]
            if start is before or torch.equal(start, before):
                continue
            change = in_float64(start - before)
            along += float((change * in_float64(learner.weights[name] - before)).sum())
            length += float(change.square().sum())
    return along / length if length else None


def routed_share(lm: LM, prompts: Sequence[str]) -> float | None:
    """The share of prompts that a side memory answers; None without one."""
    if not lm.routes.layers:
        return None
    routes = lm.route(list(prompts)).routes
    reached = {route.prompt for route in routes if route.answers != "model"}
    return len(reached) / len(set(prompts))
