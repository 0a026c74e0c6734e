"""The codebook of GRACE: values that replace a module's output at the prompt's last token, near their keys.

A key is the module's input at the last token of an edit's prompt; it answers within its radius (arXiv 2211.11031). The
codebook is what the edits give one after the other, for a new key at distance d from the nearest one:

    farther than both radii          it is added with the first radius
    on it                            the nearest key takes the new value and the new target
    within, for the same target      the nearest key's radius grows to d, and takes the new value
    within, for another target       it is added, and the two radii meet half way
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from editlab.memories.checks import parsed, sizes, tensor
from editlab.memories.rounding import rounding
from editlab.state.edit import Edit

HALF = 1e-5  # keeps two keys' balls from touching


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """(n, m) Euclidean distances between the rows of `queries` (n, d) and of `keys` (m, d).

    The difference is formed before it is squared. `torch.cdist` multiplies matrices above 25 rows, which is wrong by
    hundredths where keys are long and near each other; radii come from distances, so both need the same ones.
    """
    return torch.stack([torch.linalg.vector_norm(keys - query, dim=-1) for query in queries])


class Routing(BaseModel):
    """What a GRACE edit records: where, the first radius, and the target's token ids of each of its keys."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["grace"] = "grace"
    path: str
    layer: int
    radius: float = Field(gt=0)
    targets: list[list[int]] = Field(min_length=1)


@dataclass
class Code:
    """One key with its value, radius and target."""

    key: Tensor
    value: Tensor
    radius: float
    target: tuple[int, ...]


def codebook(edits: Sequence[Edit], d_out: int, d_in: int) -> list[Code]:
    """The codes after these edits.

    Raises:
        EditlabError: an edit's parts are not what GRACE makes for such a matrix.
    """
    codes: list[Code] = []
    for edit in edits:
        routing = parsed(Routing, edit)
        n = len(routing.targets)
        keys, values = tensor(edit, "keys", (n, d_in)), tensor(edit, "values", (n, d_out))
        for key, value, target in zip(keys, values, routing.targets, strict=True):
            _add(codes, Code(key, value, routing.radius, tuple(target)))
    return codes


def _add(codes: list[Code], new: Code) -> None:
    if codes:
        to_codes = distances(new.key[None], torch.stack([code.key for code in codes]))[0]
        nearest, d = codes[int(to_codes.argmin())], float(to_codes.min())
        if d <= new.radius + nearest.radius:
            if d <= 2 * HALF:  # no room for two balls: the prompt was given another answer
                nearest.value, nearest.target = new.value, new.target
                return
            if nearest.target == new.target:
                nearest.radius, nearest.value = max(nearest.radius, d), new.value
                return
            new.radius, nearest.radius = d / 2, d / 2 - HALF
    codes.append(new)


class Layer:
    """The routed layer; chosen is the number of a code.

    Attributes:
        thresholds: (n,) the radii and what rounding may add to a distance, since a key at its radius is to answer.
    """

    def __init__(self, codes: Sequence[Code], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.codes = tuple(codes)
        self.keys = torch.stack([code.key for code in codes]).float().to(device)
        self.values = torch.stack([code.value for code in codes]).to(device)
        radii = torch.tensor([code.radius for code in codes], device=device)
        self.thresholds = radii + rounding(dtype) * torch.linalg.vector_norm(self.keys, dim=-1)

    def look(self, x: Tensor, y: Tensor, *, exact: bool = True) -> tuple[Tensor, ...]:
        """The inputs themselves."""
        return (x.detach().float(),)

    def decide(self, prompt: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The nearest key, if the prompt's last token lies within its radius; the scores are distances."""
        columns = torch.arange(prompt.shape[1], device=prompt.device)
        last = torch.where(prompt, columns, 0).amax(1)
        query = parts[0][torch.arange(len(last), device=last.device), last]
        to_keys = distances(query, self.keys)
        nearest = to_keys.argmin(1)
        inside = to_keys.gather(1, nearest[:, None])[:, 0] <= self.thresholds[nearest]
        return torch.where(inside, nearest, -1), to_keys

    def change(self, x: Tensor, y: Tensor, chosen: Tensor, ends: Tensor | None) -> Tensor:
        """The value in place of the output at the prompt's last token; nothing in passes that go on."""
        if ends is None:
            return y
        here = (torch.arange(y.shape[1], device=y.device) == ends[:, None]) & (chosen >= 0)[:, None]
        return torch.where(here[..., None], self.values[chosen.clamp(min=0)][:, None].to(y.dtype), y)

    def name(self, bank: int) -> str:
        return f"key {bank}"

    def margin(self, scores: Tensor) -> Tensor:
        """(n,) above 1 where a key answers."""
        return self.thresholds / scores.clamp(min=1e-12)

    def why(self, scores: Tensor, chosen: int) -> str:
        """One sentence about a row."""
        best = int(scores.argmin())
        verb = "within" if chosen >= 0 else "outside"
        return f"{float(scores[best]):.3g} from {self.name(best)}, {verb} its radius {float(self.thresholds[best]):.3g}"


def layer(module: nn.Module, edits: Sequence[Edit]) -> Layer:
    """The layer that these edits make together.

    Raises:
        EditlabError: they were made for another matrix, or are damaged.
    """
    codes = codebook(edits, *sizes(module, parsed(Routing, edits[0]).path))
    weight = next(module.parameters())
    return Layer(codes, weight.device, weight.dtype)
