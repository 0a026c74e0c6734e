"""Scores along a sequence of edits: facts by edits so far, so that forgetting is visible.

An edit's own score right after it was made says nothing about what later edits did to it. Here the edits of a ledger
are put back one after the other on the base, and after 1, 2, 5, 10, 20, ... of them all facts are asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from editlab.evaluation.questions import asked
from editlab.evaluation.scorer import score
from editlab.evaluation.suite import Suite
from editlab.facts import Fact
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from editlab.lm import LM


def steps(n: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, 50, ... up to and with n."""
    marks = (base * 10**power for power in count() for base in (1, 2, 5))
    out = [0]
    for mark in marks:
        if mark >= n:
            return [*out, n] if n else out
        out.append(mark)
    raise AssertionError("count() does not end")


def along(
    lm: LM, facts: Sequence[Fact], names: Sequence[str], suite: Suite, *, on_step: OnStep = silent
) -> pd.DataFrame:
    """Rewrite scores of every fact after so many of the active edits, in long form.

    Returns:
        Columns: edits (how many are in the model), fact, written (the number of the edit that wrote it, 0 if none did),
        nll_new, nll_true (NaN without a true target), success (NLL(new) < NLL(true)), argmax (every token of the new
        target is the most probable one).
    """
    import pandas as pd

    active = list(lm.ledger.active)
    number = {(r["prompt"], r["subject"], r["target_new"]): i for i, e in enumerate(active, 1) for r in e.edit.requests}
    questions = asked(facts, {"rewrite"})
    twin = lm.fork()
    for entry in active:
        twin.undo(entry.id)
    rows: list[dict[str, Any]] = []
    marks = steps(len(active))
    done = 0
    for place, mark in enumerate(marks):
        for entry in active[done:mark]:
            twin.redo(entry.id)
        done = mark
        for name, fact, q in zip(names, facts, score(twin, questions, free=False, sink=suite.sink), strict=True):
            new, true = q.forced["new"], q.forced.get("true")
            rows.append(
                {
                    "edits": mark,
                    "fact": name,
                    "written": number.get((fact.prompt, fact.subject, fact.target_new), 0),
                    "nll_new": new.nll,
                    "nll_true": true.nll if true else float("nan"),
                    "success": None if true is None else new.nll < true.nll,
                    "argmax": new.is_argmax,
                }
            )
        on_step(StepInfo("scoring along the sequence", place + 1, len(marks), "states"))
    return pd.DataFrame(rows)


def retention(matrix: pd.DataFrame) -> Table:
    """What is left of the facts written so far, for every number of edits: a row of the matrix in short."""
    from rich.table import Table

    table = Table(caption="Share of rewrite prompts at which every token of the new answer is the most probable one.")
    for header in ("edits", "facts written", "still there", "facts not written", "there all the same"):
        table.add_column(header, justify="right")
    for edits, at in matrix.groupby("edits"):
        is_written = (at.written > 0) & (at.written <= edits)
        cells = [
            text
            for part in (at[is_written], at[~is_written])
            for text in (str(len(part)), f"{part.argmax.mean():.1%}" if len(part) else "-")
        ]
        table.add_row(str(edits), *cells)
    return table
