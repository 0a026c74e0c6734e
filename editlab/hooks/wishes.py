"""What a session is asked for, and how it is served on the tensor that passes by.

A `Wish` is one registered capture or patch. `grant` serves all wishes of one point: it knows tensors and lenses, and
nothing of modules or of hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from editlab.errors import ConfigError
from editlab.hooks.points import At, Frame, Lens, Point, lies_before, same_places, select
from editlab.hooks.sites import site as lookup

Key = tuple[str, int | None]
Value = Tensor | float | Callable[[Tensor], Tensor]
Phase = Literal["prefill", "decode", "all"]


@dataclass(eq=False)
class Wish:
    """One registered capture or patch; the handle that `Session.remove` takes."""

    kind: Literal["capture", "patch"]
    site: str
    layer: int | None
    point: Point | None  # None: served by the attention tap
    lens: Lens | None
    at: At = None
    value: Value | None = None
    heads: Tensor | None = None
    before: bool = False
    is_mean: bool = False  # `value` is the mean over the running forward's real tokens
    grad: bool = False
    copy: bool = True
    device: torch.device | None = None
    during: Phase = "prefill"
    fired: int = 0

    @property
    def place(self) -> str:
        """The site and layer, for messages."""
        return f"'{self.site}'" + ("" if self.layer is None else f" in layer {self.layer}")

    @property
    def settings(self) -> tuple[object, ...]:
        """What a capture depends on besides its place and positions."""
        return self.before, self.grad, self.copy, self.device

    def __str__(self) -> str:
        return f"{self.kind} of {self.place}"


class Captured(Mapping[Any, Tensor]):
    """Captured tensors by `[site, layer]`, or `[site]` for a site that exists once."""

    def __init__(self, tensors: Mapping[Key, Tensor] | None = None) -> None:
        self.tensors: dict[Key, Tensor] = dict(tensors or {})

    def __getitem__(self, key: Any) -> Tensor:
        site, layer = key if isinstance(key, tuple) else (key, None)
        try:
            return self.tensors[site, layer]
        except KeyError:
            have = ", ".join(f"{s}" if n is None else f"{s} {n}" for s, n in self.tensors) or "nothing"
            raise KeyError(f"'{site}' of layer {layer} was not captured; captured: {have}") from None

    def __iter__(self) -> Iterator[Any]:
        return iter(k if k[1] is not None else k[0] for k in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass
class Output:
    """What one `run` gave.

    Attributes:
        logits: (B, T, V) for read="all", (B, V), (B, n, V) or (N, V) at chosen positions, None for read=None.
        captured: by [site, layer].
    """

    logits: Tensor | None
    captured: Captured = field(default_factory=Captured)

    def __getitem__(self, key: Any) -> Tensor:
        return self.captured[key]


def grant(groups: Sequence[tuple[list[Wish], Captured]], x: Tensor, frame: Frame) -> Tensor:
    """Serve the wishes of one point on the raw tensor `x`; the tensor that the model goes on with.

    Args:
        groups: by session, the outermost first, its wishes here and where its captures go. Group by group, captures
            of values before the group's patches come first, then its patches in the order they were asked for;
            after the last patch of all, the other captures.
    """
    for wishes, into in groups:
        for wish in wishes:
            if wish.kind == "capture" and wish.before:
                x = _keep(wish, x, frame, into)
        for wish in wishes:
            if wish.kind == "patch":
                x = _apply(wish, x, frame)
    for wishes, into in groups:
        for wish in wishes:
            if wish.kind == "capture" and not wish.before:
                x = _keep(wish, x, frame, into)
    return x


def _chosen(wish: Wish, frame: Frame, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """`select`, on the device of the layer, which is not that of the mask where layers are on several."""
    found = select(wish.at, frame)
    return None if found is None else (found[0].to(device), found[1].to(device))


def _keep(wish: Wish, x: Tensor, frame: Frame, into: Captured) -> Tensor:
    wish.fired += 1
    value = wish.lens.read(x, frame) if wish.lens else x
    key = (wish.site, wish.layer)
    if wish.grad:
        if value.requires_grad:
            value.retain_grad()
        else:
            # Nothing upstream needs a gradient: start the graph here, and hand on what was kept.
            value = value.detach().requires_grad_()
        into.tensors[key] = value
        value = value.clone() if wish.copy else value  # Falcon would add into what was kept
        return wish.lens.write(x, value, frame) if wish.lens else value
    chosen = _chosen(wish, frame, value.device)
    kept = value.detach() if chosen is None else value.detach()[chosen]
    if wish.device is not None:
        kept = kept.to(wish.device)
    into.tensors[key] = kept.clone() if wish.copy else kept
    return x


def _apply(wish: Wish, x: Tensor, frame: Frame) -> Tensor:
    if wish.during != "all" and frame.is_decode != (wish.during == "decode"):
        return x
    wish.fired += 1
    if wish in frame.frozen and lies_before(wish.at, frame):
        return x  # it has done its work in what this forward starts from
    value = wish.lens.read(x, frame) if wish.lens else x
    chosen = _chosen(wish, frame, value.device)
    part = value if chosen is None else value[chosen]
    given = wish.value
    if wish.is_mean:
        real = frame.mask[:, frame.offset : frame.offset + frame.width].bool()
        given = value[real].mean(0) if wish.heads is None else value[real].mean(0)[wish.heads.to(value.device)]
    new = _replace(wish, part, given)
    if chosen is not None:
        value = value.clone()
        value[chosen] = new
        new = value
    elif new is not part:
        new = new.clone()  # what was given stays the caller's: Falcon adds into what it gets
    return wish.lens.write(x, new, frame) if wish.lens else new


def _replace(wish: Wish, part: Tensor, given: Value | None) -> Tensor:
    """The new content of `part`, whose heads stand second to last (or second, under the tap)."""
    if wish.heads is None:
        return _evaluate(wish, part, given)
    heads = wish.heads.to(part.device)
    dim = 1 if lookup(wish.site).tap else part.dim() - 2
    inner = part.index_select(dim, heads)
    return part.index_copy(dim, heads, _evaluate(wish, inner, given))


def runs(wish: Wish, frame: Frame) -> bool:
    """Whether the wish lies in what the running forward computes; stubs below a cone's layer still pass by."""
    if wish.site == "embed":
        return frame.start == 0
    return wish.layer is None or wish.layer >= frame.start


def _evaluate(wish: Wish, part: Tensor, given: Value | None) -> Tensor:
    new = given(part) if callable(given) else given
    if new is part:
        return part
    if not _is_value(new):
        raise ConfigError(
            f"The function given for the {wish} returned {new!r:.60}.",
            "It has to return what the model goes on with: a tensor or a number.",
        )
    new = torch.as_tensor(new)
    try:
        return new.to(device=part.device, dtype=part.dtype).expand_as(part)
    except RuntimeError:
        raise ConfigError(
            f"The patch for '{wish.site}' has shape {tuple(new.shape)}, the place has {tuple(part.shape)}."
        ) from None


def check_value(site: str, value: Any) -> None:
    """Refuse what cannot take the place of a tensor.

    Raises:
        ConfigError: it is neither a function nor a tensor or number.
    """
    if not callable(value) and not _is_value(value):
        raise ConfigError(
            f"A patch for '{site}' cannot be {value!r:.60}.",
            "Give a tensor, a number, or a function from the part to its replacement.",
        )


def check_new(wish: Wish, others: Sequence[Wish]) -> None:
    """Refuse a capture whose result would take the place of another's: results are by site and layer.

    Raises:
        ConfigError: one of `others` captures there already, at other positions or in another way.
    """
    for other in others:
        is_there = wish.kind == other.kind == "capture" and (other.site, other.layer) == (wish.site, wish.layer)
        if is_there and not (same_places(other.at, wish.at) and other.settings == wish.settings):
            raise ConfigError(
                f"This session captures {wish.place} already, at other positions or in another way.",
                "Remove that capture first, or capture all positions and index the result.",
            )


def _is_value(value: Any) -> bool:
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
