"""Does an edit behave as memory? The same conflicts before and after it, and the heads that carry the answer.

For each fact an edit writes `new` in place of what the model knows. Contexts then assert a third answer against it:

    before   memory is what the model knew, the context says the third answer
    after    memory is what was written; the same context

An edit that is memory keeps its share of answers against a context, and the heads that brought the old answer bring the
new one. Each fact is edited alone and undone, so edits do not disturb one another. `shielded` is the share of items on
which a side memory (WISE, GRACE) answered at all: with a context in front it may not recognise its prompt.
"""

from __future__ import annotations

import html
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from editlab.data.relations import place
from editlab.errors import EditFailed, RequestError
from editlab.facts import Fact
from editlab.probes.conflicts.heads import HeadMap, head_map_of
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.path_patching import Corruption, head_scores
from editlab.probes.conflicts.rates import Rates, rates
from editlab.probes.conflicts.readout import Prompts, judged
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import target_ids
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

CORRUPTIONS: tuple[Corruption, ...] = ("both", "subject", "context")


@dataclass(frozen=True)
class Edited(Saved):
    """Conflicts before and after edits.

    Attributes:
        rows: closed-book and conflict rates, before and after. heads: of the same items, before and after.
        agreement: correlation of the two head maps. failed: facts that could not be edited, and why.
        shielded: share of items a side memory answered, with a context and without; None for edits of weights.
    """

    method: str
    rows: tuple[Rates, ...]
    heads: dict[str, HeadMap]
    shielded: dict[str, float] | None
    failed: tuple[tuple[str, str], ...]
    facts: int
    relation: str
    format: str
    model: str

    @property
    def agreement(self) -> float:
        """Pearson's r of S_both of all heads, before against after."""
        before, after = (self.heads[name].mean.ravel() for name in ("before", "after"))
        return float(np.corrcoef(before, after)[0, 1])

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        found = {row.condition: row for row in self.rows}
        before, after = found["conflict, before"].memory, found["conflict, after"].memory
        return (
            f"{self.method}, {self.facts} facts: against a context, {before.mean:.0%} of what was known "
            f"({before.low:.0%} to {before.high:.0%}) and {after.mean:.0%} of what was written ({after.low:.0%} to "
            f"{after.high:.0%}) is still said; the head maps agree with r = {self.agreement:.2f}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per condition."""
        import pandas as pd

        return pd.DataFrame([row.to_record() for row in self.rows])

    def plot(self) -> go.Figure:
        """Shares before and after, and every head before against after."""
        from editlab.viz.conflicts import edited_conflicts

        return edited_conflicts(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


def edited_conflicts(
    lm: LM,
    items: Items,
    method: str = "rome",
    config: Mapping[str, Any] | None = None,
    *,
    facts: int = 12,
    on_step: OnStep = silent,
) -> Edited:
    """Edit facts one by one and ask their conflicts before and after.

    Args:
        method: a registered method; `config` are its settings.
        facts: how many subjects, the discovery split's first.

    Raises:
        RequestError: no fact could be edited.
    """
    subjects = list(dict.fromkeys(items.subjects))[:facts]
    failed = []
    kept: list[tuple[Item, Item]] = []  # before, after
    answers: dict[str, list[torch.Tensor]] = {name: [] for name in ("closed", "conflict")}
    scores: dict[Corruption, list[torch.Tensor]] = {name: [] for name in CORRUPTIONS}
    routed: dict[str, list[bool]] = {"conflict": [], "closed": []}
    for n, subject in enumerate(subjects):
        on_step(StepInfo("editing and asking", n, len(subjects), "facts", subject))
        mine = [item for item in items.items if item.case.subject == subject]
        new = _new_answer(items, mine)
        if new is None:
            failed.append((subject, "no other answer is left to write"))
            continue
        twin = lm.fork()
        try:
            twin.edit([_fact(mine[0], new)], method, **(config or {}))
        except EditFailed as error:
            failed.append((subject, error.what))
            continue
        written = [replace(item, case=replace(item.case, memory=new), tok_mem=_first(lm, item, new)) for item in mine]
        kept += zip(mine, written, strict=True)
        answers["conflict"].append(Prompts(twin, [item.ids for item in written]).every())
        answers["closed"].append(Prompts(twin, [item.closed for item in written]).every())
        for name, found in head_scores(twin, written, CORRUPTIONS).items():
            scores[name].append(found)
        if twin.routes.layers:
            for kind, texts in (("conflict", [i.prompt for i in mine]), ("closed", [i.query for i in mine])):
                routed[kind] += [route.answers != "model" for route in twin.route(texts).routes]
    on_step(StepInfo("editing and asking", len(subjects), len(subjects), "facts"))
    if not kept:
        raise RequestError(f"None of {len(subjects)} facts could be edited ({failed[0][1]}).", "Try another method.")
    before, after = (items.only([pair[side] for pair in kept]) for side in (0, 1))
    rows = (
        rates("closed-book, before", judged(Prompts(lm, [i.closed for i in before.items]).every(), before)),
        rates("closed-book, after", judged(torch.cat(answers["closed"]), after)),
        rates("conflict, before", judged(Prompts(lm, [i.ids for i in before.items]).every(), before)),
        rates("conflict, after", judged(torch.cat(answers["conflict"]), after)),
    )
    heads = {
        "before": head_map_of(lm, before, head_scores(lm, before.items, CORRUPTIONS)),
        "after": head_map_of(lm, after, {name: torch.cat(found) for name, found in scores.items()}),
    }
    return Edited(
        method,
        rows,
        heads,
        {kind: float(np.mean(found)) for kind, found in routed.items()} if routed["conflict"] else None,
        tuple(failed),
        len(set(before.subjects)),
        items.relation,
        items.settings.format,
        lm.name,
    )


def _new_answer(items: Items, mine: Sequence[Item]) -> str | None:
    """An answer to write, the same in every run: another subject's, unlike memory's, the contexts', the partners'."""
    taken = {mine[0].case.memory, *mine[0].case.aliases}
    taken |= {text for item in mine for text in (item.answer, *(partner.answer for partner in item.partners))}
    tokens = {token for item in mine for token in (item.tok_mem, item.tok_ctx)}
    first = {other.case.memory: other.tok_mem for other in items.items}
    fitting = sorted(answer for answer, token in first.items() if answer not in taken and token not in tokens)
    return random.Random(mine[0].case.subject).choice(fitting) if fitting else None


def _fact(item: Item, new: str) -> Fact:
    subject = item.case.subject
    return Fact(
        prompt=place(item.wording.stem, subject),
        subject=subject,
        target_new=new,
        target_true=item.case.memory,
        target_prefix=item.wording.target_prefix,
    )


def _first(lm: LM, item: Item, answer: str) -> int:
    return target_ids(lm, item.query, answer, item.wording.target_prefix, sink=False)[1][0]
