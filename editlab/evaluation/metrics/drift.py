"""Drift: what an edit did to prompts, prose and weights that it had no business with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from editlab.evaluation.cards import FORCED, Card, ModelMetric
from editlab.hooks.batch import pad_rows, within_positions
from editlab.hooks.placement import in_float64
from editlab.progress import OnStep, StepInfo

if TYPE_CHECKING:
    from torch import Tensor

    from editlab.evaluation.suite import Suite
    from editlab.lm import LM

Prompts = Mapping[str, Sequence[str]]
PASSAGE_TOKENS = 128
_BATCH_ROWS = 8  # logits are read at every token of a passage, so batches stay small


def _next_token(lm: LM, prompts: Sequence[str], sink: bool) -> Tensor:
    """(prompts, V) float64 log-probabilities of the next token."""

    def logits() -> Tensor:
        batch = lm.encode(list(prompts), sink=sink)
        mask = torch.zeros_like(batch.mask, dtype=torch.bool)
        mask[torch.arange(batch.n_rows), batch.last] = True
        return lm.forward(batch, read=mask)

    # Two metrics ask for the same, of each model and of the base.
    return in_float64(lm.at_state(f"next tokens {sink} {prompts}", logits)).log_softmax(-1)


def _control_kl(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    from editlab.data.controls import CONTROLS

    before, now = _next_token(base, CONTROLS, suite.sink), _next_token(lm, CONTROLS, suite.sink)
    kl = (before.exp() * (before - now)).sum(-1)
    return dict(zip(CONTROLS, kl.tolist(), strict=True))


def _control_same(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    from editlab.data.controls import CONTROLS

    before, now = _next_token(base, CONTROLS, suite.sink), _next_token(lm, CONTROLS, suite.sink)
    return dict(zip(CONTROLS, (before.argmax(-1) == now.argmax(-1)).float().tolist(), strict=True))


def _prose_nll(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    """Mean negative log-likelihood per token of each passage's first tokens, the sink token in front."""
    rows = list(_prose(lm, suite))
    out: dict[str, float] = {}
    for i in range(0, len(rows), _BATCH_ROWS):
        chunk = rows[i : i + _BATCH_ROWS]
        batch = pad_rows([ids for _, ids in chunk], pivots="right", device=lm.device)
        log_probs = lm.forward(batch)[:, :-1].float().log_softmax(-1)
        nll = -in_float64(log_probs.gather(-1, batch.ids[:, 1:, None])[..., 0])
        for (name, ids), row in zip(chunk, nll, strict=True):
            out[name] = float(row[: len(ids) - 1].mean())
        on_step(StepInfo("reading prose", len(out), len(rows), "passages"))
    return out


def _prose(lm: LM, suite: Suite) -> Iterator[tuple[str, list[int]]]:
    """Passages that are long enough, cut to one length so that each weighs the same."""
    from editlab.data.corpus import held_out

    found = 0
    for number, text in enumerate(held_out(suite.prose)):
        ids, _ = lm.tokens(text, sink=True)
        if len(ids) > PASSAGE_TOKENS // 2:
            yield f"{number}: {text[:40]}", ids[: within_positions(lm.model, PASSAGE_TOKENS + 1)]
            found += 1
            if found == suite.passages:
                return


def _norm_ratio(lm: LM, base: LM, suite: Suite, prompts: Prompts, on_step: OnStep) -> dict[str, float]:
    edited = {name for entry in lm.ledger.active for name in entry.edit.deltas}
    return {
        name: float(in_float64(lm.model.get_parameter(name)).norm() / in_float64(base.model.get_parameter(name)).norm())
        for name in sorted(edited)
    }


METRICS = (
    ModelMetric(
        Card(
            "control_kl",
            "How far next-token distributions at control prompts moved, in nats",
            "mean over control prompts of KL(base || edited) at the last token",
            FORCED,
            "own prompts (editlab/data/controls.py)",
            "lower",
            0.0,
            note="0 for the unedited model.",
        ),
        _control_kl,
    ),
    ModelMetric(
        Card(
            "control_same",
            "Share of control prompts with the same most probable next token as before",
            "mean over control prompts of [argmax after = argmax before]",
            FORCED,
            "own prompts (editlab/data/controls.py)",
            "higher",
        ),
        _control_same,
    ),
    ModelMetric(
        Card(
            "perplexity",
            "Perplexity on prose that no statistics have seen",
            f"exp of the mean over passages of the mean NLL of their first {PASSAGE_TOKENS} tokens",
            FORCED,
            "The Butterfly Effect of Model Editing, arXiv 2402.09656, takes it as the alarm for collapse",
            "same",
            None,
            ("ppl",),
            "An increase of more than 10 % over the unedited row is a warning.",
        ),
        _prose_nll,
        np.exp,
    ),
    ModelMetric(
        Card(
            "norm_ratio",
            "Norm of the edited matrices relative to the base's",
            "mean over edited parameters of |W edited| / |W base| (Frobenius)",
            "none",
            "Lifelong Knowledge Editing requires Better Regularization, arXiv 2502.01636",
            "same",
            note="Above 1.5 the model is likely to be damaged.",
        ),
        _norm_ratio,
    ),
)
