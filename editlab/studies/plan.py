"""What a study crosses, as its file says it, and the runs that this comes to.

Every run is one batch of edits and its evaluation. A seed draws the facts, in an order, and is the method's seed; all
methods of a model get the same facts, so that they can be compared fact by fact.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from editlab import registry
from editlab.config import MethodConfig, build, load_yaml
from editlab.data.relations import relations
from editlab.errors import ConfigError, did_you_mean
from editlab.evaluation.suite import Suite
from editlab.runs.batch import Mode, Plan, StopRules

METRICS = ("efficacy", "paraphrase", "neighbourhood", "score", "control_kl", "perplexity", "norm_ratio")


class MethodAxis(MethodConfig):
    """One method of a study, with what it is tried with."""

    method: str = Field(description="see 'editlab ls methods'")
    label: str | None = Field(None, min_length=1, description="what tables call it; default its name")
    settings: dict[str, Any] = Field(default={}, description="settings of all its runs")
    grid: dict[str, list[Any]] = Field(default={}, description="values to try, by setting")
    mode: tuple[Mode, ...] | None = Field(None, min_length=1, description="in place of the study's")
    batch_size: tuple[int, ...] | None = Field(None, min_length=1, description="in place of the study's")

    @field_validator("mode", "batch_size", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return None if value is None else _listed(value)

    @property
    def points(self) -> Iterator[dict[str, Any]]:
        """The settings of each point of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield self.settings | dict(zip(self.grid, values, strict=True))


class StudyPlan(MethodConfig):
    """The contents of a study file. A list is crossed with every other list; one value needs no brackets."""

    models: tuple[str, ...] = Field(min_length=1, description="registered names, folders or hub ids")
    methods: tuple[MethodAxis, ...] = Field(min_length=1, description="names, or mappings with settings and grid")
    facts: tuple[str, ...] = Field(("capital",), min_length=1, description="relations, or facts files in any layout")
    known: bool = Field(True, description="only facts that the unedited model has something to unlearn of")
    n: tuple[int, ...] = Field((20,), min_length=1, description="facts of a run, drawn by the seed")
    mode: tuple[Mode, ...] = Field(("single",), min_length=1, description="single, batch, sequential(-batched)")
    batch_size: tuple[int, ...] = Field((16,), min_length=1, description="facts of an edit in sequential-batched")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="a list, or how many: 3 is 0, 1, 2")
    stop: StopRules = StopRules()
    evaluate: Suite = Field(Suite(metrics=METRICS), description="as of 'editlab eval'")
    dtype: str = Field("float32", description="of the weights")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps")
    launch: dict[str, Any] = Field(default={}, description="launcher (local, ray, slurm) and its settings")

    @field_validator("models", "facts", "n", "mode", "batch_size", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return [{"method": item} if isinstance(item, str) else item for item in _listed(value)]

    @field_validator("evaluate", mode="before")
    @classmethod
    def _with_metrics(cls, value: Any) -> Any:
        return {"metrics": METRICS, **value} if isinstance(value, dict) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("n", "batch_size")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(number < 1 for number in value):
            raise ValueError("must be 1 or more")
        return value

    @property
    def sha256(self) -> str:
        """Of everything that makes numbers; not of where it is carried out."""
        whole = json.dumps(self.model_dump(mode="json", exclude={"launch"}), sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Every run once, by model, so that a worker need not load another one between."""
        found = {}
        for model, facts, n, axis, seed in itertools.product(self.models, self.facts, self.n, self.methods, self.seeds):
            for settings, mode, size in itertools.product(
                axis.points, axis.mode or self.mode, axis.batch_size or self.batch_size
            ):
                has_seed = "seed" in registry.get(axis.method).Config.model_fields
                plan = Plan(
                    method=axis.method,
                    mode=mode,
                    batch_size=size if mode == "sequential-batched" else 1,
                    settings=({"seed": seed} if has_seed else {}) | settings,
                    stop=self.stop,
                )
                spec = RunSpec(
                    model=model, facts=facts, known=self.known, n=n, seed=seed, plan=plan, suite=self.evaluate,
                    label=axis.label or axis.method, varied=tuple(axis.grid), dtype=self.dtype, device=self.device,
                )  # fmt: skip
                found[spec.name] = spec
        return tuple(found.values())


class RunSpec(MethodConfig):
    """One run of a study: what makes its numbers, and nothing of where it is carried out."""

    model: str
    facts: str
    known: bool
    n: int
    seed: int
    label: str
    varied: tuple[str, ...] = ()
    plan: Plan
    suite: Suite
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Its folder: readable, and apart from every other run by its last letters."""
        whole = json.dumps(self.model_dump(mode="json", exclude={"label", "varied"}), sort_keys=True)
        words = (
            Path(self.model).name,
            self.label,
            Path(self.facts).stem,
            f"n{self.n}",
            self.plan.mode,
            f"s{self.seed}",
        )
        stem = "-".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-") for word in words)
        return f"{stem}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"

    @property
    def point(self) -> str:
        """The settings that the study tries several values of, in words."""
        return ", ".join(f"{name}={self.plan.settings[name]}" for name in self.varied)

    @property
    def keys(self) -> dict[str, Any]:
        """What makes it out in a table."""
        return {
            "model": self.model,
            "method": self.label,
            "settings": self.point,
            "facts": Path(self.facts).stem,
            "n_facts": self.n,
            "mode": self.plan.mode,
            "batch_size": self.n if self.plan.mode == "batch" else self.plan.batch_size,
            "seed": self.seed,
        }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


def read_study(path: Path) -> StudyPlan:
    """The plan in a study file; paths in it are relative to it.

    Raises:
        ConfigError: every wrong or unknown key; a method, setting, metric or facts source that does not exist.
    """
    given = load_yaml(path)
    for name in ("models", "facts"):
        if name in given:
            given[name] = [_beside(path, value, name) for value in _listed(given[name])]
    plan = build(StudyPlan, given, f"study '{path}'")
    check_study(plan, path)
    return plan


def _beside(path: Path, value: Any, name: str) -> Any:
    """A file or folder beside the study file, if the value names one; else the value itself."""
    if not isinstance(value, str):
        return value
    beside = path.parent / value
    is_path = beside.is_file() if name == "facts" else (beside / "config.json").is_file()
    return str(beside.absolute()) if is_path else value


def check_study(plan: StudyPlan, where: object) -> None:
    """Raise ConfigError for what the names in a plan get wrong, before any model is loaded."""
    for i, axis in enumerate(plan.methods):
        config = registry.get(axis.method).Config
        for settings in axis.points:
            build(config, settings, f"study '{where}', methods.{i} ('{axis.method}')")
    plan.evaluate.chosen  # noqa: B018  an unknown metric is refused here
    if plan.evaluate.facts is not None or plan.evaluate.along:
        raise ConfigError(
            f"Settings of study '{where}': 'evaluate.facts' and 'evaluate.along' cannot be used in a study.",
            "A run is measured on the facts that it edits, after its last edit.",
        )
    for source in plan.facts:
        if source not in relations() and not Path(source).is_file():
            raise ConfigError(
                f"Settings of study '{where}': 'facts' = '{source}' is neither a file nor a relation.",
                did_you_mean(source, list(relations())),
            )
    for values, name in ((plan.models, "models"), (plan.facts, "facts"), (plan.seeds, "seeds")):
        if len(set(values)) < len(values):
            raise ConfigError(f"Settings of study '{where}': '{name}' has an entry twice.")
    _check_rows(plan, where)


def _check_rows(plan: StudyPlan, where: object) -> None:
    """Raise ConfigError if tables would take runs of different settings or facts for seeds of one point."""
    stems: dict[str, str] = {}
    for source in plan.facts:
        other = stems.setdefault(Path(source).stem, source)
        if other != source:
            raise ConfigError(
                f"Settings of study '{where}': 'facts' has '{other}' and '{source}', which tables both call "
                f"'{Path(source).stem}'.",
                "Rename one of the files.",
            )
    rows: dict[tuple[Any, ...], RunSpec] = {}
    for spec in plan.runs:
        other_run = rows.setdefault(tuple(spec.keys.values()), spec)
        if other_run is not spec:
            raise ConfigError(
                f"Settings of study '{where}': 'methods' has two entries that tables both call '{spec.label}', with "
                "different settings.",
                "Give each a 'label' of its own.",
            )
