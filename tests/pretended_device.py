"""A device that is not there: tensors that compute on the CPU and say that they are somewhere else.

A wrong device shows on a machine with a GPU alone, since on the CPU everything is in one place. Here a tensor carries
real values, so that every optimiser, solver and comparison runs to its end, and a pretended device, and an operation
that a real device would refuse is refused:

- operands of two devices, except a CPU number (0 dimensions), CPU indices, and a copy from one to the other;
- float64 where the device is "mps", which has none;
- a generator of another device; the memory of a device's tensor, as an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from editlab import LM

DEVICES = ("cuda", "mps")
CPU = torch.device("cpu")
# What torch's own code sees: every build has all that it asks of this device, and it copies from and to any other.
_GUARDED = torch.device("meta")
aten = torch.ops.aten
# Indices may be on the CPU.
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from_and_resize.default}


class WrongDevice(RuntimeError):
    """An operation that the pretended device would refuse."""


class Elsewhere(Tensor):
    """A tensor on a pretended device; `held` has its values, on the CPU."""

    __slots__ = ("held", "where")  # not among its attributes, which are copied from one tensor to another

    held: Tensor
    where: torch.device

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> Elsewhere:
        if device.type == "mps" and real.dtype == torch.float64:
            raise WrongDevice("The device mps has no float64.")
        made = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=_GUARDED,
        )
        made.held, made.where = real, device
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property  # type: ignore[override]
    def device(self) -> torch.device:
        return self.where

    is_meta = False  # type: ignore[assignment]

    @property  # type: ignore[override]
    def is_cuda(self) -> bool:
        return self.where.type == "cuda"

    @property  # type: ignore[override]
    def is_mps(self) -> bool:
        return self.where.type == "mps"

    def numpy(self, *, force: bool = False) -> Any:
        raise WrongDevice(f"An array of a tensor on {self.device}: it has to be copied to the CPU first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    # Torch's own code makes tensors of lists without their values on the device that it takes this one to be on.

    def __getitem__(self, at: Any) -> Tensor:
        return super().__getitem__(_without_lists(at))

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(_without_lists(at), value)

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class _Mode(TorchDispatchMode):
    """Has tensors that are made on a pretended device be made here.

    Attributes:
        here: the device that is pretended.
    """

    here = CPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    operands: list[Tensor] = []
    plain_args, plain_kwargs = _on_cpu(args, operands), _on_cpu(kwargs, operands)
    to = _place(func, args, kwargs, operands)
    if kwargs.get("device") is not None:
        plain_kwargs["device"] = CPU
    plain_kwargs.pop("pin_memory", None)
    done = func(*plain_args, **plain_kwargs)
    if to == CPU:
        return done
    written = _written(func)
    if not written:
        return _there(done, to)
    # What an operation wrote into is the tensor that it was given.
    results = list(done) if len(written) > 1 else [done]
    given = [None if n is None else kwargs[n] if isinstance(n, str) else args[n] for n in written]
    back = [_there(r, to) if g is None else g for r, g in zip(results, given, strict=True)]
    return tuple(back) if len(back) > 1 else back[0]


def _place(func: Any, args: Any, kwargs: dict[str, Any], operands: list[Tensor]) -> torch.device:
    """Where the result of an operation is; a real device would refuse others."""
    if func in INDEXED and isinstance(args[0], Elsewhere):
        at = [i for i in args[1] if i is not None and not isinstance(i, Elsewhere)]
        operands = [t for t in operands if not any(t is i for i in at)]
    where = {t.where if isinstance(t, Elsewhere) else CPU for t in operands if isinstance(t, Elsewhere) or t.dim()}
    if func in COPIES:
        where = {args[0].device}
    if len(where) > 1:
        raise WrongDevice(f"{func} got operands on {' and '.join(sorted(map(str, where)))}.")
    asked = kwargs.get("device")
    if asked is None:
        to = where.pop() if where else CPU
    else:
        to = torch.device(asked)
        # Torch's own code makes a tensor beside another.
        to = _Mode.here if to.type == _GUARDED.type else to
    if to.type != "cpu" and to.index is None:
        to = torch.device(to.type, 0)
    generator = kwargs.get("generator")
    if generator is not None and getattr(generator, "pretended", generator.device).type != to.type:
        raise WrongDevice(f"{func} on {to} draws from a generator of another device.")
    return to


@cache
def _written(func: Any) -> tuple[int | str | None, ...]:
    """For each result which argument it is, by its place or name; empty where none is."""
    schema = func._schema
    place = {}
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for name in argument.alias_info.before_set:
                place[name] = argument.name if argument.kwarg_only else number
    results = [next(iter(r.alias_info.before_set), "") if r.alias_info else "" for r in schema.returns]
    found = tuple(place.get(name) for name in results)
    return found if any(n is not None for n in found) else ()


def _on_cpu(value: Any, operands: list[Tensor]) -> Any:
    """The arguments with the tensors that compute, which are gathered in `operands`."""
    if isinstance(value, Tensor):
        operands.append(value)
        return value.held if isinstance(value, Elsewhere) else value
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(x, operands) for x in value)
    if isinstance(value, dict):
        return {name: _on_cpu(x, operands) for name, x in value.items()}
    return value


def _there(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return Elsewhere(value, device)
    return type(value)(_there(x, device) for x in value) if isinstance(value, list | tuple) else value


def _without_lists(at: Any) -> Any:
    parts = at if isinstance(at, tuple) else (at,)
    parts = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
    return parts if isinstance(at, tuple) else parts[0]


class _Generator(torch.Generator):
    """A generator that knows which device it is for."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.pretended = torch.device(device)
        return made


class _Event:
    """Everything is done at once here."""

    def __init__(self, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _made_here(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` or `torch.as_tensor`, which look for the device's kernels before any mode is asked."""

    def made(data: Any, *, device: Any = None, requires_grad: bool = False, **options: Any) -> Tensor:
        if not isinstance(data, Tensor):
            data = make(data, **options)
            options = {}
        elif make is _TENSOR:
            data = data.detach().clone()
        return data.to(device=device, **options).requires_grad_(requires_grad or data.requires_grad)

    return made


_TENSOR = torch.tensor


@cache
def _load_once() -> None:
    """What transformers sets up with its first model, done in the mode, leaves later rotary frequencies unset."""
    LM.from_pretrained("factworld-gpt2")


@contextmanager
def pretended(device: str, patch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """While open, `device` ("cuda", "mps") is there; yields what moves a module to it."""
    _load_once()
    where = torch.device(device if ":" in device else f"{device}:0")
    patch.setattr(_Mode, "here", where)
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(torch, "Generator", _Generator)
    patch.setattr(torch, "Event", _Event)
    patch.setattr(torch, "tensor", _made_here(torch.tensor))
    patch.setattr(torch, "as_tensor", _made_here(torch.as_tensor))

    def moved(module: nn.Module) -> nn.Module:
        return module.to(where)

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        # The engine has no worker threads for a device that is not there.
        with torch.autograd.set_multithreading_enabled(False), _Mode():
            yield moved
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.fixture(params=DEVICES)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[LM], LM]]:
    """Moves a model to a pretended device; the test runs once for each of them."""
    with pretended(request.param, monkeypatch) as moved:
        yield lambda lm: LM(moved(lm.model), lm.tokenizer, name=lm.name)
