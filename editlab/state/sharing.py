"""Trees that share tensors: copying a module tree without its weights, and replacing a weight wherever it is held."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from editlab.errors import EditlabError
from editlab.hooks.placement import offload_maps, offloaded

# Libraries whose hooks belong to the model: transformers installs capture hooks for good on the first
# `output_hidden_states=True`, accelerate moves weights, torch implements weight normalisation.
_PERMANENT_HOOKS = ("transformers", "accelerate", "torch")
_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
        for weights in offload_maps(module):
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


def weight_sources(base: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Everything that decides what the model computes: parameters (ties once) and persistent buffers."""
    tensors: dict[str, Tensor] = dict(base.named_parameters())
    for prefix, module in base.named_modules():
        for local, buffer in module._buffers.items():
            if buffer is not None and local not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{local}".lstrip(".")] = buffer
    sources: dict[str, Callable[[], Tensor]] = {name: t.detach for name, t in tensors.items()}
    for name, t in tensors.items():
        if t.device.type == "meta":
            sources[name] = functools.partial(offloaded, base, name, t)
    return sources


class Swap:
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


def rebind(roots: Iterable[nn.Module], swaps: list[Swap], keep: set[int]) -> None:
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


def own_copy(base: nn.Parameter, value: Tensor) -> nn.Parameter:
    fresh = torch.empty_like(base)  # keeps the strides, which views of the parameter rely on
    fresh.copy_(value)
    own = nn.Parameter(fresh, base.requires_grad)
    vars(own).update(vars(base))  # marks such as _is_hf_initialized
    return own
