"""Teacher-forced scores and greedy continuations of many prompts, in few forward passes.

For a prompt x and a target o_1 ... o_n the scorer gives the mean over i of -log p(o_i | x, o_<i), in nats, and the
token that the model itself puts first at each of these n places. What makes it quick, without changing a number:

1. target ids come from encoding prompt and target together (see `editlab.rows.target_ids`), and the input row is
   the prompt and all but the last of them;
2. a row that begins another row needs no pass of its own, because attention is causal: two one-token targets of one
   prompt are read from one row;
3. rows of similar length share a batch, and logits are taken only where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from editlab.evaluation.answers import normalised, said_first
from editlab.evaluation.questions import SHOWN, Asked, asked
from editlab.hooks.batch import pad_rows
from editlab.joining import TargetPrefix
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import target_ids

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

Row = tuple[int, tuple[int, ...]]  # how many tokens are the prompt, and all of them


@dataclass(frozen=True)
class Forced:
    """A target after a prompt, teacher-forced.

    Attributes:
        nll: mean negative log-likelihood per target token, in nats.
        target: the target's token ids. predicted: the most probable token at each of their places.
    """

    nll: float
    target: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def is_argmax(self) -> bool:
        """Every target token is the most probable one: greedy decoding says the target, token for token."""
        return self.target == self.predicted

    @property
    def token_accuracy(self) -> float:
        """The share of target tokens that are the most probable ones, each after the right earlier ones."""
        return sum(a == b for a, b in zip(self.target, self.predicted, strict=True)) / len(self.target)


@dataclass(frozen=True)
class Scored:
    """A question with its scores under one state of the model.

    Attributes:
        forced: per role of `asked.targets`. answer: the greedy continuation; None if it was not wanted.
    """

    asked: Asked
    forced: dict[str, Forced]
    answer: str | None = None

    def p(self, role: str) -> float | None:
        """Geometric mean of the target's token probabilities; None if the question has no such target."""
        found = self.forced.get(role)
        return math.exp(-found.nll) if found is not None else None


def force(
    lm: LM,
    pairs: Sequence[tuple[str, str] | tuple[str, str, TargetPrefix]],
    *,
    sink: bool = False,
    batch_tokens: int = 2048,
    on_step: OnStep = silent,
) -> list[Forced]:
    """Scores of (prompt, target) pairs, or of (prompt, target, what stands between the two).

    Args:
        sink: put the sink token in front of every row.
        batch_tokens: padded tokens of one forward pass, at most (one row always fits).

    Raises:
        RequestError: a target gives no token.
    """
    return force_ids(
        lm, [target_ids(lm, *pair, sink=sink) for pair in pairs], batch_tokens=batch_tokens, on_step=on_step
    )


def force_ids(
    lm: LM,
    parts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_tokens: int = 2048,
    on_step: OnStep = silent,
) -> list[Forced]:
    """The same of token ids: of prompts, and of what follows them."""
    rows: list[Row] = [(len(prompt), (*prompt, *target[:-1])) for prompt, target in parts]
    carrier = _carriers(rows)
    wanted: dict[Row, set[int]] = {}
    for row, (prompt, target) in zip(rows, parts, strict=True):
        wanted.setdefault(carrier[row], set()).update(range(len(prompt) - 1, len(prompt) - 1 + len(target)))
    users: dict[Row, list[int]] = {}
    for i, row in enumerate(rows):
        users.setdefault(carrier[row], []).append(i)

    out: dict[int, Forced] = {}
    done = 0
    for chunk in _buckets(sorted(users, key=lambda row: len(row[1]), reverse=True), batch_tokens):
        lengths, ids = zip(*chunk, strict=True)
        batch = pad_rows(ids, pivots="right", prompts=lengths, device=lm.device)
        mask = torch.zeros_like(batch.mask, dtype=torch.bool)
        place: dict[tuple[int, int], int] = {}  # (row of the batch, token) -> line of the logits
        for b, row in enumerate(chunk):
            for token in sorted(wanted[row]):
                place[b, token] = len(place)
                mask[b, batch.column(b, token)] = True
        log_probs = lm.forward(batch, read=mask).float().log_softmax(-1)
        best = log_probs.argmax(-1).tolist()
        pick = [
            (i, place[b, len(parts[i][0]) - 1 + n], token)
            for b, row in enumerate(chunk)
            for i in users[row]
            for n, token in enumerate(parts[i][1])
        ]
        lines, tokens = torch.tensor([(line, token) for _, line, token in pick], device=log_probs.device).unbind(-1)
        values = log_probs[lines, tokens].tolist()
        of_pair: dict[int, list[tuple[float, int]]] = {}
        for (i, line, _), value in zip(pick, values, strict=True):
            of_pair.setdefault(i, []).append((value, best[line]))
        for i, found in of_pair.items():
            nll = -sum(value for value, _ in found) / len(found)
            out[i] = Forced(nll, tuple(parts[i][1]), tuple(token for _, token in found))
        done += len(of_pair)
        on_step(StepInfo("scoring answers", done, len(parts), "targets"))
    return [out[i] for i in range(len(parts))]


def _carriers(rows: Sequence[Row]) -> dict[Row, Row]:
    """For every row the longest of those with the same prompt that it begins, which is run for all of them."""
    ordered = sorted(set(rows))
    carrier = {row: row for row in ordered}
    # In this order a row that begins any other one begins its successor.
    for row, following in reversed(list(pairwise(ordered))):
        if following[0] == row[0] and following[1][: len(row[1])] == row[1]:
            carrier[row] = carrier[following]
    return carrier


def _buckets(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Rows in batches, given longest first, so that a batch is padded to its first row."""
    start = 0
    while start < len(rows):
        n = max(1, batch_tokens // len(rows[start][1]))
        yield list(rows[start : start + n])
        start += n


def continuations(
    lm: LM,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 10,
    sink: bool = False,
    batch_rows: int = 64,
    on_step: OnStep = silent,
) -> list[str]:
    """Greedy continuations; prompts of similar length share a batch, and each distinct one is asked once."""
    unique = sorted(dict.fromkeys(prompts), key=lambda prompt: (-len(prompt), prompt))
    said: dict[str, str] = {}
    for i in range(0, len(unique), batch_rows):
        chunk = unique[i : i + batch_rows]
        said |= zip(chunk, lm.generate(chunk, max_new_tokens, sink=sink), strict=True)
        on_step(StepInfo("letting the model answer", len(said), len(unique), "prompts"))
    return [said[prompt] for prompt in prompts]


def score(
    lm: LM,
    questions: Sequence[Asked],
    *,
    free: bool = True,
    max_new_tokens: int = 10,
    sink: bool = False,
    is_base: bool = False,
    on_step: OnStep = silent,
) -> list[Scored]:
    """Every question's targets teacher-forced and, if `free`, its greedy continuation, all in shared batches.

    Args:
        is_base: `lm` is the unedited model, and what it says is the own answer of neighbours that come without one.
            An edited model is then to be asked the questions that are returned.
    """
    bare = [i for i, q in enumerate(questions) if is_base and q.kind == "neighbour" and "own" not in q.targets]
    said: Sequence[str | None] = [None] * len(questions)
    if free or bare:
        places = range(len(questions)) if free else bare
        prompts = [questions[i].prompt for i in places]
        answers = continuations(lm, prompts, max_new_tokens=max_new_tokens, sink=sink, on_step=on_step)
        answer_of = dict(zip(places, answers, strict=True))
        own = {i: said_first(answer_of[i]) for i in bare}
        questions = [q.with_answer(own[i]) if normalised(own.get(i, "")) else q for i, q in enumerate(questions)]
        said = [answer_of.get(i) if free else None for i in range(len(questions))]
    pairs = [(q.prompt, t, q.prefixes.get(role, "auto")) for q in questions for role, t in q.targets.items()]
    forced = iter(force(lm, pairs, sink=sink, on_step=on_step))
    return [
        Scored(q, {role: next(forced) for role in q.targets}, answer) for q, answer in zip(questions, said, strict=True)
    ]


def score_facts(
    lm: LM, facts: Sequence[Fact], *, sink: bool = False, written: Sequence[Fact] = ()
) -> list[list[Scored]]:
    """`score` of the facts' questions that a report shows, fact by fact, before an edit.

    Args:
        written: the facts that will be in the model at the same time.
    """
    out: list[list[Scored]] = [[] for _ in facts]
    for scored in score(lm, asked(facts, SHOWN, written), sink=sink, is_base=True):
        out[scored.asked.fact].append(scored)
    return out


def score_again(lm: LM, before: Sequence[Sequence[Scored]], *, sink: bool = False) -> list[list[Scored]]:
    """The same questions as `before`, after an edit."""
    scores = iter(score(lm, [q.asked for of_fact in before for q in of_fact], sink=sink))
    return [[next(scores) for _ in of_fact] for of_fact in before]
