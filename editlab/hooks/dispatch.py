"""Every open session of a model on one forward pass: one hook per side of a module, served for all of them in order.

Sessions may be nested. What passes by a point goes through

1. the outer session: captures with when="before", then its patches in the order of their calls;
2. the next inner one likewise, on what the outer one left;
3. captures of every session, which see what the rest of the model sees.

Were each session to bring hooks of its own, an inner capture would see the value from before the outer patch, or the
outer one that from before the inner patch, by which hook happens to stand first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.attention import AttentionTap
from editlab.hooks.cone import Stop
from editlab.hooks.mode import put_in_eval_mode
from editlab.hooks.points import Frame, Point, attach, frame_of_call
from editlab.hooks.wishes import Captured, Wish, grant, runs


@dataclass(eq=False)
class Share:
    """What one open session wants and got."""

    wishes: list[Wish] = field(default_factory=list)
    captured: Captured = field(default_factory=Captured)


@dataclass(eq=False)
class _Pass:
    """A forward pass under way: its frame, and the session that wants no more of it than its captures."""

    frame: Frame
    ends_with: Share | None = None


class Dispatcher:
    """The hooks on one model in one thread, for the sessions that are open there."""

    def __init__(self, model: nn.Module, adapter: ModelAdapter) -> None:
        self.model = model
        self._adapter = adapter
        self._thread = threading.get_ident()
        self._shares: list[Share] = []  # the outermost session first
        self._hooks: dict[Point, tuple[RemovableHandle, set[Share]]] = {}
        self._tapped: set[Share] = set()
        self._block_inputs: dict[Point, int] = {}  # kept for resid_mid
        self._passes: list[_Pass] = []  # the innermost last
        self._next: _Pass | None = None  # what the next call of the model is
        self._root: list[RemovableHandle] = []

    @cached_property
    def tap(self) -> AttentionTap:
        """What reaches into the attention function; not opened by asking for it."""
        return AttentionTap(self.model, self._adapter, self._at_attention)

    # -- sessions -----------------------------------------------------------------------------------

    def join(self, share: Share) -> None:
        """Serve `share` until it leaves."""
        self._shares.append(share)
        if not self._root:
            self._root = [
                self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True),
                self.model.register_forward_hook(self._end, always_call=True),
            ]

    def leave(self, share: Share) -> None:
        """Take off what only `share` needed."""
        self._shares.remove(share)
        for point, (handle, users) in list(self._hooks.items()):
            users.discard(share)
            if not users:
                handle.remove()
                del self._hooks[point]
                self._block_inputs.pop(point, None)
        if share in self._tapped:
            self._tapped.remove(share)
            if not self._tapped:
                self.tap.__exit__(None, None, None)
        if not self._shares:
            for handle in self._root:
                handle.remove()
            self._root = []
            _OPEN.dispatchers.pop(self.model, None)

    def hook(self, share: Share, point: Point) -> None:
        """Have `share` served at `point`."""
        if point not in self._hooks:
            handle = attach(self.model.get_submodule(point.path), point, partial(self._serve, point))
            self._hooks[point] = handle, set()
        self._hooks[point][1].add(share)

    def keep_block_input(self, share: Share, block: Point, layer: int) -> None:
        """Have what enters a block at hand for `resid_mid`."""
        self._block_inputs[block] = layer
        self.hook(share, block)

    def open_tap(self, share: Share) -> None:
        """Have `share` served inside the attention function."""
        if not self._tapped:
            self.tap.__enter__()
        self._tapped.add(share)

    def patches(self) -> list[Wish]:
        """The patches of all open sessions that act in a run."""
        return [w for share in self._shares for w in share.wishes if w.kind == "patch" and w.during != "decode"]

    # -- passes -------------------------------------------------------------------------------------

    @contextmanager
    def passing(self, frame: Frame, *, ends_with: Share | None = None) -> Iterator[None]:
        """While open, the next call of the model, or calls of single modules of it, have this frame.

        Args:
            ends_with: stop as soon as everything that this session wants has come by.
        """
        before, waiting = list(self._passes), self._next
        self._next = _Pass(frame, ends_with)
        self._passes.append(self._next)
        try:
            yield
        finally:
            self._passes, self._next = before, waiting

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._thread:
            put_in_eval_mode(self.model)
            self._passes.append(self._next or _Pass(frame_of_call(args, kwargs)))
            self._next = None

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._passes:
            self._passes.pop()

    # -- serving ------------------------------------------------------------------------------------

    def _serve(self, point: Point, raw: Tensor) -> Tensor:
        if threading.get_ident() != self._thread or not self._passes:
            return raw
        frame = self._passes[-1].frame
        flat = raw.dim() == 2  # OPT's MLP sees (B * T, features)
        x = raw.unflatten(0, (frame.n_rows, frame.width)) if flat else raw
        new = self._grant(lambda w: w.point == point and runs(w, frame), x, frame)
        if point in self._block_inputs:
            frame.resid_pre[self._block_inputs[point]] = new
        self._stop_if_done()
        if new is x:
            return raw
        return new.flatten(0, 1) if flat else new

    def _at_attention(self, layer: int, site: str, value: Tensor) -> Tensor:
        if threading.get_ident() != self._thread or not self._passes:
            return value
        frame = self._passes[-1].frame
        return self._grant(lambda w: w.point is None and w.site == site and w.layer == layer, value, frame)

    def _grant(self, is_here: Callable[[Wish], bool], x: Tensor, frame: Frame) -> Tensor:
        here = [([w for w in share.wishes if is_here(w)], share.captured) for share in self._shares]
        return grant([(wishes, into) for wishes, into in here if wishes], x, frame)

    def _stop_if_done(self) -> None:
        share = self._passes[-1].ends_with
        if share is not None and share.wishes and all(w.fired for w in share.wishes):
            raise Stop


class _Open(threading.local):
    def __init__(self) -> None:
        self.dispatchers: WeakKeyDictionary[nn.Module, Dispatcher] = WeakKeyDictionary()


_OPEN = _Open()


def dispatcher_of(model: nn.Module, adapter: ModelAdapter) -> Dispatcher:
    """The dispatcher of a model in this thread, a new one where no session is open."""
    if model not in _OPEN.dispatchers:
        _OPEN.dispatchers[model] = Dispatcher(model, adapter)
    return _OPEN.dispatchers[model]


@contextmanager
def passing(model: nn.Module, frame: Frame) -> Iterator[None]:
    """`Dispatcher.passing` for whatever sessions are open on `model`; nothing without any."""
    open_here = _OPEN.dispatchers.get(model)
    if open_here is None:
        yield
        return
    with open_here.passing(frame):
        yield


def patches_in_force(model: nn.Module) -> list[Wish]:
    """The patches of all sessions that are open on `model` in this thread."""
    open_here = _OPEN.dispatchers.get(model)
    return [] if open_here is None else open_here.patches()
