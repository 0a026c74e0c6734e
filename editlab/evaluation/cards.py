"""What a metric is: its card (formula, decoding, source, chance) and how its values are made.

Three kinds of metric, so that every number can say what it rests on:

- `FactMetric`: one value per fact, from its scored questions under the present state and under the base;
- `ModelMetric`: one value per text, prompt or parameter, from the models themselves;
- `JointMetric`: a function of the means of several fact metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from editlab.evaluation.questions import Kind
    from editlab.evaluation.scorer import Scored
    from editlab.evaluation.suite import Suite
    from editlab.lm import LM
    from editlab.progress import OnStep

# The scored questions of one fact, by kind.
Answers = Mapping["Kind", Sequence["Scored"]]
FORCED = "teacher-forced"
FREE = "free generation, greedy"


@dataclass(frozen=True)
class Card:
    """The definition that goes with every number.

    Attributes:
        name: as in files and on the command line. aliases: what papers call it ("ES").
        formula: what one value is. decoding: teacher-forced or generated, and how.
        source: paper with arXiv id, or the code that it follows.
        better: which way is better; "same" where the unedited model's value is the ideal.
        chance: what guessing gives; None where that has no meaning.
    """

    name: str
    title: str
    formula: str
    decoding: str
    source: str
    better: Literal["higher", "lower", "same"]
    chance: float | None = None
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_share(self) -> bool:
        """Whether values lie between 0 and 1: means of yes or no, which formulas have in square brackets."""
        return "[" in self.formula

    def text(self) -> str:
        """The card as Markdown."""
        chance = "none" if self.chance is None else f"{self.chance:g}"
        lines = [
            f"## {self.name}" + (f" ({', '.join(self.aliases)})" if self.aliases else ""),
            "",
            f"{self.title}.",
            "",
            f"- formula: {self.formula}",
            f"- decoding: {self.decoding}",
            f"- better: {self.better}; chance level: {chance}",
            f"- source: {self.source}",
        ]
        return "\n".join([*lines, *([f"- {self.note}"] if self.note else [])])


@dataclass(frozen=True)
class FactMetric:
    """One value per fact, or None for a fact without such questions.

    Attributes:
        kinds: the questions it needs. needs_answers: whether it needs what the model says freely.
        value: from the fact's questions under the present state and under the base.
        by_name: also given for every name of its questions apart ("portability_acc[Reasoning]").
    """

    card: Card
    kinds: tuple[Kind, ...]
    value: Callable[[Answers, Answers], float | None]
    needs_answers: bool = False
    by_name: bool = False


@dataclass(frozen=True)
class ModelMetric:
    """Values that no fact owns, by item: a text, a control prompt, a parameter.

    Attributes:
        values: from the present state, the base, the suite, and the facts' generation prompts by fact.
        combine: from the mean of the values to the number that is shown (exp for a perplexity).
        asks_facts: the values rest on the facts' prompts; else they are the state's own.
    """

    card: Card
    values: Callable[[LM, LM, Suite, Mapping[str, Sequence[str]], OnStep], dict[str, float]]
    combine: Callable[[np.ndarray], np.ndarray] | None = None
    asks_facts: bool = False


@dataclass(frozen=True)
class JointMetric:
    """A function of the means of other metrics, resampled over facts together."""

    card: Card
    of: tuple[str, ...]
    combine: Callable[..., np.ndarray]


Metric = FactMetric | ModelMetric | JointMetric


def mean(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return sum(values) / len(values) if values else None


def over(kind: Kind, value: Callable[[Scored], float | None]) -> Callable[[Answers, Answers], float | None]:
    """A `FactMetric`'s value: the mean of `value` over the fact's questions of a kind, without those that have none."""

    def of_fact(now: Answers, base: Answers) -> float | None:
        return mean([found for q in now.get(kind, ()) if (found := value(q)) is not None])

    return of_fact
