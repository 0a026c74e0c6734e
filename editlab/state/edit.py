"""What an edit is: changes of parameters, with the facts and settings that they came from."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from editlab.errors import EditlabError
from editlab.jsonable import finite
from editlab.state.hashes import tensor_sha256


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of one parameter, in the parameter's stored layout (GPT-2's Conv1D: (in, out)).

    Either `left (rows, r)` and `right (r, cols)`, whose product is added, or `dense`, of the parameter's
    shape, which is added; or, with `is_gain`, `left (rows, 1)` and `right (1, cols)`, whose product every entry is
    multiplied by (a head is pruned by gains of 0). float32 or float64. The tensors are copied to the CPU, so later
    changes to them do not reach it.

    Raises:
        EditlabError: the tensors are not one of the forms, or r exceeds rows or cols (see `low_rank`).
    """

    left: Tensor | None = None
    right: Tensor | None = None
    dense: Tensor | None = None
    is_gain: bool = False

    def __post_init__(self) -> None:
        given = {k: t for k, t in (("left", self.left), ("right", self.right), ("dense", self.dense)) if t is not None}
        if set(given) not in ({"left", "right"}, {"dense"}):
            raise EditlabError(
                f"A delta has {', '.join(given) or 'no tensors'}.", "Give left and right, or dense alone."
            )
        dtypes = {t.dtype for t in given.values()}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise EditlabError(
                f"A delta is stored as {', '.join(sorted(str(d) for d in dtypes))}.",
                "Give float32 or float64, the same for both factors.",
            )
        if self.left is not None and self.right is not None:
            left, right = self.left.shape, self.right.shape
            if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
                raise EditlabError(
                    f"Factors of shapes {tuple(left)} and {tuple(right)} do not multiply.",
                    "Give (rows, r) and (r, cols).",
                )
            if not 1 <= left[1] <= min(left[0], right[1]):
                raise EditlabError(
                    f"Factors of rank {left[1]} are not low-rank for a {left[0]} x {right[1]} weight.",
                    "Use Delta.low_rank, which multiplies them out.",
                )
            if self.is_gain and left[1] != 1:
                raise EditlabError(f"A gain has factors of rank {left[1]}.", "Give (rows, 1) and (1, cols).")
        elif self.is_gain:
            raise EditlabError("A gain is dense.", "Give left (rows, 1) and right (1, cols).")
        for name, t in given.items():
            with torch.inference_mode(False):
                owned = t.detach().to("cpu", copy=True).contiguous()
            object.__setattr__(self, name, owned)

    @classmethod
    def low_rank(cls, left: Tensor, right: Tensor) -> Delta:
        """A delta from factors, multiplied out in float64 where r exceeds rows or cols."""
        if left.ndim == right.ndim == 2 and left.shape[1] > min(left.shape[0], right.shape[1]):
            return cls(dense=left.double() @ right.double())
        return cls(left=left, right=right)

    @classmethod
    def gain(cls, values: Tensor, axis: int, size: int) -> Delta:
        """Multiply the slices of a matrix along `axis` by `values` (n,); its other axis has `size` slices."""
        values, ones = values.reshape(-1), torch.ones(size, dtype=values.dtype)
        left, right = (values, ones) if axis == 0 else (ones, values)
        return cls(left=left[:, None], right=right[None, :], is_gain=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter it changes."""
        if self.dense is not None:
            return tuple(self.dense.shape)
        left, right = self._factors
        return left.shape[0], right.shape[1]

    @property
    def rank(self) -> int:
        """The number of factors, or for a dense delta the most its rank can be."""
        return min(self.shape) if self.dense is not None else self._factors[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return next(iter(self.tensors.values())).dtype

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its parts by name: left and right, or dense."""
        if self.dense is not None:
            return {"dense": self.dense}
        left, right = self._factors
        return {"left": left, "right": right}

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        assert self.left is not None and self.right is not None  # __post_init__ saw to it
        return self.left, self.right

    @property
    def is_finite(self) -> bool:
        """Whether no part holds a NaN or an infinity."""
        return all(bool(torch.isfinite(t).all()) for t in self.tensors.values())

    def apply_to(self, total: Tensor) -> Tensor:
        """Make the change in place in a float64 tensor of the parameter's shape, on any device."""
        if self.is_gain:
            left, right = self._factors
            return total.mul_(left.to(total)).mul_(right.to(total))
        if self.dense is not None:
            return total.add_(self.dense.to(total))
        left, right = self._factors
        return total.addmm_(left.to(total), right.to(total))

    def to(self, dtype: torch.dtype) -> Delta:
        """The same delta in float32 or float64."""
        return Delta(**{name: t.to(dtype) for name, t in self.tensors.items()}, is_gain=self.is_gain)

    def norm(self) -> float:
        """Frobenius norm, from the factors where there are factors; of a gain, of its difference from 1."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        if self.dense is not None:
            return float(torch.linalg.vector_norm(self.dense, dtype=torch.float64))
        left, right = (t.double() for t in self._factors)
        if self.is_gain:
            # |l r' - 1 1'|^2, multiplied out
            square = left.square().sum() * right.square().sum() - 2 * left.sum() * right.sum() + math.prod(self.shape)
            return math.sqrt(max(0.0, float(square)))
        # left = QR with orthonormal Q, so |left right| = |R right|: no cancellation, unlike the Gram trick.
        return float(torch.linalg.vector_norm(torch.linalg.qr(left, mode="r").R @ right))

    def __repr__(self) -> str:
        form = "gain" if self.is_gain else "dense" if self.dense is not None else f"rank {self.rank}"
        return f"Delta({form}, {' x '.join(map(str, self.shape))}, norm {self.norm():.4g})"


@dataclass(frozen=True, eq=False)
class Edit:
    """What a method returns: the changes it wants, before any of them is made.

    `config`, `requests` and `info` are kept as JSON holds them (tuples become lists), so that an edit read
    from a pack is equal to the one that was saved. Numbers in `info` that are not finite become None.

    Attributes:
        method: the name the method is registered under.
        config: its resolved settings.
        requests: the facts it was asked for.
        deltas: per parameter name the change.
        info: diagnostics (losses, probabilities, condition numbers, timing).
        tensors: what later edits of a sequential method need, such as keys. Not added to any weight.
        routing: None for an edit of weights. Otherwise the edit is part of a side memory: how and where its `tensors`
            change a module's output, for the sequences that they are for (see `editlab.memories`).

    Raises:
        EditlabError: a value that JSON cannot hold.
    """

    method: str
    config: dict[str, Any]
    requests: list[dict[str, Any]]
    deltas: dict[str, Delta]
    info: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    routing: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        plain = {
            "routing": None if self.routing is None else _as_json(self.routing, f"The routing of {self.method}"),
            "config": _as_json(self.config, f"The config of {self.method}"),
            "requests": _as_json(self.requests, f"A request of {self.method}"),
            "info": _as_json(finite(self.info), f"The diagnostics of {self.method}"),
            "deltas": dict(self.deltas),
            "tensors": {name: t.detach().to("cpu", copy=True).contiguous() for name, t in self.tensors.items()},
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the deltas, or of a side memory's part: which change it is, whoever asked for it."""
        digest = hashlib.sha256()
        if self.routing is not None:
            digest.update(json.dumps(self.routing, sort_keys=True).encode())
            for name in sorted(self.tensors):
                digest.update(f"{len(name)}:{name}:{tensor_sha256(self.tensors[name])}\n".encode())
        for name in sorted(self.deltas):
            for part, t in self.deltas[name].tensors.items():
                part = f"gain {part}" if self.deltas[name].is_gain else part
                digest.update(f"{len(name)}:{name}:{part}:{tensor_sha256(t)}\n".encode())
        return digest.hexdigest()

    @property
    def summary(self) -> str:
        """The requests in a few words; of an edit without any what its `info` says of it."""
        if not self.requests:
            return str(self.info.get("what", "no requests"))
        first = self.requests[0]
        prompt = str(first.get("prompt", "")).replace("{}", str(first.get("subject", "")))
        text = f"{prompt} → {first.get('target_new', '')}".strip(" →")
        more = f" (and {len(self.requests) - 1} more)" if len(self.requests) > 1 else ""
        return f"{text[:80]}{more}"


def _as_json(value: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise EditlabError(
            f"{what} cannot be stored as JSON: {error}.", "Use strings, finite numbers, lists and dicts."
        ) from None
