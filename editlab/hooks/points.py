"""From a site's name to the module where it passes by, and the view of the tensor that is meant there.

A `Point` is one side of one module. A `Lens` turns the raw tensor at that point into the site's shape and a
new value of the site back into the raw tensor. A `Frame` says which rows and columns the running forward computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from editlab.errors import ConfigError, SiteUnavailable
from editlab.hooks.adapter import HeadLayout, ModelAdapter
from editlab.hooks.kv_cache import cache_given
from editlab.hooks.sites import site as lookup


@dataclass(frozen=True)
class Point:
    """The input or output of the module at `path` ("" is the model itself)."""

    path: str
    side: Literal["in", "out"]


@dataclass
class Frame:
    """What the forward pass that is running looks like.

    Attributes:
        mask: (B, S) real tokens among all columns seen so far, those of a KV cache included.
        offset: the column at which this forward's own tokens start.
        width: how many columns this forward computes.
        start: the first layer that runs; what lies below it is frozen.
        frozen: patches that were in force when what lies outside this forward was computed, by identity.
        resid_pre: block inputs kept for `resid_mid`, by layer.
    """

    mask: Tensor
    offset: int
    width: int
    is_decode: bool = False
    start: int = 0
    frozen: Collection[Any] = ()
    resid_pre: dict[int, Tensor] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return self.mask.shape[0]


class Lens(Protocol):
    def read(self, raw: Tensor, frame: Frame) -> Tensor: ...
    def write(self, raw: Tensor, value: Tensor, frame: Frame) -> Tensor: ...


class Whole:
    """The site is the raw tensor."""

    def read(self, raw: Tensor, frame: Frame) -> Tensor:
        return raw

    def write(self, raw: Tensor, value: Tensor, frame: Frame) -> Tensor:
        return value


@dataclass(frozen=True)
class Heads:
    """The raw last dimension split evenly into heads."""

    n_heads: int

    def read(self, raw: Tensor, frame: Frame) -> Tensor:
        return raw.unflatten(-1, (self.n_heads, -1))

    def write(self, raw: Tensor, value: Tensor, frame: Frame) -> Tensor:
        return value.flatten(-2)


@dataclass(frozen=True)
class Features:
    """Chosen features of a fused projection, arranged by head."""

    layout: HeadLayout

    def read(self, raw: Tensor, frame: Frame) -> Tensor:
        return raw[..., self.layout.index(raw.device)]

    def write(self, raw: Tensor, value: Tensor, frame: Frame) -> Tensor:
        raw = raw.clone()
        raw[..., self.layout.index(raw.device).flatten()] = value.flatten(-2)
        return raw


@dataclass(frozen=True)
class AfterAttention:
    """`resid_mid`, seen from the attention's contribution.

    The stream itself passes by no module after the addition: patching the next norm's input would never reach
    the skip path. So the value is read as resid_pre + attn_out, and written as attn_out := value - resid_pre.
    """

    layer: int

    def read(self, raw: Tensor, frame: Frame) -> Tensor:
        return frame.resid_pre[self.layer] + raw

    def write(self, raw: Tensor, value: Tensor, frame: Frame) -> Tensor:
        return value - frame.resid_pre[self.layer]


def locate(adapter: ModelAdapter, name: str, layer: int | None) -> tuple[Point, Lens]:
    """The point and lens of a site.

    Raises:
        UnknownName: no such site. ConfigError: a layer is missing, superfluous or out of range.
        SiteUnavailable: the architecture has no such place.
    """
    spec = lookup(name)
    if not spec.layered:
        if layer is not None:
            raise ConfigError(f"Site '{name}' exists once, not per layer.", "Leave the layer out.")
        path = {"embed": adapter.embed, "final": adapter.final_norm, "logits": ""}[name]
        return Point(path, "out"), Whole()
    if layer is None:
        raise ConfigError(f"Site '{name}' exists in every layer.", "Say which layer.")
    paths = adapter.layers[adapter.check_layer(layer)]
    if name == "resid_mid" and adapter.is_parallel:
        raise SiteUnavailable(
            f"No site 'resid_mid' in {adapter.family}: attention and MLP run in parallel.",
            "Use 'attn_out' or 'resid_post'.",
        )
    if name in ("q", "k", "v"):
        layout: HeadLayout | None = getattr(paths, name)
        if layout is None:
            raise SiteUnavailable(
                f"No site '{name}' in {adapter.family}: its fused projection's layout was not recognised.",
                "Use 'z' or 'attn_out'.",
            )
        lens: Lens = Heads(layout.n_heads) if layout.is_plain else Features(layout)
        return Point(layout.path, "out"), lens
    if name == "z":
        adapter.need_heads(layer)
    table: dict[str, tuple[str, Literal["in", "out"], Lens]] = {
        "resid_pre": (paths.block, "in", Whole()),
        "resid_post": (paths.block, "out", Whole()),
        "attn_in": (paths.attn_first, "in", Whole()),
        "z": (paths.o, "in", Heads(adapter.n_heads)),
        "attn_raw": (paths.o, "out", Whole()),
        "attn_out": (paths.attn_out, "out", Whole()),
        "resid_mid": (paths.attn_out, "out", AfterAttention(layer)),
        "mlp_in": (paths.mlp_first, "in", Whole()),
        "mlp_key": (paths.down, "in", Whole()),
        "mlp_value": (paths.down, "out", Whole()),
        "mlp_out": (paths.mlp_out, "out", Whole()),
    }
    path, side, lens = table[name]
    return Point(path, side), lens


At = int | slice | Tensor | list[int] | None


def select(at: At, frame: Frame) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of the running forward that `at` means, ready for `x[rows, cols]`; None means all.

    Args:
        at: an int counts a row's real tokens (negative from their end); a slice likewise; a (B,) or (B, n)
            integer tensor gives padded-frame columns; a (B, S) bool tensor marks tokens.

    Raises:
        ConfigError: a position lies outside the row, or outside the part that this forward computes.
    """
    if at is None:
        return None
    device = frame.mask.device
    if frame.is_decode:
        if isinstance(at, int) and at == -1:
            return torch.arange(frame.n_rows, device=device), torch.full(
                (frame.n_rows,), frame.width - 1, device=device
            )
        raise ConfigError(
            "While decoding there is one new token, and `at` names others.",
            "Use at=None or at=-1, or run the prompt alone.",
        )
    rows, cols = _columns(at, frame)
    cols = cols - frame.offset
    if cols.numel() and (int(cols.min()) < 0 or int(cols.max()) >= frame.width):
        raise ConfigError(
            "A position lies outside what this forward computes.",
            f"Columns {frame.offset} to {frame.offset + frame.width - 1} are inside.",
        )
    return rows, cols


def _columns(at: int | slice | Tensor | list[int], frame: Frame) -> tuple[Tensor, Tensor]:
    """Rows and columns of the padded frame; see `select`."""
    mask, device = frame.mask, frame.mask.device
    first, lengths = mask.argmax(-1), mask.sum(-1)
    rows = torch.arange(frame.n_rows, device=device)
    if isinstance(at, int):
        inside = (lengths > at) if at >= 0 else (lengths >= -at)
        if not bool(inside.all()):
            raise ConfigError(
                f"Position {at} lies outside the shortest text ({int(lengths.min())} tokens).",
                "Use a position that every text has, or a bool mask.",
            )
        cols = first + at + (0 if at >= 0 else lengths)
    elif isinstance(at, slice):
        wanted = [list(range(*at.indices(int(n)))) for n in lengths]
        if len({len(w) for w in wanted}) != 1:
            raise ConfigError(
                f"{at} selects different numbers of tokens in different rows.", "Use a bool mask instead."
            )
        cols = first[:, None] + torch.tensor(wanted, device=device)
    else:
        try:
            at = torch.as_tensor(at, device=device)
        except (TypeError, ValueError, RuntimeError):
            at = torch.tensor(float("nan"))
        if at.is_floating_point() or at.is_complex():
            raise ConfigError(
                "Positions are whole numbers.", "Give an int, a slice, columns as integers, or a bool mask."
            )
        if at.dim() == 0:
            raise ConfigError("A tensor of positions needs one entry per row.", "Use an int for all rows.")
        if at.dtype == torch.bool:
            if at.shape != mask.shape:
                raise ConfigError(
                    f"The mask has shape {tuple(at.shape)}, the batch {tuple(mask.shape)}.",
                    "Mark tokens in the batch's padded frame.",
                )
            rows, cols = at.nonzero(as_tuple=True)
        else:
            if at.shape[:1] != rows.shape:
                raise ConfigError(
                    f"{at.shape[0]} positions were given for {len(rows)} rows.", "Give one entry per row, or an int."
                )
            cols = at
    return (rows[:, None] if cols.dim() == 2 else rows), cols


def lies_before(at: At, frame: Frame) -> bool:
    """Whether all positions that `at` means are columns before those that the running forward computes."""
    if at is None or frame.is_decode or not frame.offset:
        return False
    columns = _columns(at, frame)[1]
    return bool((columns < frame.offset).all())


def same_places(a: At, b: At) -> bool:
    """Whether two captures are of the same positions, as far as can be told without a batch."""
    if isinstance(a, Tensor | list) and isinstance(b, Tensor | list):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    return type(a) is type(b) and not isinstance(a, Tensor) and a == b


def frame_of_call(args: Any, kwargs: Any) -> Frame:
    """The frame of a forward pass from the arguments that the model was called with."""
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None:
        ids = kwargs["inputs_embeds"][..., 0]
    past = cache_given(kwargs)
    offset = past.get_seq_length() if past is not None else 0
    mask = kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        mask = torch.ones(ids.shape[0], offset + ids.shape[1], dtype=torch.long, device=ids.device)
    return Frame(mask, offset, ids.shape[1], is_decode=offset > 0)


def attach(module: nn.Module, point: Point, serve: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """A hook that puts what `serve` gives in place of the tensor passing by `point`, a side of `module`."""

    def at_input(m: nn.Module, args: Any, kwargs: Any) -> Any:
        name = None
        if args and isinstance(args[0], Tensor):
            raw = args[0]
        else:
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            raw = kwargs[name]
        new = serve(raw)
        if new is raw:
            return None
        return (args, {**kwargs, name: new}) if name else ((new, *args[1:]), kwargs)

    def at_output(m: nn.Module, args: Any, output: Any) -> Any:
        if point.path == "":
            new = serve(output.logits)
            if new is not output.logits:
                output.logits = new
            return output
        raw = output[0] if isinstance(output, tuple) else output
        new = serve(raw)
        if new is raw:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if point.side == "in":
        return module.register_forward_pre_hook(at_input, with_kwargs=True, prepend=True)
    return module.register_forward_hook(at_output, prepend=True)
