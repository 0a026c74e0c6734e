"""Training the side memory of WISE for one edit.

Only D, the change of one value matrix, is trained, and of it only the entries of a random mask:

    minimise over D   NLL + margin_weight L_a            (arXiv 2405.14768 eq. 4 and 6)

NLL is the mean over rows (the prompt, and random texts in front of it) of the mean over target tokens, with D added in
the edited layer at every token. L_a keeps the indicator low on irrelevant texts, high on the edit's rows, and the two
apart:

    relu(d_i - alpha) + relu(beta - d_e) + relu(gamma - (d_e - d_i)),  each averaged over what violates it.

Blocks up to the edited one are frozen, so they run once per text; a step is the blocks above it, and the head at the
target's positions. Irrelevant texts and the prompts of earlier edits need no block at all: their indicator comes from
the value matrix's inputs, which are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlab.edits.values import site_of_shift
from editlab.errors import EditFailed
from editlab.hooks.batch import pad_rows
from editlab.progress import OnStep, StepInfo
from editlab.rows import Row, read_mask

if TYPE_CHECKING:
    from editlab.edits.methods.wise import Config
    from editlab.lm import LM


PROMPTS = 64  # earlier edits whose routing a step looks at


@dataclass(frozen=True)
class Inputs:
    """The value matrix's inputs at the tokens of some texts, and what it gives for them.

    Attributes:
        x: (tokens, d_in) float32. plain: (tokens,) length of the output without bias. owner: (tokens,) whose token.
        n: how many texts.
    """

    x: Tensor
    plain: Tensor
    owner: Tensor
    n: int

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        """One after the other."""
        starts = torch.tensor([0, *(p.n for p in parts)]).cumsum(0).tolist()
        return cls(
            torch.cat([p.x for p in parts]),
            torch.cat([p.plain for p in parts]),
            torch.cat([p.owner + start for p, start in zip(parts, starts, strict=False)]),
            starts[-1],
        )

    def some(self, which: Tensor) -> Inputs:
        """Those of the texts `which`."""
        order = torch.arange(len(which), device=self.owner.device)
        place = self.owner.new_full((self.n,), -1).scatter(0, which, order)[self.owner]
        kept = place >= 0
        return Inputs(self.x[kept], self.plain[kept], place[kept], len(which))

    def indicator(self, change: Tensor, *, relative: bool, largest: bool = False) -> Tensor:
        """(n,) of the paper, or relative to the plain output; the mean over tokens, or the largest of them."""
        added = (self.x @ change.T).norm(dim=-1)
        if largest:
            each = added / self.plain.clamp(min=1e-12) if relative else added
            return added.new_zeros(self.n).scatter_reduce(0, self.owner, each, "amax")
        total = added.new_zeros(self.n).index_add(0, self.owner, added)
        rest = self.plain if relative else torch.ones_like(self.plain)
        return total / added.new_zeros(self.n).index_add(0, self.owner, rest)


# What was computed for texts that every edit asks of again; keyed by content, so it can only be right.
_KEPT: OrderedDict[tuple[Any, ...], Inputs] = OrderedDict()


def kept_inputs_of(lm: LM, layer: int, texts: Sequence[str]) -> Inputs:
    """`inputs_of`, without this layer's own memory; kept for the next edit of the same weights (the latest two)."""
    others = lm.routes.digest if lm.routes.layers.keys() - {lm.adapter.layers[layer].down} else ""
    key = (lm.weights_hash, str(lm.device), lm.tokenizer_hash, others, layer, tuple(texts))
    found = _KEPT.get(key)  # another thread may drop it at any time
    if found is None:
        with lm.routes.off(lm.adapter.layers[layer].down):
            found = _KEPT[key] = inputs_of(lm, layer, texts)
        while len(_KEPT) > 2:
            _KEPT.popitem(last=False)
    return found


def inputs_of(lm: LM, layer: int, texts: Sequence[str], *, max_tokens: int = 4096) -> Inputs:
    """Of texts as they stand; runs no block above the layer."""
    rows = [lm.tokens(text)[0] for text in texts]
    parts = []
    each = max(1, max_tokens // max(len(row) for row in rows))
    for start in range(0, len(rows), each):
        batch = pad_rows(rows[start : start + each], pivots="right", device=lm.device)
        got = lm.capture(batch, [("mlp_key", layer), ("mlp_value", layer)])
        parts.append(_inputs(lm, layer, got["mlp_key", layer], got["mlp_value", layer], batch.mask.bool()))
    return Inputs.joined(parts)


def _inputs(lm: LM, layer: int, key: Tensor, value: Tensor, mask: Tensor) -> Inputs:
    bias = getattr(lm.model.get_submodule(lm.adapter.layers[layer].down), "bias", None)
    plain = value.float() if bias is None else value.float() - bias.float()
    owner = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
    return Inputs(key[mask].float(), plain[mask].norm(dim=-1), owner, len(mask))


class Rows:
    """Rows with targets, frozen below the layer that is trained.

    Attributes:
        prompts: the inputs at each row's prompt.
    """

    def __init__(self, lm: LM, layer: int, rows: Sequence[Row], *, from_subject: bool = False) -> None:
        """Freeze the rows.

        Args:
            from_subject: take the tokens before the subject as the model leaves them, so that no step runs them: for
                a change that does not answer to what stands there.
        """
        self.lm, self.rows = lm, list(rows)
        self.site, start = site_of_shift(lm, layer)
        lengths = [row.reads[0] + 1 for row in rows]
        pivots = [row.subject if from_subject else 0 for row in rows]
        batch = pad_rows([row.ids for row in rows], pivots=pivots, prompts=lengths, device=lm.device)
        with lm.session() as s, torch.no_grad():
            s.capture("mlp_key", layer)
            s.capture("mlp_value", layer)
            self.cone = s.cone(batch, start, max(pivots))
            key = s.captured["mlp_key", layer].float()
            value = s.captured["mlp_value", layer]
        self.start = start
        self.key = key[:, max(pivots) :]
        self.read = read_mask(batch, self.rows)
        assert batch.ends is not None
        prompt = batch.mask.bool() & (torch.arange(batch.width, device=lm.device) < batch.ends[:, None])
        self.prompts = _inputs(lm, layer, key, value, prompt)

    def nll(self, change: Tensor, which: Tensor) -> Tensor:
        """(len(which),) mean over the target's tokens with `change` (d_out, d_in) in the value matrix."""
        chosen = [self.rows[i] for i in which.tolist()]
        # What the change adds, padded tokens and all: nothing reads those.
        added = self.key[which] @ change.T
        with self.lm.session() as s:
            s.patch(self.site, self.start, lambda part: part + added.to(part.dtype))
            logits = s.run(self.cone.rows(which), read=self.read[which]).logits
        assert logits is not None
        wanted = torch.tensor([t for row in chosen for t in row.targets], device=logits.device)
        owner = torch.tensor([i for i, row in enumerate(chosen) for _ in row.targets], device=logits.device)
        lost = -logits.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        count = torch.bincount(owner, minlength=len(chosen))
        return lost.new_zeros(len(chosen)).index_add(0, owner, lost) / count


def margin_loss(irrelevant: Tensor, edits: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """L_a from the indicators of irrelevant texts and of the edit's rows."""
    gap = edits[None, :] - irrelevant[:, None]
    hinges = (irrelevant - alpha, beta - edits, gamma - gap)
    return torch.stack([_violated(h) for h in hinges]).sum()


def _violated(hinge: Tensor) -> Tensor:
    return hinge.clamp(min=0).sum() / (hinge > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Trained:
    """What training one edit gave.

    Attributes:
        values: (n,) float32 of D on the mask. losses: NLL and L_a before each step.
    """

    values: Tensor
    losses: list[tuple[float, float]]


class Unknown:
    """What is trained: the entries of D on the mask, or its step in the coordinates of a metric.

    Attributes:
        values: the parameter. rows: numbers of D's rows that the mask touches.
    """

    def __init__(self, start: Tensor, mask: Tensor, factor: Tensor | None) -> None:
        """Begin at `start` (d_out, d_in); a mask of whole rows where there is a factor."""
        self.start, self.mask, self.factor = start, mask, factor
        self.rows = (mask // start.shape[1]).unique_consecutive()
        if factor is None:
            self.values = start.flatten()[mask].clone().requires_grad_()
        else:
            self.values = start.new_zeros(len(self.rows), start.shape[1]).requires_grad_()

    @property
    def change(self) -> Tensor:
        """(d_out, d_in) D as it stands."""
        if self.factor is None:
            return self.start.flatten().scatter(0, self.mask, self.values).view_as(self.start)
        step = torch.linalg.solve_triangular(self.factor, self.values, upper=False, left=False)
        return self.start.index_add(0, self.rows, step)


@dataclass(frozen=True)
class Quiet:
    """Inputs on which an edit must not be heard, and those of earlier edits that must go on to be.

    Attributes:
        pool: irrelevant texts to draw from. near: the prompt about other subjects, always there.
        earlier: prompts of the shard's earlier edits. others: prompts of the edits of other banks.
    """

    pool: Inputs
    near: Inputs
    earlier: Inputs
    others: Inputs


def train(
    unknown: Unknown,
    rows: Rows,
    n_own: int,
    quiet: Quiet,
    config: Config,
    generator: torch.Generator,
    on_step: OnStep,
) -> Trained:
    """Train the change for one edit, from where the shard stands.

    Args:
        rows: the edit's own `n_own` rows first, the bare prompt leading; then some of earlier edits, for replay.

    Raises:
        EditFailed: the loss is not finite.
    """

    def heard(inputs: Inputs, change: Tensor) -> Tensor:
        some = change[unknown.rows]  # the others are zero
        return inputs.indicator(some, relative=config.indicator == "relative", largest=config.pooling == "max")

    def draw(inputs: Inputs, n: int) -> Inputs:
        return inputs.some(torch.randperm(inputs.n, generator=generator)[:n].to(inputs.owner))

    adam = torch.optim.Adam([unknown.values], lr=config.lr)
    losses = []
    for step in range(config.steps):
        change = unknown.change
        drawn = 1 + torch.randperm(n_own - 1, generator=generator)[: config.rows]
        own = torch.cat([torch.zeros(1, dtype=torch.long), drawn]).to(change.device)
        past = n_own + torch.randperm(len(rows.rows) - n_own, generator=generator)[: config.replay].to(own)
        nll = rows.nll(change, torch.cat([own, past]))
        texts = [draw(quiet.pool, config.negatives), quiet.near, draw(quiet.others, PROMPTS)]
        silent_on = [heard(part, change) for part in texts if part.n]
        edits = heard(rows.prompts.some(own), change)
        loss_a = margin_loss(
            torch.cat([edits.new_zeros(0), *silent_on]), edits, config.alpha, config.beta, config.gamma
        )
        if quiet.earlier.n:
            loss_a = loss_a + _violated(config.beta - heard(draw(quiet.earlier, PROMPTS), change))
        fit = nll[: len(own)].mean()
        loss = fit + config.margin_weight * loss_a
        if len(past):
            loss = loss + config.replay_weight * nll[len(own) :].mean()
        if not bool(torch.isfinite(loss)):
            raise EditFailed("The loss of the side memory is not finite.", "Try a smaller learning rate.")
        losses.append((fit.item(), loss_a.item()))
        on_step(StepInfo("training the side memory", step + 1, config.steps, "steps", f"NLL {losses[-1][0]:.3f}"))
        if losses[-1][0] < config.stop_nll and losses[-1][1] < config.stop_margin:
            break
        if step == config.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Trained(unknown.change.detach().flatten()[unknown.mask], losses)
