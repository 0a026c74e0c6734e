"""Causal tracing: which states carry a fact (ROME, arXiv 2202.05262, section 2).

1. Clean run: P, the probability of the answer at the last token.
2. Corrupted run: seeded Gaussian noise on the embeddings of the subject's tokens, in `samples` rows; P* is the mean
   probability there. The noise's standard deviation is `noise` times that of the entries of many subjects' embeddings.
3. For every token t and layer l: the corrupted run with the clean state put back at (t, l), under the same noise.
   The mean probability minus P* is the indirect effect of the state; P - P* is the total effect.

Restored is the residual stream after the block, or what the MLP or attention adds to it in `window` layers around l.

Only what a restoration can alter runs: tokens before the subject are never touched and their keys come from the
corrupted run's cache, layers below the restored one are not run, logits are taken at the last token, and the tokens of
a layer share batches. The numbers are those of the full forwards.

Deviations from the reference code: probabilities are averaged, not logits; the subject is found by character offsets;
a sink token stands in front, so that no word of the prompt is the model's attention sink; without facts of one's own
the noise is scaled on the factbook's country names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from editlab.config import MethodConfig
from editlab.errors import RequestError
from editlab.hooks.batch import pad_rows
from editlab.probes.trace_results import Trace, TraceAverage
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import target_ids

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.hooks.batch import Batch
    from editlab.hooks.cone import Cone
    from editlab.lm import LM

Kind = Literal["residual", "mlp", "attention"]
# Tokens of one batch, if it has more than one restored position. Rows of a batch share the columns that run, from its
# first restored token on, so a larger batch runs more columns that nothing has changed; a processor is busy with these.
BATCH_TOKENS = 256
JOINED_TOKENS = 8192  # of one batch, where the cells of all layers end up in one
SITE = {"residual": "resid_post", "mlp": "mlp_out", "attention": "attn_out"}


class Config(MethodConfig):
    """Settings of `trace`."""

    kind: Kind = Field(default="residual", description="what is restored: residual, mlp or attention")
    window: int | None = Field(
        default=None,
        ge=1,
        description="layers restored together; default 1 for residual, a fifth of the model for others",
    )
    noise: float = Field(
        default=3.0, gt=0, description="noise in standard deviations of subjects' embeddings (paper: 3)"
    )
    samples: int = Field(default=10, ge=1, le=1000, description="noise samples (paper: 10)")
    seed: int = Field(default=0, ge=0, description="seed of the noise")
    min_gap: float = Field(
        default=0.05, ge=-1, le=1, description="least P - P*; with less there is nothing to restore (-1: try anyway)"
    )

    def layers(self, layer: int, n_layers: int) -> range:
        """The layers restored together for `layer` (paper: l - w/2 up to l + w/2)."""
        width = self.window or (1 if self.kind == "residual" else max(1, n_layers // 5))
        return range(max(0, layer - width // 2), min(n_layers, layer - width // 2 + width))


def trace(
    lm: LM, fact: Fact, config: Config | None = None, on_step: OnStep = silent, *, answer: str | None = None
) -> Trace:
    """Trace one prompt.

    Args:
        answer: what to follow; default the model's own most probable next token. Its first token is traced.

    Raises:
        RequestError: corruption changes the answer's probability by less than `min_gap`.
    """
    config = config or Config()
    ids, spans = lm.tokens(fact.text, sink=True)
    if answer is not None:
        prompt, target = target_ids(lm, fact.text, answer, fact.prefix_of(fact.text, answer), sink=True)
        ids, spans = ids[: len(prompt)], spans[: len(prompt)]  # the answer may change the prompt's last token
    start, stop = len(fact.before), len(fact.before) + len(fact.subject)
    inside = [i for i, (a, b) in enumerate(spans) if b > a and a < stop and b > start]
    if not inside:
        raise RequestError(
            f"The tokenizer joins '{fact.subject}' and '{answer}' to one token: there is nothing to corrupt.",
            "Word the prompt so that something stands between them.",
        )
    first, last = inside[0], inside[-1]
    clean = pad_rows([ids], device=lm.device)
    n_layers, site = lm.adapter.n_layers, SITE[config.kind]
    with lm.session() as s, torch.no_grad():
        s.capture(site, None)
        out = s.run(clean, read=torch.tensor([len(ids) - 1], device=lm.device))
    assert out.logits is not None
    p = out.logits[0].float().softmax(-1)
    token = int(p.argmax()) if answer is None else target[0]
    p_clean = float(p[token])
    states = torch.stack([out.captured[site, n][0] for n in range(n_layers)])  # (L, T, D)

    std = noise_scale(lm) * config.noise
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, len(inside), lm.adapter.d_model, generator=generator) * std
    batch = clean.rows(torch.zeros(config.samples, dtype=torch.long))
    windows = [config.layers(layer, n_layers) for layer in range(n_layers)]
    # A residual stream that is put back after block l is what block l + 1 reads.
    is_stream = config.kind == "residual"
    cells = n_layers * (len(ids) - first)
    starts = [min(w[-1] + 1, n_layers - 1) if is_stream and len(w) == 1 else w[0] for w in windows]

    is_joined = is_stream and n_layers > 1 and all(len(window) == 1 for window in windows)
    together = [[i] for i in range(first, len(ids))] if is_joined else groups(first, len(ids), config.samples)
    with lm.session() as s, torch.no_grad():
        s.patch("embed", None, lambda part: _with_noise(part, noise, first))
        frozen = s.cones_at(batch, sorted(set(starts)), [group[0] for group in together], of_patched=True)
    p_corrupt = _answer(lm, frozen[max(starts), first], token, [])
    gap = p_clean - float(p_corrupt.mean())
    if gap < config.min_gap:
        raise RequestError(
            f"Corrupting '{fact.subject}' moves the probability of '{lm.tokenizer.decode([token]).strip()}' after "
            f"'{fact.text}' from {p_clean:.1%} to {p_corrupt.mean():.1%} only: there is nothing to restore.",
            "Trace a fact that the model knows, use more noise, or lower min_gap.",
        )
    restored = p_corrupt.repeat(n_layers, len(ids), 1)
    for group in together:
        left = range(n_layers)
        if is_joined:
            left = left[-1:]
            on_step(StepInfo("tracing", (group[0] - first) * n_layers, cells, "cells"))
            cones = [frozen[layer, group[0]] for layer in range(1, n_layers)]
            restored[: n_layers - 1, group[0]] = _restore_joining(lm, cones, token, states[:, group[0]])
        for layer in left:
            on_step(StepInfo("tracing", (group[0] - first) * n_layers + layer * len(group), cells, "cells"))
            cone = frozen[starts[layer], group[0]]
            restored[layer, group] = _restore(lm, cone, token, states, windows[layer], site, group)
    on_step(StepInfo("tracing", cells, cells, "cells"))
    return Trace(
        prompt=fact.text,
        tokens=tuple(lm.tokenizer.decode([i]) for i in ids),
        subject=(first, last + 1),
        answer=lm.tokenizer.decode([token]),
        p_clean=p_clean,
        p_corrupt=p_corrupt.cpu().numpy(),
        restored=restored.cpu().numpy(),
        noise_std=std,
        config=config,
        model=lm.name,
    )


def trace_many(lm: LM, facts: Sequence[Fact], config: Config | None = None, on_step: OnStep = silent) -> TraceAverage:
    """Average over facts; those that the model does not answer with their true target are left out, and counted.

    Facts without a true target are traced with the model's own answer.

    Raises:
        RequestError: no fact could be traced.
    """
    config = config or Config()
    traces: list[Trace] = []
    left_out = []
    for i, fact in enumerate(facts):
        on_step(StepInfo("tracing facts", i, len(facts), "facts", fact.subject))
        name = fact.id or fact.text
        if fact.target_true:
            prefix = fact.prefix_of(fact.text, fact.target_true)
            prompt, target = target_ids(lm, fact.text, fact.target_true, prefix, sink=True)
            said = lm.forward(pad_rows([prompt], device=lm.device), torch.tensor([len(prompt) - 1]))[0]
            if int(said.argmax()) != target[0]:
                left_out.append((name, "the model answers otherwise"))
                continue
        try:
            traces.append(trace(lm, fact, config))
        except RequestError as error:
            left_out.append((name, error.what))
    on_step(StepInfo("tracing facts", len(facts), len(facts), "facts"))
    if not traces:
        reason = f" ({left_out[0][1]})" if left_out else ""
        raise RequestError(f"None of {len(facts)} facts could be traced{reason}.", "Use facts that the model knows.")
    return TraceAverage(
        effects=np.stack([t.by_role() for t in traces]),
        p_clean=np.array([t.p_clean for t in traces]),
        p_corrupt=np.array([t.p_corrupt.mean() for t in traces]),
        left_out=tuple(left_out),
        config=config,
        model=lm.name,
        errors=np.stack([t.errors_by_role() for t in traces]),
    )


def noise_scale(lm: LM) -> float:
    """Standard deviation over all entries of the embeddings of the factbook's country names, as they come out."""
    from editlab.data.relations import relation

    rows = [lm.tokens(f" {row.subject}", special=False)[0] for row in relation("capital").rows]
    with lm.session() as s, torch.no_grad():
        s.capture("embed", None)
        batch = pad_rows(rows, device=lm.device)
        embedded = s.run(batch, read=None).captured["embed"]
    return float(embedded[batch.mask.bool()].float().std())


def _with_noise(part: Tensor, noise: Tensor, first: int) -> Tensor:
    changed = part.clone()
    changed[:, first : first + noise.shape[1]] += noise.to(part)
    return changed


def groups(first: int, stop: int, samples: int) -> list[list[int]]:
    """Tokens that are restored in one batch, in order."""
    groups = []
    while first < stop:
        n = max(1, BATCH_TOKENS // (samples * (stop - first)))
        groups.append(list(range(first, min(first + n, stop))))
        first = groups[-1][-1] + 1
    return groups


def _restore(lm: LM, cone: Cone, token: int, states: Tensor, window: range, site: str, tokens: Sequence[int]) -> Tensor:
    """(len(tokens), S) probabilities with the clean states of `window` put back at each token."""
    samples = cone.batch.n_rows
    rows = cone.rows(torch.arange(samples).repeat(len(tokens))) if len(tokens) > 1 else cone
    at = torch.tensor(tokens, device=lm.device).repeat_interleave(samples)
    put = [(layer, states[layer][at]) for layer in window]
    return _answer(lm, rows, token, put, site, at).unflatten(0, (len(tokens), samples))


def _restore_joining(lm: LM, cones: Sequence[Cone], token: int, states: Tensor) -> Tensor:
    """(L - 1, S) probabilities with the clean stream (L, D) put back after each layer but the last, at the cut.

    Rows join at the layer that reads what was put back, so that all of one token's cells run in one growing batch.

    Args:
        cones: of the corrupted runs at this token's column, for layers from 1 on.
    """
    samples, columns = cones[0].resid.shape[:2]
    found = []
    for chunk in torch.arange(samples, device=lm.device).split(max(1, JOINED_TOKENS // (len(cones) * columns))):
        resid = cones[0].resid[:0]
        for n, cone in enumerate(cones):
            fresh = cone.resid[chunk]
            fresh[:, 0] = states[cone.layer - 1]
            resid = torch.cat([resid, fresh])
            running = cone.entered(chunk.repeat(n + 1), resid)
            with lm.session() as s, torch.no_grad():
                if cone is cones[-1]:
                    ends = torch.full((len(resid),), running.batch.width - 1, device=lm.device)
                    logits = s.run(running, read=ends).logits
                else:
                    s.capture("resid_post", cone.layer)
                    resid = s.run(running, read=None)["resid_post", cone.layer]
        found.append(_probability(logits, token).unflatten(0, (len(cones), len(chunk))))
    return torch.cat(found, 1)


def _answer(
    lm: LM, cone: Cone, token: int, put: Sequence[tuple[int, Tensor]], site: str = "", at: Tensor | None = None
) -> Tensor:
    """(rows,) probability of `token` at the last column, with states put in place."""
    batch: Batch = cone.batch
    with lm.session() as s, torch.no_grad():
        for layer, value in put:
            if site == "resid_post" and layer + 1 == cone.layer:
                s.patch("resid_pre", cone.layer, value, at=at)
            else:
                s.patch(site, layer, value, at=at)
        logits = s.run(cone, read=torch.full((batch.n_rows,), batch.width - 1, device=lm.device)).logits
    return _probability(logits, token)


def _probability(logits: Tensor | None, token: int) -> Tensor:
    """(rows,) of a token, from logits (rows, V) that were asked for."""
    assert logits is not None
    logits = logits.float()
    return (logits[:, token] - logits.logsumexp(-1)).exp().cpu()
