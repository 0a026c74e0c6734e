"""Scores of prompts and answers: teacher-forced probability, and what the model says by itself.

Probabilities are per target token (the geometric mean), as in CounterFact's scorer (kmeng01/rome), so answers of
different length compare. Logits are taken at the target's positions only, in batches of similar length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editlab.edits.rows import target_ids
from editlab.hooks.batch import pad_rows

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


def mean_nll(lm: LM, pairs: Sequence[tuple[str, str]], *, sink: bool = False, batch_tokens: int = 2048) -> list[float]:
    """Mean negative log-likelihood per target token of each (prompt, target), teacher-forced, in nats."""
    rows = [target_ids(lm, prompt, target, sink=sink) for prompt, target in pairs]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    out = [0.0] * len(rows)
    start = 0
    while start < len(order):
        width = sum(map(len, rows[order[start]]))
        chunk = order[start : start + max(1, batch_tokens // width)]
        start += len(chunk)
        batch = pad_rows([[*rows[i][0], *rows[i][1][:-1]] for i in chunk], pivots="right", device=lm.device)
        mask = torch.zeros_like(batch.mask, dtype=torch.bool)
        for row, i in enumerate(chunk):
            first = len(rows[i][0]) - 1
            mask[row, first : first + len(rows[i][1])] = True
        log_probs = lm.forward(batch, read=mask).float().log_softmax(-1)
        wanted = torch.tensor([t for i in chunk for t in rows[i][1]], device=log_probs.device)
        picked = -log_probs.gather(-1, wanted[:, None])[:, 0]
        for i, part in zip(chunk, picked.split([len(rows[i][1]) for i in chunk]), strict=True):
            out[i] = float(part.mean())
    return out


def answers(lm: LM, prompts: Sequence[str], *, max_new_tokens: int = 10, sink: bool = False) -> list[str]:
    """Greedy continuations, in batches."""
    out: list[str] = []
    for i in range(0, len(prompts), 16):
        out += lm.generate(list(prompts[i : i + 16]), max_new_tokens, sink=sink)
    return out


def says(answer: str, target: str) -> bool:
    """The answer begins with the target as a whole word, whatever its case."""
    answer, target = " ".join(answer.split()).casefold(), " ".join(target.split()).casefold()
    return answer.startswith(target) and not answer[len(target) : len(target) + 1].isalnum()


@dataclass(frozen=True)
class PromptScore:
    """One prompt of a fact under one state of the model.

    Attributes:
        kind: "rewrite", "paraphrase" or "neighbour".
        p_new, p_true: geometric-mean token probability of the two targets; p_true is None without a true target.
        answer: the greedy continuation.
    """

    kind: str
    prompt: str
    p_new: float
    p_true: float | None
    answer: str


def score_facts(
    lm: LM, facts: Sequence[Fact], *, sink: bool = False, max_new_tokens: int = 10
) -> list[list[PromptScore]]:
    """Scores of every fact's rewrite, paraphrase and neighbour prompts, all facts in shared batches."""
    asked = [
        (i, kind, prompt)
        for i, fact in enumerate(facts)
        for kind, prompts in (
            ("rewrite", (fact.text,)),
            ("paraphrase", fact.paraphrases),
            ("neighbour", fact.neighbours),
        )
        for prompt in prompts
    ]
    pairs = [(prompt, facts[i].target_new) for i, _, prompt in asked]
    with_true = [n for n, (i, _, _) in enumerate(asked) if facts[i].target_true]
    pairs += [(asked[n][2], str(facts[asked[n][0]].target_true)) for n in with_true]
    nll = mean_nll(lm, pairs, sink=sink)
    p = torch.tensor(nll).neg().exp().tolist()
    p_true = dict(zip(with_true, p[len(asked) :], strict=True))
    said = answers(lm, [prompt for _, _, prompt in asked], max_new_tokens=max_new_tokens, sink=sink)
    out: list[list[PromptScore]] = [[] for _ in facts]
    for n, (i, kind, prompt) in enumerate(asked):
        out[i].append(PromptScore(kind, prompt, p[n], p_true.get(n), said[n]))
    return out
