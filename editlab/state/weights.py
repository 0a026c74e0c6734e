"""Views: edited copies of a model that share every tensor with an untouched base.

A view is a deep copy of the module tree in which every parameter and buffer is the base's own object, so
it costs about a megabyte. The rules, in order:

1. The first edit of a parameter gives the view its own copy, once, and puts it in every place that held the
   shared one: ties inside the view, and the trees made from it (nnsight, TransformerLens).
2. Later edits change that copy in place, so whoever holds it sees them at once.
3. Undoing the last edit of a parameter puts the base's own object back in the same places.
4. The base is never written. A view whose parameters all equal the base shares all of them.

Weights are identified by content: SHA-256 per tensor, and over the sorted (name, hash) pairs. Tensor hashes
are computed when asked for, cached, and only edited tensors are hashed again.

Replacing weights for one call (`torch.func.functional_call`) was measured to disturb concurrent forwards of
the base; views do not.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import logging
import math
import os
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from editlab.errors import EditFailed, EditlabError, UnknownName
from editlab.hooks.routing import Routes

log = logging.getLogger(__name__)

OnChange = Callable[[tuple[str, ...]], None]

# Libraries whose hooks belong to the model: transformers installs capture hooks for good on the first
# `output_hidden_states=True`, accelerate moves weights, torch implements weight normalisation.
_PERMANENT_HOOKS = ("transformers", "accelerate", "torch")
_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


# --- the shared-tensor copy ---------------------------------------------------------------------------


def structural_clone(model: nn.Module) -> nn.Module:
    """Copy the module tree and the config, and share every parameter and buffer.

    Ties stay ties. Weights that accelerate keeps off the device stay shared too.

    Raises:
        EditlabError: the tree carries hooks or replaced `forward`s of an open session or of a wrapper;
            the copy would carry them too, or run the original's modules.
    """
    for name, module in model.named_modules():
        _refuse_foreign_hooks(name or type(model).__name__, module)
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    for module in model.modules():
        for weights in _offload_maps(module):
            memo[id(weights)] = weights
    return copy.deepcopy(model, memo)


def _refuse_foreign_hooks(name: str, module: nn.Module) -> None:
    for slot in _HOOK_DICTS:
        for hook in getattr(module, slot, {}).values():
            hook = hook.func if isinstance(hook, functools.partial) else hook
            owner = str(getattr(hook, "__module__", None) or type(hook).__module__)
            if owner.split(".")[0] not in _PERMANENT_HOOKS:
                raise EditlabError(
                    f"Cannot make a view while '{name}' carries a hook of {owner}: the copy would too.",
                    "Close the open session or remove the hook, then try again.",
                )
    forward = vars(module).get("forward")
    is_ours = isinstance(forward, types.MethodType) and forward.__self__ is module
    is_accelerate = isinstance(forward, functools.partial) and forward.func.__module__.startswith("accelerate.")
    if forward is not None and not (is_ours or is_accelerate):
        raise EditlabError(
            f"Cannot make a view: '{name}' has a replaced forward (a session, torch.compile, nnsight).",
            "Close the session, or hand in the model as it was before it was wrapped.",
        )


def _offload_maps(module: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The mappings from which accelerate loads this module's offloaded weights."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            yield weights


# --- content hashes -----------------------------------------------------------------------------------


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content (row-major); a contiguous CPU tensor is not copied.

    Raises:
        EditlabError: the tensor has no data here (meta), or is not a plain strided tensor.
    """
    t = tensor.detach()
    if t.device.type == "meta":
        raise EditlabError("A tensor on the meta device has no content to hash.", "Load the model without offloading.")
    if t.layout != torch.strided or t.is_quantized:
        raise EditlabError(
            f"Cannot hash a {t.layout} tensor of dtype {t.dtype}.", "Load the model without quantisation."
        )
    digest = hashlib.sha256(f"{t.dtype}{tuple(t.shape)}".encode())
    if t.numel():
        flat = t.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over (name, tensor hash) pairs in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{len(name)}:{name}={hashes[name]}\n".encode())
    return digest.hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of a set of named tensors; equal only if names, dtypes, shapes and bits are."""
    return Fingerprint({name: t.detach for name, t in tensors.items()}).root()


class Fingerprint:
    """Content hashes of a fixed set of named tensors, computed when asked for and kept.

    Args:
        sources: for each name, a function that returns the tensor. A function, because weights that
            accelerate keeps on disk exist only while they are read.
        aliases: further names of tied tensors, and the name each stands for. They enter the hash of the set,
            so that it does not depend on whether equal weights are one object (offloading unties them).
    """

    def __init__(self, sources: Mapping[str, Callable[[], Tensor]], aliases: Mapping[str, str] | None = None) -> None:
        self._sources = dict(sources)
        self._aliases = dict(aliases or {})
        self._known: dict[str, str] = {}

    def sha256(self, name: str) -> str:
        """The hash of one tensor."""
        if name not in self._known:
            try:
                self._known[name] = tensor_sha256(self._sources[name]())
            except EditlabError as error:
                raise EditlabError(f"Cannot identify the weight '{name}'. {error.what}", error.fix) from None
        return self._known[name]

    def root(self, replaced: Mapping[str, str] | None = None) -> str:
        """The hash of the whole set, with the tensor hashes in `replaced` in place of the stored ones."""
        replaced = replaced or {}
        wanted = [name for name in self._sources if name not in replaced]
        missing = [name for name in wanted if name not in self._known]
        if missing:
            # hashlib releases the GIL, so threads help; a few saturate memory bandwidth.
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                list(pool.map(self.sha256, missing))
        hashes = {**{name: self._known[name] for name in wanted}, **replaced}
        return combine_hashes({**hashes, **{a: hashes[name] for a, name in self._aliases.items()}})


def _weight_sources(base: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Everything that decides what the model computes: parameters (ties once) and persistent buffers."""
    tensors: dict[str, Tensor] = dict(base.named_parameters())
    for prefix, module in base.named_modules():
        for local, buffer in module._buffers.items():
            if buffer is not None and local not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{local}".lstrip(".")] = buffer
    sources: dict[str, Callable[[], Tensor]] = {name: t.detach for name, t in tensors.items()}
    for name, t in tensors.items():
        if t.device.type == "meta":
            sources[name] = functools.partial(_read_offloaded, base, name)
    return sources


def _read_offloaded(base: nn.Module, name: str) -> Tensor:
    """The content of a weight that accelerate keeps in memory or on disk; the meta tensor if it has none."""
    for prefix, module in base.named_modules():
        local = name.removeprefix(f"{prefix}.") if prefix else name
        if prefix and local == name:
            continue
        for weights in _offload_maps(module):
            if local in weights:
                return weights[local]
    return torch.empty(0, device="meta")


# --- rebinding ----------------------------------------------------------------------------------------


class _Swap:
    """Replace one parameter object by another, wherever a module holds it or a view of its memory.

    TransformerLens keeps norm weights as plain attributes, and splits GPT-2's fused q, k and v into
    parameters that are views of the fused one; both must follow.
    """

    def __init__(self, old: nn.Parameter, new: nn.Parameter) -> None:
        self.old, self.new = old, new
        self.storage = old.untyped_storage().data_ptr()
        self.start, self.stop = _extent(old)

    def replacement(self, held: Tensor) -> Tensor | None:
        """What should stand where `held` stands, or None when it is unrelated to `old`."""
        if held is self.old:
            return self.new
        if not self.storage or held.device != self.old.device or held.dtype != self.old.dtype:
            return None
        if held.untyped_storage().data_ptr() != self.storage:
            return None
        start, stop = _extent(held)
        if not self.start <= start < stop <= self.stop:
            return None  # many parameters may live in one storage; this is a neighbour
        offset = self.new.storage_offset() + start - self.start
        view = self.new.detach().as_strided(held.shape, held.stride(), offset)
        return nn.Parameter(view, held.requires_grad) if isinstance(held, nn.Parameter) else view


def _extent(t: Tensor) -> tuple[int, int]:
    """First element and one past the last one, in the tensor's storage."""
    start = int(t.storage_offset())
    if t.numel() == 0:
        return start, start
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return start, start + int(reach) + 1


def _rebind(roots: Iterable[nn.Module], swaps: list[_Swap], keep: set[int]) -> None:
    """Carry out `swaps` in every tree. Tensors whose id is in `keep` are other parameters: left alone."""
    exact = {id(swap.old): swap for swap in swaps}
    for root in roots:
        for module in root.modules():
            places: tuple[dict[str, Any], ...] = (module._parameters, vars(module))
            for slots in places:
                for key, held in slots.items():
                    if not isinstance(held, Tensor) or held.layout != torch.strided:
                        continue
                    if id(held) in exact:
                        slots[key] = exact[id(held)].new
                    elif id(held) not in keep:
                        found = (swap.replacement(held) for swap in swaps)
                        slots[key] = next((t for t in found if t is not None), held)


def _own_copy(base: nn.Parameter, value: Tensor) -> nn.Parameter:
    fresh = torch.empty_like(base)  # keeps the strides, which views of the parameter rely on
    fresh.copy_(value)
    own = nn.Parameter(fresh, base.requires_grad)
    vars(own).update(vars(base))  # marks such as _is_hf_initialized
    return own


# --- the view -----------------------------------------------------------------------------------------


class WeightView:
    """An edited copy of a model that shares every unedited tensor with its base.

    >>> view = WeightView(model)
    >>> view.write("transformer.h.0.mlp.c_proj.weight", new)   # only view.model changes
    >>> view.write("transformer.h.0.mlp.c_proj.weight", None)  # the base's own tensor is back

    Args:
        base: the model to share. It must stay as it is while views of it exist.

    Attributes:
        model: the edited module tree.
        routes: side memories that change the output of some of its modules; not part of any weight.
        version: goes up by one at each write.
        on_change: called after each write with the names that changed. An exception in a callback is
            logged, since the weights have changed already.
        lock: held during writes; hold it to read several tensors of one state.

    Raises:
        EditlabError: the base carries foreign hooks (see `structural_clone`).
    """

    def __init__(self, base: nn.Module) -> None:
        self._base_model = base
        self.model = structural_clone(base)
        self._base: dict[str, nn.Parameter] = dict(base.named_parameters())
        first = {id(p): name for name, p in self._base.items()}
        self._canonical = {n: first[id(p)] for n, p in base.named_parameters(remove_duplicate=False)}
        self._own: dict[str, nn.Parameter] = {}
        self._own_hashes: dict[str, str] = {}
        self.routes = Routes(self.model)
        self._roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        ties = {alias: name for alias, name in self._canonical.items() if alias != name}
        self._fingerprint = Fingerprint(_weight_sources(base), ties)
        self.version = 0
        self.on_change: list[OnChange] = []
        self.lock = threading.RLock()

    # names and tensors

    def names(self) -> list[str]:
        """Parameter names in model order; tied parameters once, under their first name."""
        return list(self._base)

    def resolve(self, name: str) -> str:
        """The first name of a parameter that may be given by a tied name.

        Raises:
            UnknownName: the model has no such parameter.
        """
        if name not in self._canonical:
            close = difflib.get_close_matches(name, list(self._canonical), n=3)
            hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
            raise UnknownName(f"The model has no parameter '{name}'.", f"{hint}See names() for all.")
        return self._canonical[name]

    def base(self, name: str) -> nn.Parameter:
        """The base's own parameter. Never write to it."""
        return self._base[self.resolve(name)]

    def current(self, name: str) -> nn.Parameter:
        """The parameter as the view has it: the base's own object unless it is edited."""
        name = self.resolve(name)
        return self._own.get(name, self._base[name])

    @property
    def edited(self) -> list[str]:
        """Names of the parameters that differ from the base, in model order."""
        return [name for name in self._base if name in self._own]

    # hashes

    def base_sha256(self, name: str) -> str:
        """Content hash of one base tensor."""
        return self._fingerprint.sha256(self.resolve(name))

    @property
    def base_hash(self) -> str:
        """Content hash of the base: all parameters and persistent buffers."""
        return self._fingerprint.root()

    @property
    def weights_hash(self) -> str:
        """Content hash of the weights as they are."""
        with self.lock:
            for name in self._own.keys() - self._own_hashes.keys():
                self._own_hashes[name] = tensor_sha256(self._own[name])
            replaced = {name: self._own_hashes[name] for name in self._own}
        return self._fingerprint.root(replaced) if replaced else self.base_hash

    @property
    def current_hash(self) -> str:
        """Content hash of the edited state, side memories included; `base_hash` exactly when nothing is edited."""
        return self._with_routes(self.weights_hash, self.routes.digest)

    def hash_with(self, values: Mapping[str, Tensor | None], routes: str = "") -> str:
        """What `current_hash` would be if these were the only edits, and `routes` the memories' digest."""
        prepared = {self.resolve(name): self._prepare(name, value) for name, value in values.items()}
        root = self._fingerprint.root({n: tensor_sha256(t) for n, t in prepared.items() if t is not None})
        return self._with_routes(root, routes)

    @staticmethod
    def _with_routes(weights: str, routes: str) -> str:
        return combine_hashes({"weights": weights, "routes": routes}) if routes else weights

    # writing

    def write(self, name: str, value: Tensor | None) -> None:
        """Set one parameter; see `write_all`."""
        self.write_all({name: value})

    def write_all(self, values: Mapping[str, Tensor | None]) -> None:
        """Set several parameters, all or none.

        Args:
            values: per parameter its new value, in the parameter's stored layout and shape, any float
                dtype (it is cast); None puts the base's tensor back, and so does a value equal to it.

        Raises:
            UnknownName: no such parameter.
            EditFailed: a value is not finite, or overflows the parameter's dtype.
            EditlabError: wrong shape, or the parameter is offloaded, integer or quantised.
        """
        with self.lock:
            prepared = {self.resolve(name): self._prepare(name, value) for name, value in values.items()}
            if len(prepared) < len(values):
                raise EditlabError("Two of the given names are one tied parameter.", "Give it once.")
            self._commit(prepared)
        self.announce(tuple(prepared))

    def announce(self, names: tuple[str, ...]) -> None:
        """Tell `on_change` that what is computed with these parameters has changed."""
        for callback in list(self.on_change):
            try:
                callback(names)
            except Exception:
                log.exception("A callback failed after the weights changed")

    def _prepare(self, name: str, value: Tensor | None) -> Tensor | None:
        """Check one value and cast it; None when the parameter should be the base's own."""
        base = self.base(name)
        if value is None:
            return None
        if base.device.type == "meta":
            raise EditlabError(f"Cannot edit '{name}': its weights are offloaded.", "Load the model onto one device.")
        if not base.is_floating_point() or base.element_size() < 2 or base.layout != torch.strided:
            raise EditlabError(
                f"Cannot edit '{name}': it is quantised (stored as {base.dtype}).",
                "Load the model in float32, bfloat16 or float16.",
            )
        if value.shape != base.shape:
            raise EditlabError(
                f"Cannot edit '{name}': the new value has shape {tuple(value.shape)}, "
                f"the parameter {tuple(base.shape)}.",
                "Give it in the parameter's stored layout (GPT-2's Conv1D stores (in, out)).",
            )
        # Not an inference tensor, whatever mode the caller is in: training must stay possible.
        with torch.inference_mode(False), torch.no_grad():
            cast = value.detach().to(base.device, base.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise EditFailed(
                f"The new value of '{name}' is not finite, or too large for {base.dtype}.",
                "Nothing was changed.",
            )
        return None if torch.equal(cast, base) else cast

    def _commit(self, prepared: Mapping[str, Tensor | None]) -> None:
        """Write checked values; whatever stops it midway, the weights end as they were."""
        own_after, swaps, copies = dict(self._own), [], []
        with torch.inference_mode(False), torch.no_grad():
            for name, value in prepared.items():
                base, own = self._base[name], self._own.get(name)
                if value is not None and own is not None:
                    copies.append((own, value, own.detach().clone()))
                elif value is not None:
                    own_after[name] = _own_copy(base, value)
                    swaps.append(_Swap(base, own_after[name]))
                elif own is not None:
                    swaps.append(_Swap(own, base))
                    del own_after[name]
            roots, keep = [self.model, *self._roots], self._identities()
            try:
                for own, value, _ in copies:
                    own.copy_(value)
                if swaps:
                    _rebind(roots, swaps, keep)
                self._own, self.version = own_after, self.version + 1
            except BaseException:
                for own, _, saved in copies:
                    own.copy_(saved)
                _rebind(roots, [_Swap(swap.new, swap.old) for swap in swaps], keep)
                raise
            finally:
                for name in prepared:
                    self._own_hashes.pop(name, None)

    def _identities(self) -> set[int]:
        return {id(p) for p in [*self._base.values(), *self._own.values()]}

    # other trees

    def attach(self, root: nn.Module) -> None:
        """Let another module tree that shares this view's parameters follow its edits.

        For trees made from `structural_clone(view.model)`, such as an nnsight or TransformerLens wrapper.
        The tree is held weakly.

        Raises:
            EditlabError: the tree shares no parameter with this view.
        """
        with self.lock:
            shared = self._identities()
            if not any(id(p) in shared for p in root.parameters()):
                raise EditlabError(
                    f"This {type(root).__name__} shares no parameter with the view.",
                    "Make it from structural_clone(view.model), and attach it before undoing edits.",
                )
            swaps = [_Swap(self._base[name], own) for name, own in self._own.items()]
            _rebind([root], swaps, shared)
            self._roots.add(root)

    def fork(self) -> WeightView:
        """An independent view of the same base, with its own copy of the edited tensors."""
        with self.lock:
            twin = WeightView(self._base_model)
            twin._fingerprint = self._fingerprint
            twin.write_all(dict(self._own))
            twin.version = self.version
            return twin

    def __repr__(self) -> str:
        held = sum(math.prod(p.shape) * p.element_size() for p in self._own.values())
        return (
            f"WeightView({type(self.model).__name__}: {len(self._own)} of {len(self._base)} edited, "
            f"{held / 2**20:.1f} MiB of its own)"
        )
