"""What kind of evidence a model believes: order, quantity, irrelevant and partial evidence (after arXiv 2305.13300).

The questions of Chameleon / Sloth, asked so that a small base model can answer without a judge:

1. Both answers are scored as text, s = mean log p(answer tokens | prompt), less the same after a prompt about nothing
   (domain-conditional PMI). There are no letters and no listed options, so their order cannot matter.
2. Memory is what this model prefers closed-book under two wordings; questions on which they disagree are left out, and
   counted. (Part of a later preference for memory may come from this filter, as the paper's reviewers note.)
3. Every kind of evidence is put in front of the first wording; the memorization ratio M_R is the share of questions
   that still prefer memory's answer. A choice is called undecided where |s_memory - s_counter| is below the 10th
   percentile of the closed-book margins.

Coherent passages about relations are ours, three sentences each ("template-coherent", not written by a model), and
are set beside as many mentions of the answer in repeated claims. No entailment model checks the passages: an answer
must occur in its own and not in the other's ("string check").
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from editlab.data.conflicts import say
from editlab.data.conflicts.evidence import EvidenceQuestion, is_negated
from editlab.data.relations import fill
from editlab.errors import RequestError
from editlab.evaluation.known import NOBODY
from editlab.evaluation.scorer import force
from editlab.evaluation.statistics import Estimate, estimate
from editlab.probes.conflicts.items import Item, Items
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM

# Kinds of evidence: each part is (whose, what); m memory's, c the counter answer's, x irrelevant.
KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "closed-book": (),
    "counter claim": (("c", "claim"),),
    "counter claim, twice": (("c", "claim"), ("c", "claim")),
    "counter passage": (("c", "passage"),),
    "counter claim and irrelevant (partial)": (("c", "claim"), ("x", "passage")),
    "memory passage": (("m", "passage"),),
    "memory, then counter": (("m", "passage"), ("c", "passage")),
    "counter, then memory": (("c", "passage"), ("m", "passage")),
    "2 memory : 1 counter": (("m", "passage"), ("c", "passage"), ("m", "other")),
    "1 memory : 2 counter": (("c", "passage"), ("m", "passage"), ("c", "other")),
    "irrelevant": (("x", "passage"),),
    "irrelevant, memory, counter": (("x", "passage"), ("m", "passage"), ("c", "passage")),
}


@dataclass(frozen=True)
class EvidenceRow:
    """One kind of evidence: the memorization ratio, the mean margin s_memory - s_counter, and what is undecided."""

    kind: str
    group: str
    memory: Estimate
    margin: Estimate
    undecided: float


@dataclass(frozen=True)
class EvidenceReport(Saved):
    """Preferences of one model.

    Attributes:
        asked: questions. kept: those whose memory is the same under both wordings and that pass the string check.
        unstable: those left out for their wordings. unchecked: those that fail it or have no irrelevant text.
        accuracy: share of kept questions whose memory is right; None where nothing is known to be right.
        popularity: Spearman's r of popularity with the margin under a counter passage; None without popularities.
    """

    rows: tuple[EvidenceRow, ...]
    asked: int
    kept: int
    unstable: int
    unchecked: int
    accuracy: Estimate | None
    popularity: tuple[float, float] | None
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        found = {row.kind: row for row in self.rows if row.group == "all"}
        one, first, last = (
            found[k].memory for k in ("counter passage", "memory, then counter", "counter, then memory")
        )
        return (
            f"{self.kept} of {self.asked} questions have a stable memory; against one passage {one.mean:.0%} "
            f"({one.low:.0%} to {one.high:.0%}) keep to it, between two {first.mean:.0%} with memory's first and "
            f"{last.mean:.0%} with it last."
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per kind of evidence and group."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "evidence": row.kind,
                    "group": row.group,
                    "memorization_ratio": row.memory.mean,
                    "low": row.memory.low,
                    "high": row.memory.high,
                    "n": row.memory.n,
                    "margin": row.margin.mean,
                    "undecided": row.undecided,
                }
                for row in self.rows
            ]
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


def questions_of_items(items: Items) -> tuple[EvidenceQuestion, ...]:
    """The first conflict of each subject as a question with evidence.

    Raises:
        RequestError: nothing but the prompt is known of these facts.
    """
    first: dict[str, Item] = {}
    for item in items.items:
        first.setdefault(item.case.subject, item)
    out = []
    for item in first.values():
        found, case = item.wording.texts, item.case
        if found is None:
            raise RequestError("Facts of a file have no passages.", "Use a relation, or a conflictQA file.")
        answers = (case.memory, item.answer)
        stem = item.wording.query(case.subject)
        partner = item.partners[0] if item.partners else None
        out.append(
            EvidenceQuestion(
                asks=(stem, f"Question: {say(found.question, case.subject, '')} Answer: {stem}"),
                neutral=fill(item.wording.stem, NOBODY),
                answers=answers,
                passages=(
                    tuple(say(p, case.subject, answers[0]) for p in found.paragraphs),
                    tuple(say(p, case.subject, answers[1]) for p in found.paragraphs),
                ),
                claims=(say(found.sentence, case.subject, answers[0]), say(found.sentence, case.subject, answers[1])),
                irrelevant=(say(found.paragraphs[-1], partner.subject, partner.answer),) if partner else (),
                subject=case.subject,
                popularity=case.popularity,
                correct=0,
            )
        )
    return tuple(out)


def evidence_preference(lm: LM, questions: Sequence[EvidenceQuestion], *, on_step: OnStep = silent) -> EvidenceReport:
    """Ask every question with every kind of evidence.

    Raises:
        RequestError: fewer than two questions are left.
    """
    checked = [q for q in questions if q.irrelevant and _passes(q)]
    on_step(StepInfo("weighing evidence", 0, len(KINDS) + 1, "kinds", "closed-book"))
    prior = _margins(lm, checked, [q.neutral for q in checked])
    wordings = [_margins(lm, checked, [ask(q, (), i) for q in checked]) - prior for i in (0, 1)]
    stable = np.sign(wordings[0]) == np.sign(wordings[1])
    kept = [q for q, ok in zip(checked, stable, strict=True) if ok]
    if len(kept) < 2:
        raise RequestError(
            f"Of {len(questions)} questions the model has a stable answer of its own to {len(kept)}.",
            "Use more questions, or a model that knows more.",
        )
    closed, prior = wordings[0][stable], prior[stable]
    side = np.where(closed > 0, 0, 1)  # which answer is this model's memory
    limit = float(np.quantile(np.abs(closed), 0.1))
    groups = {"all": np.ones(len(kept), dtype=bool)}
    negated = np.array([is_negated(q.answers[s]) for q, s in zip(kept, side, strict=True)])
    if negated.any() and not negated.all():
        groups |= {"memory says no": negated, "memory says yes": ~negated}
    rows: list[EvidenceRow] = []
    margins: dict[str, np.ndarray] = {}
    for n, (kind, parts) in enumerate(KINDS.items()):
        on_step(StepInfo("weighing evidence", n + 1, len(KINDS) + 1, "kinds", kind))
        prompts = [ask(q, _evidence(q, int(s), parts), 0) for q, s in zip(kept, side, strict=True)]
        margins[kind] = (_margins(lm, kept, prompts) - prior) * np.where(side == 0, 1, -1)
        for group, inside in groups.items():
            values = margins[kind][inside]
            rows.append(
                EvidenceRow(
                    kind,
                    group,
                    estimate((values > 0).astype(float).tolist()),
                    estimate(values.tolist()),
                    float((np.abs(values) < limit).mean()),
                )
            )
    on_step(StepInfo("weighing evidence", len(KINDS) + 1, len(KINDS) + 1, "kinds"))
    right = [float(q.correct == s) for q, s in zip(kept, side, strict=True) if q.correct is not None]
    return EvidenceReport(
        tuple(rows),
        len(questions),
        len(kept),
        int((~stable).sum()),
        len(questions) - len(checked),
        estimate(right) if right else None,
        _popularity(kept, margins["counter passage"]),
        lm.name,
    )


def ask(question: EvidenceQuestion, evidence: Sequence[str], wording: int) -> str:
    """The prompt: a line of information for each piece of evidence, then the question."""
    return "".join(f"Information: {text.strip()}\n" for text in evidence) + question.asks[wording]


def _evidence(question: EvidenceQuestion, memory: int, parts: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    for whose, what in parts:
        if whose == "x":
            found.append(question.irrelevant[0])
            continue
        side = memory if whose == "m" else 1 - memory
        passages = question.passages[side]
        found.append(question.claims[side] if what == "claim" else passages[min(what == "other", len(passages) - 1)])
    return found


def _margins(lm: LM, questions: Sequence[EvidenceQuestion], prompts: Sequence[str]) -> np.ndarray:
    """(n,) mean log-probability per token of the first answer, less that of the second."""
    pairs = [(prompt, answer) for q, prompt in zip(questions, prompts, strict=True) for answer in q.answers]
    nll = np.array([f.nll for f in force(lm, pairs)]).reshape(-1, 2)
    return nll[:, 1] - nll[:, 0]


def _passes(question: EvidenceQuestion) -> bool:
    """The string check: for answers of a few words, each occurs in its own passages and not in the other's."""
    if max(len(answer.split()) for answer in question.answers) > 3:
        return True  # a claim in a sentence is paraphrased by its passage
    own = all(a in p for a, ps in zip(question.answers, question.passages, strict=True) for p in ps)
    return own and not any(a in p for a, ps in zip(question.answers, question.passages[::-1], strict=True) for p in ps)


def _popularity(questions: Sequence[EvidenceQuestion], margin: np.ndarray) -> tuple[float, float] | None:
    values = [q.popularity for q in questions]
    if len(values) < 8 or any(v is None for v in values):
        return None
    found = stats.spearmanr(np.array(values, dtype=float), margin)
    return float(found.statistic), float(found.pvalue)
