"""What an edit did: every prompt's answer and probabilities before and after, side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editlab.display import html_table
from editlab.evaluation.answers import are_alike, begins, is_kept
from editlab.evaluation.questions import KEPT
from editlab.evaluation.scorer import Scored

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table

    from editlab.facts import Fact
    from editlab.state.ledger import Entry

SHOWN = 48  # characters of an answer in a table


@dataclass(frozen=True)
class ReportRow:
    """One prompt before and after.

    Attributes:
        p_new, p_true: (before, after) geometric-mean token probability of the fact's new answer and of the prompt's
            own. None where there is no such target.
        answer: (before, after) greedy continuations.
        is_suggested: the prompt came from editlab, not from the user.
        own: the prompt's own answer, which holds without the edit: the fact's true one, or that of the neighbour or
            locality question; where none is given for a neighbour, what the model said before.
        accepted: all own answers that were given.
        apart: why it cannot show damage although its answer should not change, or "".
    """

    fact: str
    kind: str
    prompt: str
    answer: tuple[str, str]
    p_new: tuple[float, float] | None
    p_true: tuple[float, float] | None
    is_suggested: bool = False
    own: str | None = None
    accepted: tuple[str, ...] = ()
    apart: str = ""

    @property
    def changed(self) -> bool:
        """The model gives another answer than before, by the rule that decides whether an edit fires."""
        return not is_kept(*self.answer, self.accepted)

    @property
    def may_show_damage(self) -> bool:
        """A prompt whose answer should not change, and that would show if it did."""
        return self.kind in KEPT and not self.apart

    @property
    def verdict(self) -> str:
        """Whether it changed; where that is not counted, why."""
        changed = "changed" if self.changed else "same"
        return f"{changed} (apart: {self.apart})" if self.apart else changed


@dataclass(frozen=True)
class EditReport:
    """An edit and its effects.

    Attributes:
        entry: the ledger entry. seconds: of the edit itself, statistics from the cache or not included; of an edit of
            several facts each one's share.
        rows: before and after of every prompt.
    """

    entry: Entry
    fact: Fact
    rows: tuple[ReportRow, ...]
    seconds: float

    @property
    def fires(self) -> bool:
        """The edited model says the new target at the rewrite prompt."""
        return begins(self.rows[0].answer[1], self.fact.target_new)

    @property
    def followed(self) -> tuple[int, int]:
        """How many paraphrases are answered with the new target, of how many."""
        asked = [r for r in self.rows if r.kind == "paraphrase"]
        return sum(begins(r.answer[1], self.fact.target_new) for r in asked), len(asked)

    @property
    def disturbed(self) -> tuple[int, int]:
        """How many prompts that should keep their answer have another one, of how many; without those apart."""
        asked = [r for r in self.rows if r.may_show_damage]
        return sum(r.changed for r in asked), len(asked)

    @property
    def apart(self) -> tuple[int, int]:
        """The same of the prompts that cannot show damage: their own answer is the new one, is edited by another edit,
        or is not what the model said before."""
        asked = [r for r in self.rows if r.apart]
        return sum(r.changed for r in asked), len(asked)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        p_before, p_after = self.rows[0].p_new or (float("nan"), float("nan"))
        changed, asked = self.disturbed
        verdict = "now says" if self.fires else "does NOT yet say"
        return (
            f"{self.fact.text!r}: the model {verdict} {self.fact.target_new!r} "
            f"(P {p_before:.2%} -> {p_after:.2%}); "
            f"{changed} of {asked} neighbours answer differently{_beside(self.apart)}; {self.seconds:.1f} s."
        )

    def to_records(self) -> list[dict[str, Any]]:
        """One flat dict per prompt."""
        return [
            {
                "fact": r.fact,
                "kind": r.kind,
                "prompt": r.prompt,
                "answer_before": r.answer[0],
                "answer_after": r.answer[1],
                "p_new_before": r.p_new[0] if r.p_new else None,
                "p_new_after": r.p_new[1] if r.p_new else None,
                "p_true_before": r.p_true[0] if r.p_true else None,
                "p_true_after": r.p_true[1] if r.p_true else None,
                "own_answer": r.own,
                "changed": r.changed,
                "apart": r.apart,
                "suggested": r.is_suggested,
            }
            for r in self.rows
        ]

    def to_pandas(self) -> pd.DataFrame:
        """`to_records` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_records())

    def plot(self) -> go.Figure:
        """Every prompt's probabilities, before and after."""
        from editlab.viz.edits import edit_probabilities

        return edit_probabilities(self)

    def table(self) -> Table:
        """A rich table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=None, show_lines=False)
        for header in ("", "prompt", "before", "after"):
            table.add_column(header, overflow="fold")
        for header in (f"P({self.fact.target_new})", "P(own answer)", ""):
            table.add_column(header, justify="right", overflow="fold")
        for r in self.rows:
            kind = f"{r.kind}{' (suggested)' if r.is_suggested else ''}"
            cells = (
                kind,
                r.prompt,
                _shown(r.answer[0]),
                _shown(r.answer[1]),
                _pair(r.p_new),
                _own(r),
                r.verdict,
            )
            # As plain text: "[/b]" in an answer is no markup.
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _repr_html_(self) -> str:
        rows = (
            (r.kind, r.prompt, _shown(r.answer[0]), _shown(r.answer[1]), _pair(r.p_new), _own(r), r.verdict)
            for r in self.rows
        )
        new = f"P({self.fact.target_new})"
        table = html_table(("", "prompt", "before", "after", new, "P(own answer)", ""), rows)
        return f"<p>{html.escape(self.headline)}</p>{table}"


def overview(reports: Sequence[EditReport]) -> Table:
    """A row per fact, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None, show_lines=False)
    for header in ("prompt", "new answer", "now says"):
        table.add_column(header, overflow="fold")
    for header in ("P(new)", "fires", "paraphrases", "neighbours"):
        table.add_column(header, justify="right", no_wrap=True)
    for r in reports:
        (followed, paraphrases), (changed, neighbours) = r.followed, r.disturbed
        cells = (
            r.fact.text,
            r.fact.target_new,
            _shown(r.rows[0].answer[1]),
            _pair(r.rows[0].p_new),
            "yes" if r.fires else "no",
            f"{followed} of {paraphrases} follow" if paraphrases else "",
            f"{changed} of {neighbours} changed{_beside(r.apart)}" if neighbours or r.apart[1] else "",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def compare(
    fact: Fact, before: Sequence[Scored], after: Sequence[Scored], suggested: Sequence[str] = ()
) -> tuple[ReportRow, ...]:
    """Rows from the scores of the same prompts under two states; `suggested` names kinds that editlab filled in."""
    return tuple(
        ReportRow(
            fact=fact.id or fact.label,
            kind=b.asked.kind,
            prompt=b.asked.prompt,
            answer=(b.answer or "", a.answer or ""),
            p_new=_both(b, a, "new"),
            p_true=_both(b, a, "own" if "own" in b.forced else "true"),
            is_suggested=b.asked.kind in suggested,
            own=b.asked.own,
            accepted=b.asked.accepted,
            apart=_apart(fact, b),
        )
        for b, a in zip(before, after, strict=True)
    )


def _apart(fact: Fact, before: Scored) -> str:
    """Why a prompt that should keep its answer cannot show damage, or ""."""
    q, answer = before.asked, before.answer or ""
    if q.kind not in KEPT:
        return ""
    if any(are_alike(own, fact.target_new) for own in q.accepted or filter(None, [q.own])):
        return "its own answer is the new one"
    if q.is_edited:
        return "it is edited itself"
    if q.accepted and not any(begins(answer, own) for own in q.accepted):
        return "the model did not know it before"
    return ""


def _both(before: Scored, after: Scored, role: str) -> tuple[float, float] | None:
    p, q = before.p(role), after.p(role)
    return None if p is None or q is None else (p, q)


def _first_line(answer: str) -> str:
    return answer.strip().split("\n")[0].strip()


def _shown(answer: str) -> str:
    line = _first_line(answer)
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _own(row: ReportRow) -> str:
    return f"{row.own}: {_pair(row.p_true)}" if row.own is not None and row.p_true is not None else ""


def _beside(apart: tuple[int, int]) -> str:
    changed, asked = apart
    return f" ({asked} more apart, {changed} changed)" if asked else ""


def _pair(p: tuple[float, float] | None) -> str:
    return "" if p is None else f"{p[0]:.1%} -> {p[1]:.1%}"
