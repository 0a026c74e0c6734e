"""One small forward pass of a model, with everything that its modules read and gave."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from editlab.errors import AdapterError, short
from editlab.hooks.kv_cache import cache_made
from editlab.hooks.placement import home


@dataclass
class Probed:
    """What the probe saw of every module, in order of execution (each tensor cloned)."""

    order: list[str] = field(default_factory=list)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    tuples: set[str] = field(default_factory=set)
    logits: Tensor | None = None
    cache: Any = None


def run_probe(model: nn.Module) -> Probed:
    """What a plain pass over `probe_ids` shows.

    Raises:
        AdapterError: the pass fails.
    """
    seen = Probed()

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
            seen.inputs.setdefault(name, [t.clone() for t in tensors])

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple):
                seen.tuples.add(name)
                output = output[0]
            if isinstance(output, Tensor) and name not in seen.outputs:
                seen.order.append(name)
                seen.outputs[name] = output.clone()

        return hook

    ids = probe_ids(model).to(home(model))
    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(after(name), prepend=True).remove)
        try:
            out = model(ids, use_cache=True)
        except Exception as error:
            raise AdapterError(
                f"{type(model).__name__} fails in a plain forward pass of {ids.numel()} tokens "
                f"({type(error).__name__}: {short(str(error).strip())}).",
                "Only causal language models that run on token ids alone are supported.",
            ) from error
    seen.logits, seen.cache = out.logits, cache_made(out)
    return seen


def probe_ids(model: Any, tokens: int = 3) -> Tensor:
    """(2, tokens) ids, all different."""
    vocab = int(model.config.get_text_config().vocab_size)
    return (torch.arange(2 * tokens).reshape(2, -1) * max(1, vocab // (2 * tokens + 1)) + 1) % vocab


def check_finite(model: nn.Module, seen: Probed, blocks: list[str], family: str) -> None:
    """Refuse a model whose probe overflows, which no comparison of numbers could tell from a wrong part."""
    assert seen.logits is not None
    if all(bool(x.isfinite().all()) for x in (seen.logits, *(seen.outputs[block] for block in blocks))):
        return
    first = next((n for n in seen.order if not bool(seen.outputs[n].isfinite().all())), "")
    dtype = str(seen.logits.dtype).removeprefix("torch.")
    where = f"the output of '{first}'" if first else "the logits"
    what = f"{family}: {where} is not finite in {dtype}" if first else f"{family}: {where} are not finite in {dtype}"
    if seen.logits.dtype == torch.float16:
        raise AdapterError(f"{what}, whose largest number is 65,504.", "Load the model in bfloat16 or float32.")
    raise AdapterError(f"{what}.", "Check the weights: some are infinite, no numbers, or damaged.")
