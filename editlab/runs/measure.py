"""One edit, measured: every prompt scored before and after it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editlab.data.suggest import with_suggestions
from editlab.edits.engine import engine
from editlab.evaluation.prefixes import settle
from editlab.evaluation.scorer import score_again, score_facts
from editlab.progress import OnStep, silent
from editlab.report import EditReport, compare

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


def edit_and_measure(
    lm: LM, fact: Fact, method: str = "rome", config: Mapping[str, Any] | None = None, on_step: OnStep = silent
) -> EditReport:
    """One edit, kept in the ledger, with every prompt scored before and after it.

    A fact without paraphrases or neighbours is shown with suggested ones, marked as such; they become no part of it.
    """
    engine(lm, method, config or {})  # what it refuses is refused before any work
    (fact,) = settle(lm, [fact])
    shown, no_paraphrases, no_neighbours = with_suggestions(fact)
    suggested = ["paraphrase"] * no_paraphrases + ["neighbour"] * no_neighbours
    before = score_facts(lm, [shown])
    started = time.perf_counter()
    entry = lm.edit(fact, method, on_step=on_step, **(config or {}))
    seconds = time.perf_counter() - started
    after = score_again(lm, before)
    return EditReport(entry, fact, compare(shown, before[0], after[0], suggested), seconds)


@dataclass(frozen=True)
class FailedRow:
    """A fact that could not be edited, and why."""

    fact: str
    reason: str
