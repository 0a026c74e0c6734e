"""The shift of the hidden state that makes the model say the target.

For each target: delta in R^d is added to the residual stream after the edit layer at the subject's last token, in
every row, and minimises (ROME, arXiv 2202.05262 eq. 4, in the form of the released code)

    mean over rows of NLL(target) + kl_factor KL(p_delta || p_0) + decay ||delta|| / ||h||^2

by Adam, projected after each step onto the ball ||delta|| <= clamp ||h||. p is read in the row "{subject} is a".

Only what delta can reach runs: the rows are aligned at the edited token and frozen as one causal cone, so a step is
layers above the edit layer, columns from the edited token on, and logits at the target's positions. Targets do not
interact, so any number shares a batch; one that has stopped is held still.

The published loss is the same as the mean over contexts of the mean over target tokens; decay uses the norm, not its
square, over the squared reference norm: that is what produced the published numbers.

A value may also end early, once every token of the target was the likeliest behind every context in so many losses
("Lifelong Knowledge Editing requires Better Regularization", arXiv 2502.01636). The released code counts tokens and
compares them with the number of contexts, so that it hardly ever ends a target of several tokens; here it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from editlab.errors import EditFailed
from editlab.hooks.cone import Cone
from editlab.hooks.session import Session
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import Row, align, read_mask

if TYPE_CHECKING:
    from editlab.lm import LM


class ValueSettings(Protocol):
    """The fields of a method's config that the optimiser reads."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def clamp(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def kl_factor(self) -> float: ...
    @property
    def stop_loss(self) -> float: ...
    @property
    def steps_on_top(self) -> int: ...


REST = 0.7  # share of a batch's targets still running at which the others leave it


@dataclass(frozen=True)
class Target:
    """What one shift has to achieve.

    Attributes:
        rows: rewrite rows, the canonical one first.
        essence: the row whose distribution is kept, or None.
        reference: (d_model,) the state that clamp and decay are relative to.
    """

    rows: tuple[Row, ...]
    essence: Row | None
    reference: Tensor


@dataclass(frozen=True)
class Value:
    """An optimised shift.

    Attributes:
        delta: (d_model,) float32, on the CPU whatever the model is on.
        losses, nlls: total loss and target NLL (mean per token) before each step, ending with the last one.
        clamped: the shift ended on the ball's surface.
        seconds: of the batch it was optimised in. started: when that was, which tells batches apart.
    """

    delta: Tensor
    losses: tuple[float, ...]
    nlls: tuple[float, ...]
    clamped: bool
    seconds: float
    started: float = 0.0


def site_of_shift(lm: LM, layer: int) -> tuple[str, int]:
    """Where a change of the MLP's output at `layer` is made: as high up as it is still the same change.

    In a pre-norm block the MLP's output is added to the stream unscaled, so the shift can be made on the stream that
    enters the next block. With a post-norm, or in the last layer, it has to be made at the down projection itself.
    """
    if lm.adapter.has_post_norm or layer == lm.adapter.n_layers - 1:
        return "mlp_value", layer
    return "resid_pre", layer + 1


class _Live:
    """The targets of a batch that are still worked on, with all that a step needs.

    Attributes:
        numbers: (n,) which of the batch's targets. running: (n,) bool; one that has stopped is held still.
        delta: (n, d_model) the shifts.
        base: log-probabilities of the essence rows at shift zero, once they are known.
        on_top: (n,) in how many losses so far the target was the likeliest behind every context.
    """

    def __init__(
        self,
        session: Session,
        targets: Sequence[Target],
        numbers: Tensor,
        cone: Cone,
        place: tuple[str, int, int],
        lr: float,
    ) -> None:
        site, layer, column = place
        device = numbers.device
        self.session, self.targets, self.numbers, self.cone, self.place = session, targets, numbers, cone, place
        self.running = torch.ones(len(targets), dtype=torch.bool, device=device)
        self.delta = torch.zeros(len(targets), cone.resid.shape[-1], device=device, requires_grad=True)
        self.adam = torch.optim.Adam([self.delta], lr=lr)
        self.base: Tensor | None = None
        self.on_top = torch.zeros_like(numbers)
        self.owner = torch.tensor([i for i, t in enumerate(targets) for _ in _rows(t)], device=device)
        at = torch.full_like(self.owner, column)
        self.wish = session.patch(site, layer, lambda part: part + self.delta[self.owner].to(part.dtype), at=at)

    def losses(self, settings: ValueSettings, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Total loss and target NLL of each, (n,)."""
        mask = read_mask(self.cone.batch, [row for t in self.targets for row in _rows(t)])
        is_kl, owner, weight, wanted = _reading_plan(self.targets, self.delta.device)
        logits = self.session.run(self.cone, read=mask).logits
        assert logits is not None
        log_probs = logits.float().log_softmax(-1)
        nll = torch.zeros(len(self.targets), device=self.delta.device)
        nll = nll.index_add(0, owner[~is_kl], -_pick(log_probs[~is_kl], wanted) * weight)
        if settings.steps_on_top:
            behind = _behind_a_context(self.targets, self.delta.device)
            missed = (log_probs[~is_kl].argmax(-1) != wanted) & behind
            misses = torch.zeros_like(self.on_top).index_add(0, owner[~is_kl], missed.long())
            self.on_top += misses == 0
        kl = torch.zeros_like(nll)
        if bool(is_kl.any()):
            new = log_probs[is_kl]
            if self.base is None:
                self.base = new.detach()
            kl = kl.index_add(0, owner[is_kl], (new.exp() * (new - self.base)).sum(-1))
        # The norm's gradient at zero is not defined; there the decay pulls nowhere.
        norm = (self.delta.square().sum(-1) + 1e-20).sqrt()
        return nll + settings.kl_factor * kl + settings.decay * norm / limits.square(), nll

    def step(self, loss: Tensor, balls: Tensor) -> None:
        """One step of Adam, back onto the ball, for those that run."""
        self.adam.zero_grad()
        loss.sum().backward()
        before = self.delta.detach().clone()
        self.adam.step()
        with torch.no_grad():
            self.delta.mul_((balls / self.delta.norm(dim=-1).clamp(min=1e-12)).clamp(max=1.0)[:, None])
            self.delta.copy_(torch.where(self.running[:, None], self.delta, before))

    def rest(self) -> _Live:
        """Only those that still run, with their shifts and what Adam remembers of them."""
        self.session.remove(self.wish)
        kept = self.running.nonzero().flatten()
        rows = self.running[self.owner].nonzero().flatten()
        targets = [self.targets[i] for i in kept.tolist()]
        new = _Live(
            self.session, targets, self.numbers[kept], self.cone.rows(rows), self.place, self.adam.defaults["lr"]
        )
        with torch.no_grad():
            new.delta.copy_(self.delta[kept])
        old = self.adam.state[self.delta]
        new.adam.state[new.delta] = {n: v[kept].clone() if v.shape == self.delta.shape else v for n, v in old.items()}
        new.on_top = self.on_top[kept]
        if self.base is not None:
            has = torch.tensor([t.essence is not None for t in self.targets], device=kept.device)
            new.base = self.base[self.running[has]]
        return new


def optimise(
    lm: LM, layer: int, targets: Sequence[Target], settings: ValueSettings, on_step: OnStep = silent
) -> list[Value]:
    """One shift per target, all in one batch.

    Raises:
        EditFailed: the loss is not finite.
    """
    started = time.perf_counter()
    site, start = site_of_shift(lm, layer)
    limits = torch.stack([t.reference.norm() for t in targets]).to(lm.device, torch.float32)
    shifts = torch.zeros(len(targets), lm.adapter.d_model, device=lm.device)
    losses: list[list[float]] = [[] for _ in targets]
    nlls: list[list[float]] = [[] for _ in targets]
    with lm.session() as s:
        batch, column = align([row for t in targets for row in _rows(t)], lm.device)
        everyone = torch.arange(len(targets), device=lm.device)
        live = _Live(s, targets, everyone, s.cone(batch, start, column), (site, start, column), settings.lr)
        for step in range(settings.steps):
            loss, nll = live.losses(settings, limits[live.numbers])
            if not bool(torch.isfinite(loss).all()):
                raise EditFailed("The loss of the value optimisation is not finite.", "Try a smaller learning rate.")
            for i, number in enumerate(live.numbers.tolist()):
                if live.running[i]:
                    losses[number].append(loss[i].item())
                    nlls[number].append(nll[i].item())
            on_step(
                StepInfo(
                    "optimising the value",
                    step + 1,
                    settings.steps,
                    "steps",
                    f"loss {loss.mean().item():.3f}",
                )
            )
            live.running &= loss.detach() >= settings.stop_loss
            if settings.steps_on_top:
                live.running &= live.on_top < settings.steps_on_top
            if step == settings.steps - 1 or not bool(live.running.any()):
                break
            live.step(loss, settings.clamp * limits[live.numbers])
            if int(live.running.sum()) <= REST * len(live.running):
                # What has stopped need not run.
                shifts[live.numbers] = live.delta.detach()
                live = live.rest()
        shifts[live.numbers] = live.delta.detach()
    seconds, kept = time.perf_counter() - started, shifts.cpu()
    clamped = (shifts.norm(dim=-1) >= settings.clamp * limits * (1 - 1e-4)).tolist()
    return [
        Value(kept[i].clone(), tuple(losses[i]), tuple(nlls[i]), bool(clamped[i]), seconds, started)
        for i in range(len(targets))
    ]


def optimise_all(
    lm: LM,
    layer: int,
    targets: Sequence[Target],
    settings: ValueSettings,
    on_step: OnStep = silent,
    *,
    max_tokens: int = 512,
    keep: Callable[[Mapping[int, Value]], None] | None = None,
) -> list[Value]:
    """`optimise` in batches of similar length, so that memory does not grow with the number of targets.

    Args:
        max_tokens: padded tokens that one step of a batch runs, at most (one target always fits).
        keep: is given each batch's values, by number, as soon as they are there.

    Raises:
        EditFailed: a loss is not finite.
    """
    order = sorted(range(len(targets)), key=lambda i: _span(targets[i]))
    found: dict[int, Value] = {}
    while order:
        chunk = [order.pop()]  # the longest of those left
        width = _span(targets[chunk[0]])
        n_rows = _n_rows(targets[chunk[0]])
        while order and width * (n_rows + _n_rows(targets[order[-1]])) <= max_tokens:
            n_rows += _n_rows(targets[order[-1]])
            chunk.append(order.pop())
        if len(targets) > 1:
            on_step(StepInfo("optimising values", len(found), len(targets), "facts"))
        batch = dict(zip(chunk, optimise(lm, layer, [targets[i] for i in chunk], settings, on_step), strict=True))
        if keep is not None:
            keep(batch)
        found |= batch
    if len(targets) > 1:
        on_step(StepInfo("optimising values", len(targets), len(targets), "facts"))
    return [found[i] for i in range(len(targets))]


def _span(target: Target) -> int:
    """Columns that run: from the edited token to the end of the longest row."""
    return max(len(row.ids) - row.index for row in _rows(target))


def _n_rows(target: Target) -> int:
    return len(_rows(target))


def _rows(target: Target) -> list[Row]:
    return [*target.rows, *([target.essence] if target.essence else [])]


def _pick(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(-1, ids[:, None])[:, 0]


def _behind_a_context(targets: Sequence[Target], device: torch.device) -> Tensor:
    """For every token of a target that is read, in batch order: it is not in the first row, where there are others."""
    flags = [i > 0 or len(t.rows) == 1 for t in targets for i, row in enumerate(t.rows) for _ in row.targets]
    return torch.tensor(flags, device=device)


def _reading_plan(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every read position in batch order: is it the KL row's, whose is it; and for the others weight and id."""
    is_kl: list[bool] = []
    owner: list[int] = []
    weight: list[float] = []
    wanted: list[int] = []
    for i, target in enumerate(targets):
        for row in target.rows:
            is_kl += [False] * len(row.targets)
            owner += [i] * len(row.targets)
            weight += [1 / (len(row.targets) * len(target.rows))] * len(row.targets)
            wanted += row.targets
        if target.essence is not None:
            is_kl.append(True)
            owner.append(i)
    return (
        torch.tensor(is_kl, device=device),
        torch.tensor(owner, device=device),
        torch.tensor(weight, device=device),
        torch.tensor(wanted, device=device),
    )
