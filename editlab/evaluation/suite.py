"""What to measure, and on which facts: a suite file, or simply a facts file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from editlab.config import MethodConfig, build, load_yaml
from editlab.data.corpus import FACTBOOK
from editlab.errors import ConfigError
from editlab.evaluation import metrics
from editlab.evaluation.cards import Metric


class Suite(MethodConfig):
    """Settings of an evaluation."""

    facts: Path | None = Field(
        default=None, description="Facts file in any layout; the edited facts themselves if left out."
    )
    skip_malformed: bool = Field(default=False, description="Leave malformed rows out, with a report.")
    limit: int | None = Field(default=None, ge=1, description="Only the first so many facts.")
    metrics: tuple[str, ...] = Field(
        default=(metrics.STANDARD,), min_length=1, description="Metrics, families of them, 'standard' or 'all'."
    )
    max_new_tokens: int = Field(default=10, ge=1, le=512, description="Length of a free answer.")
    sink: bool = Field(default=False, description="Put the sink token in front of every prompt.")
    prose: str = Field(default=FACTBOOK, description="Text for perplexity: 'factbook' (held-out part) or a file.")
    passages: int = Field(default=40, ge=2, le=100_000, description="How many passages of it.")
    references: Path | None = Field(default=None, description="JSON {fact id: [texts]} for consistency.")
    along: bool = Field(default=False, description="Also score every fact after 1, 2, 5, 10, 20, ... edits.")
    lm_eval: tuple[str, ...] = Field(default=(), description="Tasks for lm-eval, on the base and on the edited model.")
    lm_eval_limit: int | None = Field(default=None, ge=1, description="Examples per task.")
    lm_eval_tasks: Path | None = Field(default=None, description="Folder with task files of one's own.")
    seed: int = Field(default=0, ge=0, description="Of intervals, tests and sampled texts.")
    fail_under: dict[str, float] = Field(default={}, description="Lowest acceptable value per metric.")
    fail_over: dict[str, float] = Field(default={}, description="Highest acceptable value per metric.")

    @field_validator("metrics", "lm_eval", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def chosen(self) -> dict[str, Metric]:
        """The metrics by name.

        Raises:
            UnknownName: a metric that does not exist.
        """
        return metrics.select(self.metrics)


def read_suite(path: Path | None, **overrides: object) -> Suite:
    """A suite from a YAML file with settings, or from a facts file (which then is its `facts`).

    Paths in a suite file are relative to it. Overrides that are None do not count.

    Raises:
        ConfigError: missing, or a setting is wrong or unknown.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    settings: dict[str, object] = {}
    if path is not None and path.suffix in (".yaml", ".yml"):
        settings = load_yaml(path)
        for name in ("facts", "references", "lm_eval_tasks"):
            if isinstance(value := settings.get(name), str):
                settings[name] = str(path.parent / value)
        if isinstance(prose := settings.get("prose"), str) and prose != FACTBOOK:
            settings["prose"] = str(path.parent / prose)
    elif path is not None:
        if not path.is_file():
            raise ConfigError(f"There is no suite '{path}'.", "Name a facts file, or a .yaml file with settings.")
        settings = {"facts": path}
    suite = build(Suite, {**settings, **given}, f"suite '{path}'" if path else "the suite")
    chosen = suite.chosen
    for name in (*suite.fail_under, *suite.fail_over):
        base = metrics.find(name.split("[")[0]).card.name
        if base not in chosen:
            raise ConfigError(f"'{name}' has a threshold but is not measured.", "Add it to the suite's metrics.")
    return suite
