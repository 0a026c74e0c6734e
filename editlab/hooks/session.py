"""Sessions: read and write a model's sites while it runs, and leave nothing behind.

1. `capture`, `patch` and `ablate` register at most one hook per side of a module; the hook serves all the
   session's wishes there in the order: captures with when="before", patches as called, captures.
2. `run` executes the model once on a `Batch` or from a `Cone`, reading logits only where asked, and stops as
   soon as nothing more is wanted.
3. Leaving the `with` block takes every hook off, whatever happened inside.

Captures are clones by default: Falcon adds into its MLP output in place, so a kept reference would be silently
wrong. Hooks go to the front of a module's list because transformers installs permanent capture hooks there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editlab.errors import ConfigError, SiteNotReached
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.attention import AttentionTap
from editlab.hooks.batch import Batch, check_length
from editlab.hooks.cone import Cone, Stop, cropped, entering_at, keeper, reading_at, until
from editlab.hooks.decoding import decoding
from editlab.hooks.kv_cache import as_argument
from editlab.hooks.mode import put_in_eval_mode
from editlab.hooks.placement import home, is_spread
from editlab.hooks.points import At, Frame, Lens, Point, attach, frame_of_call, locate, select
from editlab.hooks.routing import prompt_ends
from editlab.hooks.sampling import drawing_from
from editlab.hooks.sites import site as lookup
from editlab.hooks.stance import eager_stance
from editlab.hooks.wishes import Captured, Output, Phase, Value, Wish, grant, runs

# The model and frame of the run in progress, for sessions that are open around the one that runs.
_RUNNING: ContextVar[tuple[nn.Module, Frame] | None] = ContextVar("editlab_running", default=None)


class Session(AbstractContextManager["Session"]):
    """Hooks on `model` for the time of a `with` block.

    Args:
        model: any Hugging Face causal language model.
        adapter: its structure, from `detect`.
        lock: held while the session is open, so that two threads do not see each other's hooks.
        stamp: version number of the weights below a layer (None: of all); guards `Cone`s against use after a
            weight change.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: ModelAdapter,
        *,
        lock: AbstractContextManager[Any] | None = None,
        stamp: Callable[[int | None], int] = lambda layer: 0,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self._lock = lock
        self._stamp = stamp
        self._stack = ExitStack()
        self._wishes: list[Wish] = []
        self._hooks: dict[Point, Any] = {}
        self._block_inputs: dict[Point, int] = {}  # kept for resid_mid
        self._frame: Frame | None = None
        self._captured = Captured()
        self._stops_when_done = False
        self._is_ours = False
        self._is_open = False
        self._thread = 0
        self._tap: AttentionTap | None = None
        self._is_tapped = False

    # -- life cycle ---------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            if self._lock is not None:
                stack.enter_context(self._lock)
            stack.enter_context(eager_stance())
            self._thread = threading.get_ident()
            handle = self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_open = False
        self._stack.close()
        self._wishes.clear()
        self._hooks.clear()
        self._block_inputs.clear()
        self._tap, self._is_tapped = None, False
        self._frame = None

    # -- wishes -------------------------------------------------------------------------------------

    def capture(
        self,
        site: str,
        layers: int | Iterable[int] | None = None,
        *,
        at: At = None,
        when: Literal["before", "after"] = "after",
        grad: bool = False,
        copy: bool = True,
        device: torch.device | str | None = None,
    ) -> list[Wish]:
        """Keep what passes by a site in the next runs.

        Args:
            layers: one, several, or None for every layer (or for a site that exists once).
            at: see `points.select`; None keeps all positions.
            when: "after" the session's patches there (what the rest of the model sees) or "before" them.
            grad: keep the tensor in the autograd graph with `.grad` filled by `backward`; needs at=None.
            copy: clone (safe) or keep a reference.
            device: where to keep it; None: where it was, or the embedding's device if layers are on several.

        Raises:
            ConfigError, UnknownName, SiteUnavailable: before anything is registered.
        """
        if grad and at is not None:
            raise ConfigError("A capture with grad=True keeps the whole tensor.", "Leave `at` out and index it.")
        if device is None and is_spread(self.model):
            device = home(self.model)  # so that what layers on several devices give can be put together
        return self._add(
            Wish(
                "capture",
                site,
                layer,
                *self._where(site, layer),
                at=at,
                before=when == "before",
                grad=grad,
                copy=copy,
                device=torch.device(device) if device is not None else None,
                during="all",
            )
            for layer in self._layers(site, layers)
        )

    def patch(
        self,
        site: str,
        layer: int | None,
        value: Value,
        *,
        at: At = None,
        heads: Iterable[int] | None = None,
        during: Phase = "prefill",
    ) -> Wish:
        """Replace what passes by a site.

        Args:
            value: a tensor or number that broadcasts to the selected part, or a function from the part to its
                replacement. The part has the site's shape, with (B, T) reduced by `at` and heads by `heads`.
            during: in `generate`, the prompt ("prefill"), the new tokens ("decode"), or "all".
        """
        index = None
        if heads is not None:
            if not lookup(site).has_heads:
                raise ConfigError(f"Site '{site}' has no heads.", "Leave `heads` out.")
            index = torch.tensor(list(heads), dtype=torch.long)
            limit = self.adapter.n_kv_heads if site in ("k", "v", "k_rot") else self.adapter.n_heads
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < limit):
                raise ConfigError(f"A head in {index.tolist()} does not exist.", f"Heads go from 0 to {limit - 1}.")
        where = self._where(site, layer)
        if where[0] is None and self._attention_tap().is_read_only:
            self._attention_tap().refuse_patch(site)
        return self._add([Wish("patch", site, layer, *where, at=at, value=value, heads=index, during=during)])[0]

    def ablate(
        self,
        site: str,
        layer: int,
        *,
        with_: Literal["zero", "mean"] | Tensor = "zero",
        heads: Iterable[int] | None = None,
        at: At = None,
        during: Phase = "prefill",
    ) -> Wish:
        """Replace a site by zero, by its mean over the batch's real tokens (not just those at `at`), or by a tensor."""
        if isinstance(with_, Tensor):
            return self.patch(site, layer, with_, heads=heads, at=at, during=during)
        if with_ == "zero":
            return self.patch(site, layer, torch.zeros_like, heads=heads, at=at, during=during)
        if with_ != "mean":
            raise ConfigError(f"with_='{with_}' is not known.", "Use 'zero', 'mean' or a tensor.")

        if lookup(site).tap:
            raise ConfigError(f"Site '{site}' has no mean over tokens.", "Give a tensor.")
        wish = self.patch(site, layer, 0.0, heads=heads, at=at, during=during)
        wish.is_mean = True
        return wish

    def remove(self, wish: Wish | list[Wish]) -> None:
        """Take back what `capture`, `patch` or `ablate` returned."""
        for w in wish if isinstance(wish, list) else [wish]:
            self._wishes.remove(w)

    # -- running ------------------------------------------------------------------------------------

    def run(self, inputs: Batch | Cone, *, read: Tensor | Literal["all"] | None = "all") -> Output:
        """One forward pass.

        Args:
            inputs: a batch, or a cone that freezes everything outside it.
            read: where to take logits: "all", None (stop once every capture is there), columns (B,) or (B, n),
                or a bool mask (B, T); columns and masks are in the batch's padded frame.

        Raises:
            SiteNotReached: a capture or patch never came by. StaleState: weights that the cone rests on changed.
            RequestError: the batch is longer than the model reads.
        """
        for wish in self._wishes:
            wish.fired = 0
        self._captured = Captured()
        batch, start = inputs, 0
        past = None
        logits = None
        unembed = self.model.get_submodule(self.adapter.unembed)
        with ExitStack() as stack:
            if isinstance(inputs, Cone):
                inputs.check(self._stamp)
                batch, start = inputs.batch, inputs.cut
                past = inputs.cache() if inputs.past is not None else None
                stack.enter_context(entering_at(self.model, self.adapter, inputs.layer, inputs.resid))
            assert isinstance(batch, Batch)
            check_length(self.model, batch.width)
            lowest = inputs.layer if isinstance(inputs, Cone) else 0
            wants_logits = any(w.site == "logits" for w in self._wishes)  # all of them, whatever is read
            if read is None:
                stack.callback(self.__setattr__, "_stops_when_done", False)
                self._stops_when_done = True
                with until(nn.Identity() if wants_logits else unembed):  # an Identity of ours never runs
                    self._execute(batch, start, past, lowest)
            elif isinstance(read, Tensor):
                chosen = select(read, Frame(batch.mask, start, batch.width - start))
                assert chosen is not None
                if wants_logits:
                    logits = self._execute(batch, start, past, lowest)[chosen]
                else:
                    with reading_at(unembed, chosen):
                        logits = self._execute(batch, start, past, lowest)[0]
                    if read.dtype != torch.bool and read.dim() == 2:
                        logits = logits.unflatten(0, (batch.n_rows, -1))
            else:
                logits = self._execute(batch, start, past, lowest)
        missed = [w for w in self._wishes if not w.fired]
        if missed:
            names = ", ".join(
                f"{w.kind} of '{w.site}'" + ("" if w.layer is None else f" in layer {w.layer}") for w in missed
            )
            raise SiteNotReached(f"The forward pass never reached: {names}.", self._explain_miss(inputs))
        return Output(logits, self._captured)

    def cone(self, batch: Batch, layer: int, cut: int = 0) -> Cone:
        """Freeze what a change at `layer` and columns from `cut` on cannot alter; see `cone.Cone`.

        The session's patches are in force while the frozen state is computed.

        Raises:
            ConfigError: no such layer or column.
        """
        return self.cones(batch, [layer], cut)[layer]

    def cones(self, batch: Batch, layers: Sequence[int], cut: int = 0) -> dict[int, Cone]:
        """The cone of each of `layers`, all from one forward pass; what the session captures is captured on the way.

        Raises:
            ConfigError: no such layer or column.
        """
        return {layer: cone for (layer, _), cone in self.cones_at(batch, layers, [cut]).items()}

    def cones_at(self, batch: Batch, layers: Sequence[int], cuts: Sequence[int]) -> dict[tuple[int, int], Cone]:
        """The cones of every one of `layers` and `cuts`, by both, all from one forward pass; see `cones`."""
        blocks = {
            n: self.model.get_submodule(self.adapter.layers[self.adapter.check_layer(n)].block) for n in sorted(layers)
        }
        for cut in cuts:
            if not 0 <= cut < batch.width:
                raise ConfigError(f"Column {cut} lies outside the batch.", f"Columns go from 0 to {batch.width - 1}.")
        first = min(cuts)
        stamps = {n: (self._stamp(n), self._stamp(None)) for n in blocks}
        self._captured = Captured()
        entry: dict[int, Tensor] = {}
        past = DynamicCache() if max(cuts) else None
        with torch.no_grad(), ExitStack() as stack:
            for n, block in blocks.items():
                stack.callback(block.register_forward_pre_hook(keeper(entry, n, first), with_kwargs=True).remove)
            # Without earlier columns or captures nothing above the last block's input is needed.
            goes_on = past is not None or any(
                w.kind == "capture" and (w.layer is None or w.layer >= max(blocks)) for w in self._wishes
            )
            last = self.model.get_submodule(self.adapter.unembed) if goes_on else blocks[max(blocks)]
            with until(last):
                self._execute(batch, 0, past)
        found = {}
        for cut in cuts:
            pasts = cropped(past, list(blocks), cut) if past is not None and cut else dict.fromkeys(blocks)
            for n in blocks:
                found[n, cut] = Cone(batch, n, cut, entry[n][:, cut - first :], pasts[n], stamps[n])
        return found

    def _execute(self, batch: Batch, start: int = 0, past: DynamicCache | None = None, lowest: int = 0) -> Tensor:
        """The model on columns from `start` on, layers from `lowest` on; logits."""
        self._frame = Frame(batch.mask, start, batch.width - start, start=lowest)
        kwargs: dict[str, Any] = {"attention_mask": batch.mask, "use_cache": past is not None}
        kwargs |= as_argument(self.model, past)
        if self.adapter.takes_position_ids:
            kwargs["position_ids"] = batch.position_ids[:, start:]
        self._is_ours = True
        token = _RUNNING.set((self.model, self._frame))
        try:
            with prompt_ends(batch.ends):
                return self.model(batch.ids[:, start:], **kwargs).logits
        finally:
            _RUNNING.reset(token)
            self._is_ours = False

    def generate(
        self, batch: Batch, max_new_tokens: int = 20, *, generator: torch.Generator | None = None, **options: Any
    ) -> Tensor:
        """Greedy continuation with a KV cache, patches in force; (B, n) new token ids.

        Args:
            generator: what sampling draws from, on the model's device; default torch's own.
            options: of `model.generate`; what is not among them does nothing, whatever the checkpoint's
                `generation_config.json` says. So sampling is off unless it is asked for, and then from all tokens.

        Raises:
            RequestError: prompt and continuation are longer than the model reads. ConfigError: the options ask for
                several rows a prompt, or for more than tokens.
        """
        check_length(self.model, batch.width + max_new_tokens)
        self._captured = Captured()
        ends = torch.full((batch.n_rows,), batch.width, device=batch.ids.device)
        with decoding(self.model, {**options, "max_new_tokens": max_new_tokens}) as plain:
            turn = drawing_from(generator) if plain["generation_config"].do_sample else nullcontext()
            with torch.no_grad(), prompt_ends(ends), turn:
                out = self.model.generate(  # type: ignore[operator]
                    input_ids=batch.ids, attention_mask=batch.mask, **plain
                )
        return out[:, batch.width :]

    @property
    def captured(self) -> Captured:
        """What the latest run captured (in `generate`, the latest step)."""
        return self._captured

    # -- inside -------------------------------------------------------------------------------------

    def _layers(self, site: str, layers: int | Iterable[int] | None) -> list[int | None]:
        if not lookup(site).layered:
            return [None] if layers is None else [int(layers)]  # type: ignore[arg-type]
        if layers is None:
            return list(range(self.adapter.n_layers))
        return [layers] if isinstance(layers, int) else list(layers)

    def _where(self, site: str, layer: int | None) -> tuple[Point | None, Lens | None]:
        if lookup(site).tap:
            if layer is None:
                raise ConfigError(f"Site '{site}' exists in every layer.", "Say which layer.")
            self.adapter.check_layer(layer)
            self._attention_tap().check(site)
            return None, None
        return locate(self.adapter, site, layer)

    def _attention_tap(self) -> AttentionTap:
        if self._tap is None:
            self._tap = AttentionTap(self.model, self.adapter, self._at_attention)
        return self._tap

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigError("This session is not open.", "Use it inside its `with` block.")

    def _add(self, wishes: Iterable[Wish]) -> list[Wish]:
        self._check_open()
        wishes = list(wishes)
        for wish in wishes:
            if wish.point is None and wish.at is not None:
                raise ConfigError(f"Site '{wish.site}' takes no `at`.", "Index the tensor's query and key positions.")
        if not self._is_tapped and any(wish.point is None for wish in wishes):
            self._stack.enter_context(self._attention_tap())
            self._is_tapped = True
        for wish in wishes:
            if wish.site == "resid_mid" and wish.layer is not None:
                block_input = Point(self.adapter.layers[wish.layer].block, "in")
                self._block_inputs[block_input] = wish.layer
                self._hook(block_input)
            if wish.point is not None:
                self._hook(wish.point)
        self._wishes += wishes
        return wishes

    def _hook(self, point: Point) -> None:
        if point in self._hooks:
            return
        handle = attach(self.model.get_submodule(point.path), point, partial(self._serve, point))
        self._hooks[point] = handle
        self._stack.callback(handle.remove)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Know the frame of a forward pass that `run` did not start (`generate`, or a direct call)."""
        if threading.get_ident() != self._thread:
            return
        put_in_eval_mode(self.model)
        if self._is_ours:
            return
        running = _RUNNING.get()
        if running is not None and running[0] is self.model:
            self._frame = replace(running[1], resid_pre={})
            return
        self._frame = frame_of_call(args, kwargs)

    def _serve(self, point: Point, raw: Tensor) -> Tensor:
        frame = self._frame
        if frame is None or threading.get_ident() != self._thread:
            return raw
        flat = raw.dim() == 2  # OPT's MLP sees (B * T, features)
        x = raw.unflatten(0, (frame.n_rows, frame.width)) if flat else raw
        here = [w for w in self._wishes if w.point == point and runs(w, frame)]
        new = grant(here, x, frame, self._captured)
        if point in self._block_inputs:
            frame.resid_pre[self._block_inputs[point]] = new
        self._stop_if_done()
        if new is x:
            return raw
        return new.flatten(0, 1) if flat else new

    def _at_attention(self, layer: int, site: str, value: Tensor) -> Tensor:
        frame = self._frame
        if frame is None or threading.get_ident() != self._thread:
            return value
        here = [w for w in self._wishes if w.point is None and w.site == site and w.layer == layer]
        return grant(here, value, frame, self._captured) if here else value

    def _stop_if_done(self) -> None:
        if self._stops_when_done and self._wishes and all(w.fired for w in self._wishes):
            raise Stop

    def _explain_miss(self, inputs: Batch | Cone) -> str:
        if isinstance(inputs, Cone):
            return f"The cone starts at layer {inputs.layer}; what lies below it does not run."
        return "The model's forward took a path without that module."
