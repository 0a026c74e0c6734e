"""A private copy of a model that is trained, and put back bit for bit.

The LM that it is made from is the snapshot: it is read and never written, so restoring is one copy and needs no second
set of weights. Memory in all, in bytes a parameter (float32): 4 the LM, 4 the copy, 4 gradients, 8 Adam.

Training is the paper's (arXiv 2303.17557): all weights, AdamW, constant rate, no clipping, mean loss over the tokens of
a batch, rows that begin at position 0. Dropout stays off; no global random generator is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch
from safetensors import safe_open
from torch import Tensor

from editlab.errors import ConfigError, EditlabError
from editlab.hooks.placement import in_float64
from editlab.runs.memory.token_loss import token_loss
from editlab.state.files import write_tensors

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.memory.reading import Ids

Scope = Literal["all", "mlp"]


class Diverged(EditlabError):
    """A training loss is not finite."""


@dataclass(frozen=True)
class Optimiser:
    """Settings of AdamW."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


class Learner:
    """The copy. `lm` is what probes read; `restore` makes it the source again.

    Args:
        source: the model as it stands, edits included; edits of weights are folded in, side memories stay in force.
        scope: which weights are trained: "all", or the matrices of the MLPs.

    Raises:
        ConfigError: the weights are not float32 or float64, in which small steps would be lost, or too large for the
            memory that is free.
    """

    def __init__(self, source: LM, optimiser: Optimiser = Optimiser(), scope: Scope = "all") -> None:
        self.settings = optimiser
        self._scope = scope
        self._adam: torch.optim.AdamW | None = None
        check_trainable(source, scope)
        self._take(source)

    def _take(self, source: LM) -> None:
        self.source = source
        self.lm = source.on_own_weights()
        self._weights = dict(self.lm.model.named_parameters())
        self._trained = _chosen(self.lm, self._scope)
        for name, weight in self._weights.items():
            weight.requires_grad_(name in self._trained)

    def restore(self, source: LM | None = None) -> None:
        """Be the source again, or another LM of the same model; the optimiser is forgotten."""
        self._adam = None
        if source is not None and source is not self.source:
            if source.routes.digest or self.source.routes.digest:
                # Side memories are part of the copy's structure.
                self.lm = self._weights = self._trained = None  # type: ignore[assignment]  # free it first
                self._take(source)
                return
            self.source = source
        with torch.no_grad():
            for name, weight in self._sources():
                self._weights[name].copy_(weight)
        self.drop_gradients()

    def _sources(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self.source.model.named_parameters():
            yield name, weight.detach()

    @property
    def is_restored(self) -> bool:
        """Every weight is the source's, bit for bit."""
        return all(torch.equal(self._weights[name], weight) for name, weight in self._sources())

    def drop_gradients(self) -> None:
        """Free them."""
        for weight in self._weights.values():
            weight.grad = None

    def forget_moments(self) -> None:
        """The next step begins with a fresh optimiser."""
        self._adam = None

    def _fresh_adam(self) -> torch.optim.AdamW:
        s = self.settings  # each step brings its own learning rate
        return torch.optim.AdamW(
            self._trained.values(), betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=s.weight_decay, fused=True
        )

    def step(self, rows: Sequence[Ids], lr: float) -> float:
        """One update on the rows' token-mean loss; returns that loss, taken before the update.

        Raises:
            Diverged: the loss is not finite.
        """
        if self._adam is None:
            self._adam = self._fresh_adam()
        self._adam.param_groups[0]["lr"] = lr
        loss = self.backward(rows)
        if not math.isfinite(loss):
            self.drop_gradients()
            raise Diverged(f"The training loss is {loss}.", "Use a smaller learning rate ('lr').")
        self._adam.step()
        self.drop_gradients()
        return loss

    def backward(self, rows: Sequence[Ids]) -> float:
        """Leave the gradient of the rows' token-mean loss on the weights; returns the loss."""
        loss = token_loss(self.lm, rows)
        loss.backward()
        return float(loss.detach())

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """All weights by name, tied ones once."""
        return self._weights

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Those that training changes."""
        return self._trained

    def distance(self) -> float:
        """Euclidean distance of all weights from the source's."""
        total = sum(float(in_float64(self._weights[n].detach() - w).square().sum()) for n, w in self._sources())
        return math.sqrt(total)

    def save(self, path: Path, note: dict[str, str]) -> None:
        """Write weights and optimiser, in one step; `note` says when."""
        tensors = {f"weight.{n}": w.detach() for n, w in self._weights.items()}
        if self._adam is not None:
            for name, weight in self._trained.items():
                state = self._adam.state.get(weight, {})
                tensors |= {f"{part}.{name}": value for part, value in state.items()}
        write_tensors(path, tensors, note)

    def load(self, path: Path) -> None:
        """Go on from a file of `save`."""
        self.forget_moments()
        with safe_open(path, "pt") as f:
            names = set(f.keys())
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(f.get_tensor(f"weight.{name}"))
            first = next(iter(self._trained))
            if f"step.{first}" not in names:
                return
            self._adam = self._fresh_adam()
            for name, weight in self._trained.items():
                self._adam.state[weight] = {
                    part: f.get_tensor(f"{part}.{name}").to(weight.device) for part in ("step", "exp_avg", "exp_avg_sq")
                }


def _chosen(lm: LM, scope: Scope) -> dict[str, Tensor]:
    named = dict(lm.model.named_parameters())
    if scope == "all":
        return named
    blocks = [(path.block, path.down) for path in lm.adapter.layers]
    mlps = [down.rpartition(".")[0] + "." for _, down in blocks]
    found = {n: w for n, w in named.items() if w.dim() == 2 and any(n.startswith(mlp) for mlp in mlps)}
    return found


def memory_needed(lm: LM, scope: Scope = "all") -> int:
    """Bytes that a learner takes beside the model: the copy, gradients, and Adam's two moments."""
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in _chosen(lm, scope).values())
    return size + 3 * trained


def check_trainable(lm: LM, scope: Scope = "all") -> None:
    """Refuse a model that cannot be trained here.

    Raises:
        ConfigError: see `Learner`.
    """
    kinds = {p.dtype for p in lm.model.parameters()}
    if not kinds <= {torch.float32, torch.float64}:
        raise ConfigError(
            f"Training needs float32 weights; these are {', '.join(sorted(str(k) for k in kinds))}, in which small "
            "steps are lost.",
            "Load the model with --dtype float32.",
        )
    need, free = memory_needed(lm, scope), psutil.virtual_memory().available
    if lm.device.type == "cpu" and need > free:
        raise ConfigError(
            f"Training needs {need / 1e9:.1f} GB beside the model, {free / 1e9:.1f} GB are free.",
            "Use a smaller model, or train the MLPs alone (scope=mlp).",
        )
