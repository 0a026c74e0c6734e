"""Find a model's parts by their behaviour, and prove that they are the right ones.

1. The block stack is the ModuleList with `num_hidden_layers` entries of one type and the most parameters.
2. One probe forward of 2 x 3 tokens records what every module of it reads and gives.
3. Inside a block, attention is the child named so that has projections; the last of them of width D is `o`, those
   before it make q, k and v. Outside attention, the last of width D is `down`, those before it `up` and `gate`.
4. A module that reads exactly such a projection's output and is a child of the block is a post-norm: then its
   output is what reaches the residual stream.
5. Which features belong to which head follows from what the attention function is called with, or from the KV cache;
   see `head_layouts`. Whether a head's output is its own, and what its pattern makes, is proved too; see `witness`.
6. How logits are made of what the unembedding reads is measured; see `logit_form`.
7. Proof: resid_pre + attn_out + mlp_out = resid_post, and starting at layer 1 from the recorded residual stream
   gives the probe's logits. A model that fails is refused with the number; nothing is guessed.

Only step 3's names are heuristics, and step 7 checks them. Without steps 5 or 6 a model is still a model: then sites of
heads, or logits of single tokens, are refused with the reason.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editlab.errors import AdapterError, EditlabError, short
from editlab.hooks.adapter import HeadLayout, LayerPaths, ModelAdapter
from editlab.hooks.cone import entering_at
from editlab.hooks.head_layouts import query_key_value
from editlab.hooks.logit_form import measure_logits
from editlab.hooks.placement import home, in_float64
from editlab.hooks.probe import Probed, check_finite, probe_ids, run_probe
from editlab.hooks.witness import AttentionPaths, Seen, Verdict, Witness

PROBE_TOKENS = 8  # a row, where attention is looked into
_HINT = "Hand in a ModelAdapter written for it: LM(model, tokenizer, adapter=...)."


def detect(model: Any) -> ModelAdapter:
    """The structure of `model` (a Hugging Face causal language model), proved on one small forward pass.

    Raises:
        AdapterError: a part was not found, or the proof failed; the message names the check and the number.
    """
    try:
        with _evaluating(model):
            return _detect(model)
    except EditlabError:
        raise
    except Exception as error:  # of a structure that no step foresaw: the model is refused, not the program ended
        raise AdapterError(
            f"{type(model).__name__} was not recognised ({type(error).__name__}: {short(str(error).strip())}).", _HINT
        ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every module is in the mode it was in."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _detect(model: Any) -> ModelAdapter:
    config = model.config.get_text_config()
    family = type(model).__name__
    n_layers = int(config.num_hidden_layers)
    stack = _block_stack(model, family, n_layers)
    names = {id(m): name for name, m in model.named_modules()}
    blocks = [names[id(block)] for block in stack]
    seen = run_probe(model)
    for block in blocks:
        if block not in seen.outputs:
            raise AdapterError(f"{family}: block '{block}' did not run in a plain forward pass.", _HINT)
    check_finite(model, seen, blocks, family)

    _cached(seen, family)
    parts = [_parts(model, seen, block, family) for block in blocks]
    n_heads = int(config.num_attention_heads)
    witness = Witness(model, [AttentionPaths(p.attn, p.o, tuple(p.firsts)) for p in parts])
    most = getattr(config, "max_position_embeddings", None) or PROBE_TOKENS
    witness.record(probe_ids(model, min(PROBE_TOKENS, most)).to(home(model)))
    n_kv, width = _heads(config, seen, witness.seen[0], _in_features(model.get_submodule(parts[0].o)), n_heads, family)
    verdicts = [witness.judge(i, n_heads) for i in range(n_layers)]
    layers = tuple(_layer(model, seen, p, witness.seen[i], verdicts[i], n_heads, n_kv) for i, p in enumerate(parts))
    down = model.get_submodule(layers[0].down)
    embed, unembed = model.get_input_embeddings(), model.get_output_embeddings()
    if unembed is None:
        raise AdapterError(f"{family} has no output embedding.", "Load a causal language model.")
    d_model = seen.outputs[blocks[0]].shape[-1]
    logits = measure_logits(model, names[id(unembed)], probe_ids(model).to(home(model)))
    adapter = ModelAdapter(
        family=family,
        embed=names[id(embed)],
        unembed=names[id(unembed)],
        final_norm=_final_norm(seen, blocks[-1], family),
        n_heads=n_heads,
        n_kv_heads=n_kv,
        head_dim=width,
        d_model=d_model,
        d_mlp=_in_features(down),
        layers=layers,
        is_parallel=_is_parallel(seen, layers[0]),
        is_tied=getattr(unembed, "weight", None) is getattr(embed, "weight", 0),
        tuple_out=blocks[0] in seen.tuples,
        takes_position_ids="position_ids" in inspect.signature(model.forward).parameters,
        has_sinks=any(v.has_sink for v in verdicts),
        logit_scale=logits.scale,
        logit_bias_scale=logits.bias_scale,
        logit_cap=logits.cap,
        no_logits=logits.reason,
    )
    error = _prove(model, adapter, seen, family)
    object.__setattr__(adapter, "residual_error", error)
    return adapter


def _block_stack(model: nn.Module, family: str, n_layers: int) -> nn.ModuleList:
    stacks = [
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) == n_layers and len({type(b) for b in m}) == 1
    ]
    if not stacks:
        raise AdapterError(
            f"{family}: no ModuleList of {n_layers} blocks of one type was found.",
            "Only decoder-only transformers with one block stack are supported. " + _HINT,
        )
    return max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()))


def _heads(config: Any, seen: Probed, attention: Seen, width: int, n_heads: int, family: str) -> tuple[int, int]:
    """Key-value heads, and the width of a head's output; `width` is that of what the output projection reads."""
    layers = _cached(seen, family)
    # What the attention function is called with is the truth: latent attention caches something else.
    values = attention.v if attention.calls and attention.v is not None else layers[0].values
    n_kv = int(values.shape[1])
    if n_kv == n_heads and getattr(config, "new_decoder_architecture", False):
        n_kv = int(config.num_kv_heads)  # Falcon's new layout repeats keys before caching them
    return n_kv, width // n_heads


def _cached(seen: Probed, family: str) -> Any:
    layers = getattr(seen.cache, "layers", None)
    if not layers or getattr(layers[0], "keys", None) is None:
        raise AdapterError(f"{family} keeps no key-value cache, so its heads cannot be told.", _HINT)
    return layers


@dataclass(frozen=True)
class _Parts:
    """Paths in one block, by what runs and by the names of children."""

    block: str
    attn: str
    o: str
    firsts: list[str]
    down: str
    up: str
    gate: str | None


def _parts(model: nn.Module, seen: Probed, block: str, family: str) -> _Parts:
    module = model.get_submodule(block)
    stream = seen.outputs[block]
    if stream.dim() != 3:
        raise AdapterError(
            f"{family}: block '{block}' gives a tensor of {stream.dim()} dimensions {tuple(stream.shape)}, not one "
            "residual stream of rows, tokens and features.",
            "Models with several parallel streams are not supported. " + _HINT,
        )
    d_model = stream.shape[-1]
    attn = [
        name
        for name, child in module.named_children()
        if ("attn" in name or "attention" in name) and any(_is_projection(m) for m in child.modules())
    ]
    if len(attn) != 1:
        raise AdapterError(
            f"{family}: in '{block}' the attention module was looked for by name and found {attn or 'nowhere'}.",
            _HINT,
        )
    inside = f"{block}.{attn[0]}."
    ran = [n for n in seen.order if n.startswith(block + ".") and _is_projection(model.get_submodule(n))]
    in_attn = [n for n in ran if n.startswith(inside)]
    in_mlp = [n for n in ran if not n.startswith(inside)]
    o = next((n for n in reversed(in_attn) if _out_features(model.get_submodule(n)) == d_model), None)
    down = next((n for n in reversed(in_mlp) if _out_features(model.get_submodule(n)) == d_model), None)
    firsts = [n for n in in_attn if o is not None and n != o]
    ups = [n for n in in_mlp if n != down]
    if o is None or down is None or not firsts or not 1 <= len(ups) <= 2:
        raise AdapterError(
            f"{family}: in '{block}' an attention output and one MLP were looked for; found attention projections "
            f"{_short(in_attn, block)} and others {_short(in_mlp, block)}.",
            "Mixtures of experts are not supported. " + _HINT,
        )
    gate = None
    if len(ups) == 2:
        gate = next((n for n in ups if "gate" in n.rsplit(".", 1)[-1]), ups[0])
        ups.remove(gate)
    return _Parts(block, f"{block}.{attn[0]}", o, firsts, down, ups[0], gate)


def _layer(
    model: nn.Module, seen: Probed, p: _Parts, attention: Seen, verdict: Verdict, n_heads: int, n_kv: int
) -> LayerPaths:
    module = model.get_submodule(p.block)
    q, k, v = query_key_value(attention, n_heads, n_kv)
    return LayerPaths(
        block=p.block,
        attn=p.attn,
        q=q,
        k=k,
        v=v,
        attn_first=p.firsts[0],
        o=p.o,
        attn_out=_post_norm(seen, module, p.block, p.o),
        mlp_first=p.gate or p.up,
        up=p.up,
        gate=p.gate,
        down=p.down,
        mlp_out=_post_norm(seen, module, p.block, p.down),
        attn_norm=_norm_before(seen, p.block, p.firsts[0]),
        q_norm=_norm_after(seen, p.attn + ".", q),
        k_norm=_norm_after(seen, p.attn + ".", k),
        no_heads=verdict.heads,
        pattern_fixed=verdict.pattern,
        scores_fixed=verdict.scores,
    )


def _post_norm(seen: Probed, block: nn.Module, path: str, projection: str) -> str:
    """The child of the block that reads exactly the projection's output, or the projection itself."""
    given = seen.outputs[projection]
    for name, child in block.named_children():
        full = f"{path}.{name}"
        read = seen.inputs.get(full, [])
        if full in seen.outputs and not isinstance(child, nn.Dropout) and any(_equal(x, given) for x in read):
            return full
    return projection


def _norm_before(seen: Probed, block: str, projection: str) -> str | None:
    """The first module of the block that made what the projection reads out of something else."""
    for name in seen.order:
        read = seen.inputs.get(name, [])
        if name.startswith(block + ".") and read and _equal(seen.outputs[name], seen.inputs[projection][0]):
            return name if not _equal(read[0], seen.outputs[name]) else None
    return None


def _norm_after(seen: Probed, inside: str, layout: HeadLayout | None) -> str | None:
    """The module of attention that reads exactly a projection's output, head by head or whole."""
    # Sorted, because a norm may stand before or after heads and positions change places.
    given = None if layout is None else seen.outputs[layout.path].flatten().sort().values
    for name in seen.order if given is not None else ():
        read = seen.inputs.get(name, [])
        if name.startswith(inside) and read and _equal(read[0].flatten().sort().values, given):
            return name
    return None


def _final_norm(seen: Probed, last_block: str, family: str) -> str:
    stream = seen.outputs[last_block]
    for name in seen.order:
        if not name.startswith(last_block) and any(_equal(x, stream) for x in seen.inputs[name]):
            return name
    raise AdapterError(f"{family}: no norm reads the last block's output.", _HINT)


def _is_parallel(seen: Probed, layer: LayerPaths) -> bool:
    middle = seen.inputs[layer.block][0] + seen.outputs[layer.attn_out]
    return not any(
        _close(x, middle)
        for name in seen.order
        if name.startswith(layer.block + ".") and not name.startswith(layer.attn + ".")
        for x in seen.inputs[name]
    )


def _prove(model: nn.Module, adapter: ModelAdapter, seen: Probed, family: str) -> float:
    assert seen.logits is not None
    tolerance = 1e-4 if seen.logits.dtype in (torch.float32, torch.float64) else 3e-2
    worst = 0.0
    for layer in adapter.layers:
        after = in_float64(seen.outputs[layer.block])
        parts = seen.inputs[layer.block][0] + seen.outputs[layer.attn_out]
        parts = in_float64(parts) + in_float64(seen.outputs[layer.mlp_out].reshape(after.shape))
        worst = max(worst, float((parts - after).norm() / after.norm().clamp(min=1e-30)))
    if not worst <= tolerance:
        raise AdapterError(
            f"{family}: resid_pre + attn_out + mlp_out should equal resid_post; the relative error is {worst:.1e}.",
            "The model scales or mixes its residual stream in a way that is not supported. " + _HINT,
        )
    if adapter.n_layers > 1:
        resid = seen.inputs[adapter.layers[1].block][0]
        with torch.no_grad(), entering_at(model, adapter, 1, resid):
            again = model(probe_ids(model).to(resid.device), use_cache=False).logits
        error = float((again - seen.logits).abs().max() / seen.logits.abs().max().clamp(min=1e-30))
        if not error <= tolerance:
            raise AdapterError(
                f"{family}: starting at layer 1 should give the same logits; the relative error is {error:.1e}.", _HINT
            )
    return worst


def _is_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _out_features(module: nn.Module) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def _in_features(module: nn.Module) -> int:
    return int(module.nx if isinstance(module, Conv1D) else module.in_features)  # type: ignore[arg-type]


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def _close(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.allclose(a.reshape(-1), b.reshape(-1), rtol=1e-4, atol=1e-5)


def _short(names: list[str], block: str) -> Any:
    counts = Counter(n.removeprefix(block + ".") for n in names)
    return list(counts)[:6] or "none"
