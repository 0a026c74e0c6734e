"""Measure a model with its edits against the same model without them.

1. Every question that the chosen metrics need is scored under the base, in shared batches.
2. The same under the edited model: after the last edit for a batch or a sequence, or, for edits that were made one at a
   time (mode "single"), each fact under its own edit alone.
3. Metrics turn the scores of a fact into one value; values become means with intervals over facts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from editlab.errors import ConfigError
from editlab.evaluation.cards import Answers, FactMetric, JointMetric, Metric, ModelMetric
from editlab.evaluation.prefixes import settle
from editlab.evaluation.questions import Asked, Kind, asked
from editlab.evaluation.results import STATES, Evaluation, Line
from editlab.evaluation.scorer import Scored, score
from editlab.evaluation.statistics import Estimate, estimate, estimate_joint
from editlab.evaluation.suite import Suite
from editlab.facts import Fact
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.state.ledger import Entry

MODES = ("together", "single")
# By metric, then by item.
Values = dict[str, dict[str, float]]


def evaluate(
    lm: LM,
    facts: Sequence[Fact] | None = None,
    suite: Suite | None = None,
    *,
    mode: str = "together",
    on_step: OnStep = silent,
) -> Evaluation:
    """Measure `lm` as it stands against its base.

    Args:
        facts: what to ask; by default the facts of the ledger's edits.
        mode: "together" scores the model as it stands. "single" scores each fact under the one edit that wrote it,
            whether that is active at present or undone; facts that no edit wrote are left out.

    Raises:
        ConfigError: there is nothing to measure, or the mode is not known.
    """
    if mode not in MODES:
        raise ConfigError(f"Mode '{mode}' is not known.", f"Use {' or '.join(MODES)}.")
    suite = suite or Suite()
    if mode == "single" and (suite.along or suite.lm_eval):
        raise ConfigError(
            "Edits that are scored one by one make no sequence and no one model.",
            "Leave out 'along' and 'lm_eval', or use mode together.",
        )
    chosen = suite.chosen
    entries = [e for e in lm.ledger if mode == "single" or e.is_active]
    written = {_key(f): (e, f) for e in entries for f in _facts_of(e)}
    writer = {key: entry for key, (entry, _) in written.items()}
    facts = list(facts if facts is not None else [f for e in entries for f in _facts_of(e)])
    if mode == "single":
        facts = [f for f in facts if _key(f) in writer]
    # What was written is asked for as it was written.
    facts = [_joined_as(f, written[_key(f)][1]) if _key(f) in written else f for f in facts[: suite.limit]]
    facts = settle(lm, facts, on_step)
    if not facts:
        raise ConfigError("There is no fact to measure.", "Name a facts file, or edit the model first.")
    names = _names(facts)

    base = lm.pristine()
    beside = [fact for _, fact in written.values()] if mode == "together" else []
    kinds = {k for m in chosen.values() if isinstance(m, FactMetric) for k in m.kinds}
    free = any(isinstance(m, FactMetric) and m.needs_answers for m in chosen.values())
    scorer = _Scorer(suite, free, on_step)
    before = scorer(base, asked(facts, kinds, beside), is_base=True)
    questions = [q.asked for q in before]
    prompts = {n: f.generation_prompts or (f.text,) for n, f in zip(names, facts, strict=True)}
    of_model = {n: m for n, m in chosen.items() if isinstance(m, ModelMetric)}

    def model_values(state: LM, its_prompts: Mapping[str, Sequence[str]]) -> Values:
        return {n: m.values(state, base, suite, its_prompts, on_step) for n, m in of_model.items()}

    keep = base is not lm and suite.prose == Suite().prose  # a file of prose may be another one next time
    base_values = _of_base(of_model, base, suite, prompts, on_step, keep=keep)
    if mode == "together":
        after, edited_values = scorer(lm, questions), model_values(lm, prompts)
    else:
        after, edited_values = [], {n: {} for n in of_model}
        for i, state in enumerate(_one_at_a_time(lm, [writer[_key(f)] for f in facts])):
            on_step(StepInfo("measuring edits", i, len(facts), "edits", facts[i].label))
            after += scorer(state, [q for q in questions if q.fact == i])
            for name, found in model_values(state, {names[i]: prompts[names[i]]}).items():
                if found:
                    edited_values[name][names[i]] = float(np.mean(list(found.values())))
        on_step(StepInfo("measuring edits", len(facts), len(facts), "edits"))

    values: dict[str, Values] = {
        "base": _fact_values(chosen, names, before, before) | base_values,
        "edited": _fact_values(chosen, names, after, before) | edited_values,
    }
    lines = _lines(chosen, values, names, suite)
    settings = {
        "model": lm.name,
        "base_hash": lm.base_hash,
        "state_hash": lm.state_hash,
        "suite": suite.model_dump(mode="json"),
        "mode": mode,
        "protocol": "each fact under its own edit alone." if mode == "single" else "scored after the last edit.",
        "n_facts": len(facts),
        "n_edited": sum(_key(f) in writer for f in facts),
        "n_edits": len(entries),
        "without_data": [n for n in chosen if n not in {line.metric for line in lines}],
    }
    matrix = None
    if suite.along:
        from editlab.evaluation.sequence import along

        matrix = along(lm, facts, names, suite, on_step=on_step)
    if suite.lm_eval:
        from editlab.evaluation.harness import run_tasks

        lines += run_tasks(lm, base, suite, on_step)
    return Evaluation(tuple(lines), _items(values), _prompts(names, before, after), settings, matrix)


# What the unedited model's own values are is asked for after every edit; keyed by content, so it can only be right.
_KEPT: OrderedDict[tuple[str, ...], dict[str, float]] = OrderedDict()


def _of_base(
    metrics: Mapping[str, ModelMetric],
    base: LM,
    suite: Suite,
    prompts: Mapping[str, Sequence[str]],
    on_step: OnStep,
    *,
    keep: bool,
) -> Values:
    """The unedited model's values. To be kept it must be a view of its own, which nobody can have put hooks on."""
    values: Values = {}
    for name, metric in metrics.items():
        key = (name, base.base_hash, base.tokenizer_hash, str(base.device), suite.model_dump_json())
        if not keep or metric.asks_facts:
            values[name] = metric.values(base, base, suite, prompts, on_step)
            continue
        found = _KEPT.get(key)  # another thread may drop it at any time
        if found is None:
            found = _KEPT[key] = metric.values(base, base, suite, prompts, on_step)
            while len(_KEPT) > 64:
                _KEPT.popitem(last=False)
        values[name] = dict(found)
    return values


def _key(fact: Fact) -> tuple[str, str, str]:
    return fact.prompt, fact.subject, fact.target_new


def _joined_as(fact: Fact, written: Fact) -> Fact:
    return fact.model_copy(update={n: getattr(written, n) for n in ("target_prefix", "target_prefix_by")})


def _facts_of(entry: Entry) -> list[Fact]:
    return [Fact.model_validate(request) for request in entry.edit.requests]


def _names(facts: Sequence[Fact]) -> list[str]:
    """A name per fact that is the same in every run: its id, else its text; numbered where they repeat."""
    names: list[str] = []
    for fact in facts:
        name, n = fact.id or fact.text, 1
        while name in names:
            n += 1
            name = f"{fact.id or fact.text} ({n})"
        names.append(name)
    return names


def _one_at_a_time(lm: LM, entries: Sequence[Entry]) -> Iterator[LM]:
    """For every entry the model with this edit and no other."""
    twin = lm.fork()
    for entry in twin.ledger.active:
        twin.undo(entry.id)
    for entry in entries:
        twin.redo(entry.id)
        try:
            yield twin
        finally:
            twin.undo(entry.id)


@dataclass(frozen=True)
class _Scorer:
    """`score` with a suite's settings."""

    suite: Suite
    free: bool
    on_step: OnStep

    def __call__(self, lm: LM, questions: Sequence[Asked], *, is_base: bool = False) -> list[Scored]:
        if not questions:
            return []
        s = self.suite
        return score(
            lm,
            questions,
            free=self.free,
            max_new_tokens=s.max_new_tokens,
            sink=s.sink,
            is_base=is_base,
            on_step=self.on_step,
        )


def _by_fact(scored: Sequence[Scored], n: int) -> list[dict[Kind, list[Scored]]]:
    out: list[dict[Kind, list[Scored]]] = [{} for _ in range(n)]
    for q in scored:
        out[q.asked.fact].setdefault(q.asked.kind, []).append(q)
    return out


def _fact_values(
    chosen: Mapping[str, Metric], names: Sequence[str], now: Sequence[Scored], base: Sequence[Scored]
) -> Values:
    out: Values = {}
    both = list(zip(names, _by_fact(now, len(names)), _by_fact(base, len(names)), strict=True))
    for name, metric in chosen.items():
        if not isinstance(metric, FactMetric):
            continue
        out[name] = _values_of(metric, both)
        groups = {q.asked.name for q in now if q.asked.kind in metric.kinds} - {""} if metric.by_name else set()
        for group in sorted(groups):
            named = [(fact, _only(a, group), _only(b, group)) for fact, a, b in both]
            out[f"{name}[{group}]"] = _values_of(metric, named)
    return out


def _values_of(metric: FactMetric, facts: Sequence[tuple[str, Answers, Answers]]) -> dict[str, float]:
    found = ((fact, metric.value(now, base)) for fact, now, base in facts)
    return {fact: value for fact, value in found if value is not None}


def _only(answers: Answers, name: str) -> Answers:
    return {kind: [q for q in found if q.asked.name == name] for kind, found in answers.items()}


def _lines(
    chosen: Mapping[str, Metric], values: Mapping[str, Values], names: Sequence[str], suite: Suite
) -> list[Line]:
    """A line per metric that has any value; joint metrics are resampled over facts."""

    def side(name: str, state: str) -> Estimate:
        metric, found = chosen[name.split("[")[0]], values[state]
        if isinstance(metric, JointMetric):
            columns = [[found[part].get(n, np.nan) for n in names] for part in metric.of]
            return estimate_joint(columns, metric.combine, seed=suite.seed)
        column = list(found[name].values())
        if isinstance(metric, ModelMetric) and metric.combine is not None:
            return estimate_joint([column], metric.combine, seed=suite.seed)
        return estimate(column, seed=suite.seed)

    lines = []
    for name, metric in chosen.items():
        if isinstance(metric, JointMetric):
            shown = [name] if all(values["edited"].get(part) for part in metric.of) else []
        else:
            shown = [n for n in values["edited"] if n.split("[")[0] == name and values["edited"][n]]
        lines += [Line(n, side(n, "base"), side(n, "edited")) for n in shown]
    return lines


def _items(values: Mapping[str, Values]) -> Any:
    import pandas as pd

    rows = [
        (metric, state, item, value)
        for state in STATES
        for metric, of_items in values[state].items()
        for item, value in of_items.items()
    ]
    return pd.DataFrame(rows, columns=["metric", "state", "item", "value"])


def _prompts(names: Sequence[str], before: Sequence[Scored], after: Sequence[Scored]) -> Any:
    import pandas as pd

    rows = []
    for b, a in zip(before, after, strict=True):
        row: dict[str, Any] = {
            "fact": names[b.asked.fact],
            "kind": b.asked.kind,
            "name": b.asked.name,
            "prompt": b.asked.prompt,
            "base_answer": b.answer,
            "edited_answer": a.answer,
        }
        for role, target in b.asked.targets.items():
            row |= {f"target_{role}": target}
            row |= {f"base_nll_{role}": b.forced[role].nll, f"edited_nll_{role}": a.forced[role].nll}
        rows.append(row)
    return pd.DataFrame(rows)
