"""The side memory of WISE: banks of changes of one value matrix, and the indicator that picks between them.

D_s, the change of shard s, is the sum of what its edits wrote, on the shard's random mask. Every `merge_every` full
shards are merged; the result, the shards that wait to be merged and the one in progress are the banks. For a prompt P

    absolute    sum over t in P of ||D a_t|| / |P|              (arXiv 2405.14768 eq. 3, mean over tokens)
    relative    sum of ||D a_t|| / sum of ||W a_t||             (scale-free across models and layers)
    reference   mean of ||act((W + D) a_t) - act(W a_t)||       (the released code)

is a bank's indicator, a_t being the value matrix's input; with `pooling` "max" it is the largest of the tokens' instead
of their mean, so that a subject is noticed however long the text around it is. The bank whose indicator is the farthest
above its own threshold answers, else the model as it is: banks of different strength are compared in units of what
their own edits reach. The threshold is `ratio` times the smallest indicator of the bank's own edit prompts, computed
afresh from their kept inputs whenever the memory changes: after later edits, merges and undoing.

A mask is drawn by entries or by whole rows of the matrix. A bank's rows that are zero are not multiplied, so many banks
of few rows cost what one full one does; and where only the loudest token counts, banks that cannot exceed their
threshold are told by a limit that costs less (`sketch`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from editlab.errors import EditlabError
from editlab.memories.checks import damaged, parsed, sizes, tensor
from editlab.memories.merges import MERGES, merge
from editlab.memories.rounding import rounding
from editlab.memories.sketch import Limits, Sketch
from editlab.state.edit import Edit

AGAIN = (0.4, 0.6)  # weights of new shards, together, and of what was merged before (released code)


class Routing(BaseModel):
    """What a WISE edit records of its memory; alike for all edits of one memory, but for `number` and `count`.

    Attributes:
        path: of the value matrix's module. layer: its block.
        shard_size: edits of a shard. merge_every: shards of a merge. mode: one merged bank for all, or one each.
        number: edits written before this one. count: how many this one wrote.
        activation: transformers' name of the MLP's, for the indicator that needs it.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["wise"] = "wise"
    path: str
    layer: int
    shard_size: int = Field(ge=1, le=2**31)
    merge_every: int = Field(ge=1, le=2**31)
    mode: Literal["merge", "retrieve"]
    merge: str
    density: float = Field(gt=0, le=1)
    indicator: Literal["absolute", "relative", "reference"]
    pooling: Literal["mean", "max"] = "mean"
    ratio: float
    seed: int = Field(ge=0, lt=2**63)
    number: int = Field(ge=0, le=2**31)
    count: int = Field(ge=1, le=2**31)
    activation: str | None = None

    @property
    def shards(self) -> range:
        """Those that the edit wrote into."""
        last = self.number + self.count - 1
        return range(self.number // self.shard_size, last // self.shard_size + 1)


@dataclass(frozen=True)
class Part:
    """The rows of a change (d_out, d_in) that are not zero, and their numbers."""

    rows: Tensor
    values: Tensor

    @classmethod
    def of(cls, change: Tensor) -> Part:
        rows = change.any(1).nonzero()[:, 0]
        return cls(rows, change[rows].contiguous())

    def to(self, device: torch.device) -> Part:
        return Part(self.rows.to(device), self.values.to(device))

    def added(self, x: Tensor) -> Tensor:
        """(..., rows) of what the change adds to the output for x (..., d_in)."""
        return x @ self.values.T


@dataclass(frozen=True)
class Bank:
    """One candidate to answer: `part` is what is in W' - W, `inputs` those of the edits that it holds.

    Attributes:
        d_out: of the matrix. key: what it was made of.
    """

    name: str
    part: Part
    inputs: tuple[Tensor, ...]
    d_out: int
    key: str = ""

    @property
    def change(self) -> Tensor:
        """(d_out, d_in) float32, W' - W."""
        values = self.part.values
        return values.new_zeros(self.d_out, values.shape[1]).index_copy(0, self.part.rows, values)

    @cached_property
    def sketch(self) -> Sketch | None:
        """What limits the change."""
        return Sketch.of(self.part.values)


@dataclass(frozen=True)
class Shard:
    """What the edits of one shard wrote, each of (d_out, d_in) = `shape`."""

    number: int
    edits: tuple[Edit, ...]
    shape: tuple[int, int]

    @property
    def change(self) -> Tensor:
        """(d_out, d_in) float32, the sum of the edits in float64 in their order."""
        size = int(np.prod(self.shape))
        total = torch.zeros(size, dtype=torch.float64)
        for edit in self.edits:
            where = unpack(tensor(edit, f"mask.{self.number}", (-(-size // 8),), torch.uint8), size)
            total[where] += tensor(edit, f"values.{self.number}", (len(where),)).double()
        return total.view(*self.shape).float()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Per edit (n, d_in) the value matrix's inputs at its prompt's tokens."""
        found: list[Tensor] = []
        for edit in self.edits:
            lengths = tensor(edit, f"lengths.{self.number}", (None,), torch.int64).tolist()
            prompts = tensor(edit, f"inputs.{self.number}", (sum(lengths), self.shape[1]))
            if not lengths or min(lengths) < 1:
                raise damaged(edit, f"'lengths.{self.number}' are {lengths[:8]}")
            found += prompts.split(lengths)
        return tuple(found)


def mask_of(shape: Sequence[int], density: float, seed: int, shard: int, *, rows: bool = False) -> Tensor:
    """int64 ascending flat indices of the entries that a shard may change.

    Args:
        rows: draw `round(density * d_out)` whole rows instead of `round(density * N)` entries.
    """
    size = int(np.prod(shape[:1] if rows else shape))
    chosen = np.sort(np.random.default_rng([seed, shard]).permutation(size)[: round(density * size)])
    if rows:
        chosen = (chosen[:, None] * shape[1] + np.arange(shape[1])).ravel()
    return torch.from_numpy(chosen)


def pack(indices: Tensor, size: int) -> Tensor:
    """A mask as one bit an entry, uint8."""
    bits = np.zeros(size, dtype=bool)
    bits[indices.numpy()] = True
    return torch.from_numpy(np.packbits(bits))


def unpack(bits: Tensor, size: int) -> Tensor:
    """The flat indices of a packed mask."""
    return torch.from_numpy(np.flatnonzero(np.unpackbits(bits.numpy(), count=size)))


def shards_of(edits: Sequence[Edit], shape: tuple[int, int]) -> dict[int, Shard]:
    """The shards by number."""
    writers: dict[int, list[Edit]] = {}
    for edit in edits:
        shards = parsed(Routing, edit).shards
        if 4 * len(shards) != len(edit.tensors):
            raise damaged(edit, f"it has {len(edit.tensors)} tensors for {len(shards)} shards")
        for number in shards:
            writers.setdefault(number, []).append(edit)
    return {n: Shard(n, tuple(writers[n]), shape) for n in sorted(writers)}


def banks_of(shards: dict[int, Shard], routing: Routing, written: int) -> list[Bank]:
    """The banks after so many edits: merged ones, shards that wait, the one in progress."""
    k = routing.merge_every
    full_groups = written // (routing.shard_size * k)
    merged: list[Bank] = []
    for group in range(full_groups):
        numbers = [n for n in range(group * k, group * k + k) if n in shards]
        if not numbers:
            continue  # all of its edits were undone
        is_one = routing.mode == "merge"
        name = f"shards up to {numbers[-1]}" if is_one else f"shards {numbers[0]} to {numbers[-1]}"
        old = merged.pop() if is_one and merged else None
        merged.append(_bank(name, [shards[n] for n in numbers], old, routing))
    waiting = [n for n in shards if n >= full_groups * k]
    return merged + [_bank(f"shard {n}", [shards[n]], None, routing) for n in waiting]


# Banks in use, by what they were made of: an edit more changes one of them, not all.
_BANKS: WeakValueDictionary[str, Bank] = WeakValueDictionary()


def _bank(name: str, shards: Sequence[Shard], old: Bank | None, routing: Routing) -> Bank:
    """The merge of shards, and of what was merged before them; one alone stays as it is."""
    made_of = [name, shards[0].shape, old.key if old else "", [[e.digest for e in s.edits] for s in shards]]
    key = json.dumps(made_of)
    known = _BANKS.get(key)
    if known is not None:
        return known
    changes, weights = [s.change for s in shards], [1 / len(shards)] * len(shards)
    inputs = [x for s in shards for x in s.inputs]
    if old is not None:
        changes.append(old.change)
        weights = [AGAIN[0] / len(shards)] * len(shards) + [AGAIN[1]]
        inputs = [*old.inputs, *inputs]
    alone = len(changes) == 1
    change = changes[0] if alone else merge(routing.merge, changes, weights, routing.density, routing.seed)
    bank = Bank(name, Part.of(change), tuple(inputs), len(change), hashlib.sha256(key.encode()).hexdigest())
    _BANKS[key] = bank
    return bank


class Layer:
    """The routed layer. `force` overrules the indicator: "main", or the number of a bank.

    Attributes:
        banks: the candidates.
    """

    def __init__(self, module: nn.Module, banks: Sequence[Bank], routing: Routing, act: Callable[[Tensor], Tensor]):
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.banks = tuple(banks)
        self.routing = routing
        self.force: Literal["auto", "main"] | int = "auto"
        self._act = act
        self._bias = getattr(module, "bias", None)
        self._module = module
        self._parts = [bank.part.to(weight.device) for bank in banks]

    @cached_property
    def thresholds(self) -> Tensor:
        """(n_banks,) float32; by the weights when first asked for, with room for rounding for a ratio of 1."""
        module, lowest = self._module, []
        weight = module.weight
        assert isinstance(weight, Tensor)
        for i, bank in enumerate(self.banks):
            inputs = torch.cat(bank.inputs).to(weight.device)
            with torch.no_grad():
                plain = type(module).forward(module, inputs.to(weight.dtype))  # the instance's own forward is routed
            parts = [seen[0] for seen in self._look(inputs[None], plain[None], self._parts[i : i + 1])]
            sizes = [len(x) for x in bank.inputs]
            texts = (pad_sequence(part.split(sizes), batch_first=True) for part in parts)
            count = torch.tensor(sizes, device=weight.device)
            prompt = torch.arange(max(sizes), device=weight.device) < count[:, None]
            lowest.append(self._indicator(prompt, *texts).min())
        return self.routing.ratio * (1 - rounding(weight.dtype)) * torch.stack(lowest)

    def look(self, x: Tensor, y: Tensor, *, exact: bool = True) -> tuple[Tensor, ...]:
        """Lengths of what each bank would add, (B, n, banks), and of the plain output without bias, (B, n).

        Unless `exact`, those of banks that exceed their threshold at no token may be 0: the decision is the same.
        """
        if exact or self._limits is None or self.force != "auto":
            return self._look(x, y, self._parts)
        with torch.no_grad():
            limits, plain = self._limits.of(x.float()), self._plain(y).norm(dim=-1)
            loud = (self._per_token(limits, plain) > self.thresholds).flatten(0, 1).any(0).nonzero()[:, 0]
            added = torch.zeros_like(limits)
            if len(loud):
                added[..., loud] = self._look(x, y, [self._parts[i] for i in loud.tolist()])[0]
            return added, plain

    @cached_property
    def _limits(self) -> Limits | None:
        """Where one token decides, and the limit is a limit."""
        routing = self.routing
        sketches = [bank.sketch for bank in self.banks]
        if len(self.banks) < 2 or routing.pooling != "max" or routing.indicator == "reference" or None in sketches:
            return None
        return Limits([sketch for sketch in sketches if sketch is not None], self._parts[0].values.device)

    def _plain(self, y: Tensor) -> Tensor:
        return y.float() if self._bias is None else y.float() - self._bias.float()

    def _look(self, x: Tensor, y: Tensor, parts: Sequence[Part]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            y, x = self._plain(y), x.float()
            added = [part.added(x) for part in parts]
            if self.routing.indicator == "reference":
                plain = self._act(y)
                added = [
                    self._act(y[..., part.rows] + z) - plain[..., part.rows]
                    for part, z in zip(parts, added, strict=True)
                ]
            return torch.stack([z.norm(dim=-1) for z in added], dim=-1), y.norm(dim=-1)

    def _per_token(self, added: Tensor, plain: Tensor) -> Tensor:
        """(B, n, banks) the indicator of each token by itself."""
        return added / plain[..., None].clamp(min=1e-12) if self.routing.indicator == "relative" else added

    def _indicator(self, prompt: Tensor, added: Tensor, plain: Tensor) -> Tensor:
        """(B, banks) from what `look` saw of the tokens (B, n), where `prompt` has them."""
        if self.routing.pooling == "max":
            return torch.where(prompt[..., None], self._per_token(added, plain), 0).amax(1)
        relative = self.routing.indicator == "relative"
        total = (added * prompt[..., None]).sum(1)
        return total / ((plain * prompt).sum(1).clamp(min=1e-12) if relative else prompt.sum(1).clamp(min=1))[:, None]

    def decide(self, prompt: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The bank whose indicator is the farthest above its threshold, row by row; -1 for the model as it is."""
        scores = self._indicator(prompt, *parts)
        if self.force == "main":
            return torch.full_like(scores[:, 0], -1, dtype=torch.long), scores
        if self.force != "auto":
            return torch.full_like(scores[:, 0], self.force, dtype=torch.long), scores
        clear = torch.where(scores > self.thresholds, self.margin(scores), -torch.inf)
        return torch.where(clear.amax(1) > -torch.inf, clear.argmax(1), -1), scores

    def change(self, x: Tensor, y: Tensor, chosen: Tensor, ends: Tensor | None) -> Tensor:
        """Every token of a routed sequence is answered by its bank; banks that nobody chose are not computed."""
        out = y
        for i in chosen.unique().tolist():
            if i >= 0:
                mine, part = chosen == i, self._parts[i]
                routed = y[mine].float()
                routed[..., part.rows] += part.added(x[mine].float())
                out = out.index_put((mine,), routed.to(y.dtype))
        return out

    def name(self, bank: int) -> str:
        return self.banks[bank].name

    def margin(self, scores: Tensor) -> Tensor:
        """(n_banks,) indicators over thresholds."""
        return scores / self.thresholds.clamp(min=1e-12)

    def why(self, scores: Tensor, chosen: int) -> str:
        """One sentence about a row."""
        if self.force != "auto":
            return f"forced to {self.force}"
        best = chosen if chosen >= 0 else int(self.margin(scores).argmax())
        against, limit = f"{self.name(best)}: {float(scores[best]):.3g}", f"{float(self.thresholds[best]):.3g}"
        if chosen < 0:
            return f"{against} does not exceed {limit}, and no other bank is closer"
        rivals = int((scores > self.thresholds).sum()) - 1
        return f"{against} exceeds {limit}" + (f", the farthest of {rivals + 1} that do" if rivals else "")


def layer(module: nn.Module, edits: Sequence[Edit]) -> Layer:
    """The layer that these edits make together.

    Raises:
        EditlabError: they are parts of differently built memories, were made for another matrix, or are damaged.
    """
    routings = [_routing(edit) for edit in edits]
    first = routings[0]
    if any(r.model_copy(update={"number": first.number, "count": first.count}) != first for r in routings):
        raise EditlabError(
            f"WISE edits with different settings of their memory meet at layer {first.layer}.",
            "Use one set of settings per layer, or another layer.",
        )
    if first.merge not in MERGES:
        raise damaged(edits[0], f"there is no merge {first.merge[:40]!r}")
    written = max(r.number + r.count for r in routings)
    shards = shards_of(edits, sizes(module, first.path))
    return Layer(module, banks_of(shards, first, written), first, _activation(edits[0], first.activation))


def _routing(edit: Edit) -> Routing:
    """The edit's routing, with the activation where it bears on the decision and only there."""
    routing, name = parsed(Routing, edit), None
    if routing.indicator == "reference":
        name = routing.activation or str(edit.info.get("activation", "relu"))  # some packs have it in `info`
    return routing.model_copy(update={"activation": name})


def _activation(edit: Edit, name: str | None) -> Callable[[Tensor], Tensor]:
    from transformers.activations import ACT2FN

    if name is None:
        return torch.relu  # is not asked for
    if name not in ACT2FN:
        raise damaged(edit, f"there is no activation {name[:40]!r}")
    return ACT2FN[name]
