"""Sessions: read and write a model's sites while it runs, and leave nothing behind.

1. `capture`, `patch` and `ablate` say what is wanted; `dispatch` serves the wishes of all open sessions, so that a
   capture sees what the rest of the model sees, the patches of sessions around it and inside it included.
2. `run` executes the model once on a `Batch` or from a `Cone`, reading logits only where asked, and stops as
   soon as nothing more is wanted.
3. Leaving the `with` block takes every hook off, whatever happened inside.

Captures are clones by default: Falcon adds into its MLP output in place, so a kept reference would be silently
wrong. Hooks go to the front of a module's list because transformers installs permanent capture hooks there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editlab.errors import ConfigError, SiteNotReached
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.arguments import (
    check_batch,
    check_choice,
    check_column,
    check_count,
    check_device,
    check_read,
    head_index,
    layers_of,
    site_layers,
)
from editlab.hooks.batch import Batch, check_length
from editlab.hooks.cone import Cone, cropped, entering_at, keeper, lies_below, reaches_frozen, reading_at, until
from editlab.hooks.decoding import decoding
from editlab.hooks.dispatch import Dispatcher, Share, dispatcher_of
from editlab.hooks.kv_cache import as_argument
from editlab.hooks.placement import home, is_spread
from editlab.hooks.points import At, Frame, Lens, Point, locate, select
from editlab.hooks.routing import prompt_ends
from editlab.hooks.sampling import drawing_from
from editlab.hooks.sites import site as lookup
from editlab.hooks.stance import eager_stance
from editlab.hooks.wishes import Captured, Output, Phase, Value, Wish, check_new, check_value


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
        self._share = Share()
        self._dispatcher: Dispatcher | None = None  # while the session is open

    # -- life cycle ---------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        self._share = Share()
        with ExitStack() as stack:
            if self._lock is not None:
                stack.enter_context(self._lock)
            stack.enter_context(eager_stance())
            dispatcher = dispatcher_of(self.model, self.adapter)
            stack.callback(dispatcher.leave, self._share)
            dispatcher.join(self._share)
            self._stack = stack.pop_all()
        self._dispatcher = dispatcher
        return self

    def __exit__(self, *exc: object) -> None:
        self._dispatcher = None
        self._stack.close()

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
            ConfigError, UnknownName, SiteUnavailable: before anything is registered, also where the session captures
                the same site of the same layer already.
        """
        check_choice("when", when, ("before", "after"))
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
                device=check_device(device),
                during="all",
            )
            for layer in site_layers(self.adapter, site, layers)
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
        check_choice("during", during, get_args(Phase))
        index = None if heads is None else head_index(self.adapter, site, heads)
        check_value(site, value)
        where = self._where(site, layer)
        if where[0] is None:
            self._check_open().tap.check_write(site, self.adapter.check_layer(layer))
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
        check_choice("with_", with_, ("zero", "mean"), "a tensor")
        if with_ == "zero":
            return self.patch(site, layer, torch.zeros_like, heads=heads, at=at, during=during)
        if lookup(site).tap:
            raise ConfigError(f"Site '{site}' has no mean over tokens.", "Give a tensor.")
        wish = self.patch(site, layer, 0.0, heads=heads, at=at, during=during)
        wish.is_mean = True
        return wish

    def remove(self, wish: Wish | list[Wish]) -> None:
        """Take back what `capture`, `patch` or `ablate` returned.

        Raises:
            ConfigError: that is no wish of this session, or it has been taken back.
        """
        for w in wish if isinstance(wish, list | tuple) else [wish]:
            if w not in self._share.wishes:
                fix = "Give what its own `capture`, `patch` or `ablate` returned, once."
                raise ConfigError("What is to be removed is not in force in this session.", fix)
            self._share.wishes.remove(w)

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
        dispatcher = self._check_open()
        check_batch(inputs, Batch, Cone)
        check_read(read)
        for wish in self._share.wishes:
            wish.fired = 0
        self._share.captured = Captured()
        batch: Batch = inputs.batch if isinstance(inputs, Cone) else inputs
        check_length(self.model, batch.width)
        frame, past, logits = Frame(batch.mask, 0, batch.width), None, None
        unembed = self.model.get_submodule(self.adapter.unembed)
        with ExitStack() as stack:
            if isinstance(inputs, Cone):
                inputs.check(self._stamp, dispatcher.patches())
                frame = inputs.frame
                past = inputs.cache() if inputs.past is not None else None
                stack.enter_context(entering_at(self.model, self.adapter, inputs.layer, inputs.resid))
            wants_logits = any(w.site == "logits" for w in self._share.wishes)  # all of them, whatever is read
            if read is None:
                with until(nn.Identity() if wants_logits else unembed):  # an Identity of ours never runs
                    self._execute(batch, frame, past, stops_when_done=True)
            elif isinstance(read, Tensor):
                chosen = select(read, frame)
                assert chosen is not None
                if wants_logits:
                    logits = self._execute(batch, frame, past)[chosen]
                else:
                    with reading_at(unembed, chosen):
                        logits = self._execute(batch, frame, past)[0]
                    if read.dtype != torch.bool and read.dim() == 2:
                        logits = logits.unflatten(0, (batch.n_rows, -1))
            else:
                logits = self._execute(batch, frame, past)
        missed = [w for w in self._share.wishes if not w.fired and w not in frame.frozen]
        if missed:
            why = "The model's forward took a path without that module."
            if isinstance(inputs, Cone):
                why = f"The cone starts at layer {inputs.layer}; what lies below it does not run."
            raise SiteNotReached(f"The forward pass never reached: {', '.join(map(str, missed))}.", why)
        # A copy, since forward passes of other sessions that come later are captured too.
        return Output(logits, Captured(self._share.captured.tensors))

    def cone(self, batch: Batch, layer: int, cut: int = 0) -> Cone:
        """Freeze what a change at `layer` and columns from `cut` on cannot alter; see `cone.Cone`.

        Patches that are in force while the frozen state is computed must be in force when it is run.

        Raises:
            ConfigError: no such layer or column.
        """
        return next(iter(self.cones(batch, [layer], cut).values()))

    def cones(self, batch: Batch, layers: Sequence[int], cut: int = 0) -> dict[int, Cone]:
        """The cone of each of `layers`, all from one forward pass; what the session captures is captured on the way.

        Raises:
            ConfigError: no such layer or column.
        """
        return {layer: cone for (layer, _), cone in self.cones_at(batch, layers, [cut]).items()}

    def cones_at(
        self, batch: Batch, layers: Sequence[int], cuts: Sequence[int], *, of_patched: bool = False
    ) -> dict[tuple[int, int], Cone]:
        """The cones of every one of `layers` and `cuts`, by both, all from one forward pass; see `cones`.

        Args:
            of_patched: the frozen state is meant to be that of this session's patched run, also after the patches
                are gone (causal tracing restores states in a corrupted run). Patches of other sessions still count.
        """
        dispatcher = self._check_open()
        check_batch(batch, Batch)
        blocks = {
            n: self.model.get_submodule(self.adapter.layers[n].block) for n in sorted(layers_of(self.adapter, layers))
        }
        cuts = [check_column(cut, batch.width) for cut in cuts]
        if not blocks or not cuts:
            raise ConfigError("A cone needs a layer and a column.", "Name at least one of each.")
        first = min(cuts)
        in_force = [w for w in dispatcher.patches() if not (of_patched and w in self._share.wishes)]
        stamps = {n: (self._stamp(n), self._stamp(None)) for n in blocks}
        self._share.captured = Captured()
        entry: dict[int, Tensor] = {}
        past = DynamicCache() if max(cuts) else None
        with torch.no_grad(), ExitStack() as stack:
            for n, block in blocks.items():
                # In front of the session's hooks: patches of what enters the block are served again in each run.
                keep = block.register_forward_pre_hook(keeper(entry, n, first), with_kwargs=True, prepend=True)
                stack.callback(keep.remove)
            # Without earlier columns or captures nothing above the last block's input is needed.
            goes_on = past is not None or any(
                w.kind == "capture" and (w.layer is None or w.layer >= max(blocks)) for w in self._share.wishes
            )
            last = self.model.get_submodule(self.adapter.unembed) if goes_on else blocks[max(blocks)]
            frame = Frame(batch.mask, 0, batch.width)
            with until(last):
                self._execute(batch, frame, past)
        found = {}
        for cut in cuts:
            pasts = cropped(past, list(blocks), cut) if past is not None and cut else dict.fromkeys(blocks)
            for n in blocks:
                held = tuple(w for w in in_force if lies_below(w, n) or (cut and reaches_frozen(w, cut, frame)))
                found[n, cut] = Cone(batch, n, cut, entry[n][:, cut - first :], pasts[n], stamps[n], held)
        return found

    def _execute(
        self, batch: Batch, frame: Frame, past: DynamicCache | None = None, *, stops_when_done: bool = False
    ) -> Tensor:
        """The model on the frame's columns and layers; logits."""
        kwargs: dict[str, Any] = {"attention_mask": batch.mask, "use_cache": past is not None}
        kwargs |= as_argument(self.model, past)
        if self.adapter.takes_position_ids:
            kwargs["position_ids"] = batch.position_ids[:, frame.offset :]
        passing = self._check_open().passing(frame, ends_with=self._share if stops_when_done else None)
        with passing, prompt_ends(batch.ends):
            return self.model(batch.ids[:, frame.offset :], **kwargs).logits

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
        self._check_open()
        check_batch(batch, Batch)
        check_length(self.model, batch.width + check_count("max_new_tokens", max_new_tokens))
        self._share.captured = Captured()
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
        return self._share.captured

    # -- inside -------------------------------------------------------------------------------------

    def _where(self, site: str, layer: int | None) -> tuple[Point | None, Lens | None]:
        if not lookup(site).tap:
            return locate(self.adapter, site, layer)
        if layer is None:
            raise ConfigError(f"Site '{site}' exists in every layer.", "Say which layer.")
        self._check_open().tap.check(site, self.adapter.check_layer(layer))
        return None, None

    def _check_open(self) -> Dispatcher:
        if self._dispatcher is None:
            raise ConfigError("This session is not open.", "Use it inside its `with` block.")
        return self._dispatcher

    def _add(self, wishes: Iterable[Wish]) -> list[Wish]:
        dispatcher = self._check_open()
        wishes = list(wishes)
        for wish in wishes:
            if wish.point is None and wish.at is not None:
                raise ConfigError(f"Site '{wish.site}' takes no `at`.", "Index the tensor's query and key positions.")
            check_new(wish, self._share.wishes)
        if any(wish.point is None for wish in wishes):
            dispatcher.open_tap(self._share)
        for wish in wishes:
            if wish.site == "resid_mid" and wish.layer is not None:
                block = Point(self.adapter.layers[wish.layer].block, "in")
                dispatcher.keep_block_input(self._share, block, wish.layer)
            if wish.point is not None:
                dispatcher.hook(self._share, wish.point)
        self._share.wishes += wishes
        return wishes
