"""Fine-tuning on the targets alone: the loop that the baselines FT-M, FT-L and LoRA-FT share.

The loss is the mean over facts of the mean over target tokens of -log p: teacher-forced, after a sink token and bare;
or, as in ROME's code, every target token at the last token of the bare prompt.
What is trained are changes of weights, put in place for one forward at a time; the model itself is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from editlab.edits.settings import EditSettings
from editlab.errors import EditFailed, RequestError
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.cone import entering_at, reading_at
from editlab.hooks.mode import put_in_eval_mode
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import Row, rewrite_row
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

UNLEARNED = 1.0  # nats; at 0.7 a token is as likely as all others together
MAX_TOKENS = 2048  # of one forward, padding included


class FineTuneSettings(EditSettings):
    """How the changes are trained."""

    steps: int = Field(25, ge=1, le=10_000, description="steps of Adam at most")
    lr: float = Field(5e-4, gt=0, description="Adam's learning rate")
    stop_loss: float = Field(0.01, ge=0, description="training ends when the loss falls below this")


def fine_tune(
    lm: LM,
    facts: Sequence[Fact],
    leaves: Sequence[Tensor],
    changes: Callable[[], Mapping[str, Tensor]],
    settings: FineTuneSettings,
    on_step: OnStep = silent,
    *,
    after_step: Callable[[], object] = lambda: None,
    at_prompt_end: bool = False,
) -> list[float]:
    """Train `leaves` in place; the losses, one a step.

    Args:
        changes: from parameter names to what is added to them, as functions of the leaves.
        after_step: a projection, applied to the leaves after each step.
        at_prompt_end: read every target token at the last token of the bare prompt, with no target in the row.

    Raises:
        EditFailed: the loss is not finite.
    """
    weights = {name: lm.model.get_parameter(name).detach() for name in changes()}
    lowest = max(0, min(lm.adapter.layer_of(name) for name in weights))
    put_in_eval_mode(lm.model)
    batches = _batches(lm, facts, at_prompt_end)
    # What enters the lowest layer that changes is always the same.
    entering = [lm.prefix(batch, lowest).resid if lowest else None for batch, *_ in batches]
    unembed = lm.model.get_submodule(lm.adapter.unembed)
    adam = torch.optim.Adam(leaves, lr=settings.lr)
    losses: list[float] = []
    for step in range(settings.steps):
        adam.zero_grad()
        total = 0.0
        for (batch, reads, wanted, weight), resid in zip(batches, entering, strict=True):
            changed = {name: weights[name] + change.to(weights[name]) for name, change in changes().items()}
            # Everything but the changes is a constant.
            fixed = {n: p.detach() for n, p in lm.model.named_parameters() if n not in changed}
            options = {"attention_mask": batch.mask, "use_cache": False}
            if lm.adapter.takes_position_ids:
                options["position_ids"] = batch.position_ids
            with ExitStack() as stack:
                stack.enter_context(reading_at(unembed, reads))
                if resid is not None:
                    stack.enter_context(entering_at(lm.model, lm.adapter, lowest, resid))
                logits = functional_call(lm.model, {**fixed, **changed}, (batch.ids,), options).logits[0]
            nll = -logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            loss = (nll * weight).sum()
            loss.backward()
            total += loss.item()
        if not torch.isfinite(torch.tensor(total)):
            raise EditFailed("The loss of fine-tuning is not finite.", "Try a smaller learning rate.")
        losses.append(total)
        on_step(StepInfo("fine-tuning", step + 1, settings.steps, "steps", f"loss {total:.3f}"))
        if total < settings.stop_loss:
            break
        adam.step()
        with torch.no_grad():
            after_step()
    if len(losses) == 1 and losses[0] < settings.stop_loss:
        raise EditFailed("The model gives all the targets already.", "There is nothing to edit.")
    return losses


def tuned_matrices(
    lm: LM,
    method: str,
    facts: Sequence[Fact],
    settings: FineTuneSettings,
    names: Sequence[str],
    limit: float | None,
    on_step: OnStep = silent,
    *,
    at_prompt_end: bool = False,
) -> Edit:
    """The dense changes of the parameters `names` that fine-tuning gives, no entry moving further than `limit`.

    Raises:
        RequestError: there is no fact. EditFailed: the loss is not finite, or the targets are answered already.
    """
    if not facts:
        raise RequestError(f"{method} was given no fact.", "Give at least one.")
    weights = {name: lm.model.get_parameter(name) for name in names}
    changes = {name: torch.zeros_like(w, dtype=torch.float32).requires_grad_() for name, w in weights.items()}

    def project() -> None:
        for change in changes.values():
            if limit is not None:
                change.clamp_(-limit, limit)

    losses = fine_tune(
        lm,
        facts,
        list(changes.values()),
        lambda: changes,
        settings,
        on_step,
        after_step=project,
        at_prompt_end=at_prompt_end,
    )
    deltas = {name: Delta(dense=change.detach()) for name, change in changes.items()}
    return Edit(
        method=method,
        config=settings.model_dump(mode="json"),
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas=deltas,
        info={
            "parameter": ", ".join(names),
            "rank": min(weights[names[0]].shape),
            "relative_norm": deltas[names[0]].norm() / float(weights[names[0]].float().norm()),
            "losses": losses,
            "warnings": hardly_learned(losses),
        },
    )


def hardly_learned(losses: Sequence[float]) -> list[str]:
    """A warning when training ended with the targets still unlikely."""
    if losses[-1] < UNLEARNED:
        return []
    return [
        f"in the last of {len(losses)} steps the targets' mean -log p was still {losses[-1]:.2f} (before: "
        f"{losses[0]:.2f}), so hardly any is said; allow more steps, a larger learning rate, or entries to move further"
    ]


def _batches(
    lm: LM, facts: Sequence[Fact], at_prompt_end: bool
) -> list[tuple[Batch, tuple[Tensor, Tensor], Tensor, Tensor]]:
    """Padded rows, where they are read, what should come there, and how much each weighs."""
    forms = (True,) if lm.adds_bos else (True, False)
    if at_prompt_end:
        forms = (False,)
    rows: list[Row] = sorted(
        (rewrite_row(lm, fact, sink=sink) for fact in facts for sink in forms), key=lambda row: len(row.ids)
    )
    if at_prompt_end:
        rows = [replace(row, ids=row.ids[: row.reads[0] + 1], reads=row.reads[:1] * len(row.targets)) for row in rows]
    found = []
    while rows:
        n = max(1, MAX_TOKENS // len(rows[-1].ids))
        chunk, rows = rows[-n:], rows[:-n]
        batch = pad_rows([row.ids for row in chunk], pivots="right", device=lm.device)
        wanted = torch.tensor([t for row in chunk for t in row.targets], device=lm.device)
        each = [1 / (len(row.targets) * len(facts) * len(forms)) for row in chunk for _ in row.targets]
        places = [(i, batch.column(i, token)) for i, row in enumerate(chunk) for token in row.reads]
        rows_read, columns_read = torch.tensor(places, device=lm.device).unbind(1)
        found.append((batch, (rows_read, columns_read), wanted, torch.tensor(each, device=lm.device)))
    return found
