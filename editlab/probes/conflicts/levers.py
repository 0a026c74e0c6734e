"""Every lever in one harness: which one turns a model's answers to memory, or to the context, at what price.

    plain          the prompt as it is
    instruction    a sentence in the prompt that asks for memory, or for the context
    CAD, AdaCAD    two readings contrasted at every token (`contrast.py`): twice the price of decoding
    PH3-style      heads pruned once and for all (`prune.py`): free, and in the weights
    JuICE-style    dual runs (`juice.py`): twice the price; JuNe is its single run
    closed-book    the context left away: for direction memory the ceiling

Settings are chosen on validation subjects (largest share of target answers, ties by log-probability), numbers are of
test subjects. Each row also tells what the lever does to contexts that agree with what the model knows.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from editlab.evaluation.statistics import Paired, adjusted
from editlab.hooks.heads import HeadGains, head_name
from editlab.probes.conflicts.contrast import adacad, cad
from editlab.probes.conflicts.heads import Direction, HeadMap
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.juice import ENLARGE, SUPPRESS, DualRun, select
from editlab.probes.conflicts.prune import PruneSettings, means_of, prune
from editlab.probes.conflicts.prune_results import Pruning
from editlab.probes.conflicts.rates import Rates, by_subject, moved, rates
from editlab.probes.conflicts.readout import Answers, Prompts, judged
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

CAD_GRID: dict[str, tuple[float, ...]] = {"context": (0.5, 1.0, 2.0, 4.0), "memory": (-0.25, -0.5, -0.75, -0.9)}
INSTRUCTIONS = {
    "memory": "Ignore the following false statement: {evidence} In reality, {query}",
    "context": "Answer only from this text: {evidence} According to the text, {query}",
}


@dataclass(frozen=True)
class Lever:
    """One lever on test subjects.

    Attributes:
        setting: what was chosen on validation subjects. passes: forward passes per token, relative to plain decoding.
        agreeing: share of memory's answer where the context says the same. rise: of the target share over plain.
    """

    name: str
    setting: str
    rates: Rates
    agreeing: float
    rise: Paired | None
    passes: float


@dataclass(frozen=True)
class Comparison(Saved):
    """All levers towards one direction."""

    direction: Direction
    levers: tuple[Lever, ...]
    pruning: Pruning
    relation: str
    format: str
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        to = self.direction
        ranked = sorted(
            (lever for lever in self.levers if lever.name not in ("plain", "closed-book")),
            key=lambda lever: getattr(lever.rates, to).mean,
            reverse=True,
        )
        plain = getattr(self.levers[0].rates, to).mean
        shown = ", ".join(f"{lever.name} {getattr(lever.rates, to).mean:.0%}" for lever in ranked)
        return f"{self.relation}, {self.format}: answers from the {to}, plain {plain:.0%}; {shown}."

    def to_pandas(self) -> pd.DataFrame:
        """One row per lever; q is p adjusted for the number of levers (Benjamini-Hochberg)."""
        import pandas as pd

        rises = [lever.rise for lever in self.levers if lever.rise is not None]
        q = iter(adjusted([rise.p for rise in rises]))
        rows = []
        for lever in self.levers:
            row = {"lever": lever.name, "setting": lever.setting, "passes": lever.passes}
            row |= {k: v for k, v in lever.rates.to_record().items() if k != "condition"}
            row["agreeing"] = lever.agreeing
            if lever.rise is not None:
                found = lever.rise.difference
                row |= {"rise": found.mean, "rise_low": found.low, "rise_high": found.high, "p": lever.rise.p}
                row["q"] = next(q)
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Stacked shares, one bar a lever."""
        from editlab.viz.conflicts import conflict_shares

        return conflict_shares([lever.rates for lever in self.levers], f"towards the {self.direction}")

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


@dataclass(frozen=True)
class _Read:
    """Logits of a split's items under the three kinds of prompt."""

    items: Items
    conflict: Tensor
    closed: Tensor
    agreeing: Tensor

    @classmethod
    def of(cls, lm: LM, items: Items) -> _Read:
        return cls(
            items,
            Prompts(lm, [item.ids for item in items.items]).every(),
            Prompts(lm, [item.closed for item in items.items]).every(),
            Prompts(lm, _encoded(lm, items, lambda item: item.agreeing)).every(),
        )


def compare(
    lm: LM,
    items: Items,
    heads: HeadMap,
    direction: Direction = "context",
    *,
    settings: PruneSettings | None = None,
    juice: bool = True,
    on_step: OnStep = silent,
) -> Comparison:
    """Choose each lever's setting on validation subjects and measure it on test subjects.

    Args:
        heads: scores of discovery subjects. juice: the dual runs too, which take longest.
    """
    settings = (settings or PruneSettings()).model_copy(update={"direction": direction})
    validation, test = _Read.of(lm, items.split("validation")), _Read.of(lm, items.split("test"))
    plain = judged(test.conflict, test.items)
    levers = [_lever("plain", "", plain, test.agreeing, test, None, direction)]

    def add(name: str, setting: str, conflict: Tensor, agreeing: Tensor, passes: float = 1.0) -> None:
        answers = judged(conflict, test.items)
        levers.append(_lever(name, setting, answers, agreeing, test, plain, direction, passes))

    asked = [Prompts(lm, _encoded(lm, test.items, _instructed(direction, same))).every() for same in (False, True)]
    add("instruction", INSTRUCTIONS[direction].split("{")[0].strip(), asked[0], asked[1])
    a = max(
        CAD_GRID[direction],
        key=lambda a: _score(judged(cad(validation.conflict, validation.closed, a), validation.items), direction),
    )
    add("CAD", f"a = {a:g}", cad(test.conflict, test.closed, a), cad(test.agreeing, test.closed, a), 2)
    sign = 1.0 if direction == "context" else -1.0
    adaptive = [adacad(logits, test.closed, sign) for logits in (test.conflict, test.agreeing)]
    add("AdaCAD", "a = JSD" if sign > 0 else "a = -JSD", adaptive[0], adaptive[1], 2)
    pruning = prune(lm, items, heads, settings, on_step=on_step)
    chosen = {"PH3-style": pruning.best} | ({"PH3-style, safe": pruning.safe} if pruning.safe else {})
    for name, row in chosen.items():
        gains = HeadGains.pruning(row.heads, means_of(lm, items, row.heads, pruning.settings))
        both = [_pruned(lm, test.items, gains, same) for same in (False, True)]
        add(name, f"K = {row.k}: {' '.join(head_name(h) for h in row.heads)}", both[0], both[1])
    if juice:
        for name, setting, logits, passes in _juice(lm, items, heads, direction, on_step):
            add(name, setting, logits[0], logits[1], passes)
    answers = judged(test.closed, test.items)
    levers.append(_lever("closed-book", "no context", answers, test.closed, test, plain, direction))
    return Comparison(direction, tuple(levers), pruning, items.relation, items.settings.format, lm.name)


def _lever(
    name: str,
    setting: str,
    answers: Answers,
    agreeing: Tensor,
    test: _Read,
    plain: Answers | None,
    direction: Direction,
    passes: float = 1.0,
) -> Lever:
    same = judged(agreeing, test.items)
    share = float(by_subject(same.is_memory.astype(float), same.subjects).mean())
    rise = None if plain is None else moved(plain, answers, direction)
    return Lever(name, setting, rates(name, answers), share, rise, passes)


def _score(answers: Answers, direction: Direction) -> tuple[float, float]:
    hit, log_p = (answers.is_memory, answers.memory) if direction == "memory" else (answers.is_context, answers.context)
    return float(by_subject(hit.astype(float), answers.subjects).mean()), float(log_p.mean())


def _encoded(lm: LM, items: Items, prompt: Callable[[Item], str]) -> list[Sequence[int]]:
    return [lm.tokens(prompt(item))[0] for item in items.items]


def _instructed(direction: Direction, agreeing: bool) -> Callable[[Item], str]:
    def prompt(item: Item) -> str:
        answer = item.case.memory if agreeing else item.answer
        evidence = item.wording.evidence(item.case.subject, answer, item.other)
        query = item.query if item.query.startswith("Question") else item.query[:1].lower() + item.query[1:]
        return INSTRUCTIONS[direction].replace("{evidence}", evidence).replace("{query}", query)

    return prompt


def _pruned(lm: LM, items: Items, gains: HeadGains, agreeing: bool) -> Tensor:
    rows = _encoded(lm, items, lambda item: item.agreeing) if agreeing else [item.ids for item in items.items]
    return Prompts(lm, rows).every(gains)


def _juice(
    lm: LM, items: Items, heads: HeadMap, direction: Direction, on_step: OnStep
) -> list[tuple[str, str, list[Tensor], float]]:
    """Rows of JuICE and of JuNe: name, setting, logits of conflicts and of agreeing contexts, passes."""
    chosen = select(lm, items.split("discovery"), heads, direction, on_step=on_step)
    every = [*chosen.enlarge, *chosen.suppress]
    if not every:
        return []
    validation, test = items.split("validation"), items.split("test")
    dual = DualRun(lm, [item.ids for item in validation.items], every)
    single = Prompts(lm, [item.ids for item in validation.items])
    single.freeze(dual.lowest)
    grid = [(s, e) for s in SUPPRESS for e in ENLARGE if chosen.alphas(e, s)]
    best: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
    for n, (suppress, enlarge) in enumerate(grid):
        on_step(StepInfo("dual runs on validation subjects", n, len(grid), "settings"))
        alphas = chosen.alphas(enlarge, suppress)
        gains = HeadGains({head: 1 + alpha for head, alpha in alphas.items()})
        for name, logits in (("JuICE-style", dual.every(alphas)), ("JuNe-style", single.every(gains))):
            score = _score(judged(logits, validation), direction)
            if name not in best or score > best[name][0]:
                best[name] = score, (suppress, enlarge)
    on_step(StepInfo("dual runs on validation subjects", len(grid), len(grid), "settings"))
    rows = ([item.ids for item in test.items], _encoded(lm, test, lambda item: item.agreeing))
    found = []
    for name, (_, (suppress, enlarge)) in best.items():
        alphas = chosen.alphas(enlarge, suppress)
        gains = HeadGains({head: 1 + alpha for head, alpha in alphas.items()})
        is_dual = name == "JuICE-style"
        both = [DualRun(lm, r, every).every(alphas) if is_dual else Prompts(lm, r).every(gains) for r in rows]
        setting = (
            f"suppress {suppress:g} x {' '.join(map(head_name, chosen.suppress)) or 'none'}, "
            f"enlarge {enlarge:g} x {' '.join(map(head_name, chosen.enlarge)) or 'none'}"
        )
        found.append((name, setting, both, 2.0 if is_dual else 1.0))
    return found
