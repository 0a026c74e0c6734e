"""Where the parts of a model are: dotted paths and head geometry, nothing else.

An adapter holds no module and no tensor, so that one serves a base model and every view of it. It is found
by `detect.py`; a person may also write one by hand for a model that detection refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editlab.errors import AdapterError, ConfigError, SiteUnavailable


@dataclass(frozen=True)
class HeadLayout:
    """Which output features of a projection belong to which head.

    Attributes:
        path: dotted path of the projection.
        features: index of every feature, shape (heads, head width), into the projection's output.
        size: how many features the projection's output has.
    """

    path: str
    features: tuple[tuple[int, ...], ...]
    size: int

    @property
    def n_heads(self) -> int:
        return len(self.features)

    def index(self, device: torch.device) -> Tensor:
        return torch.tensor(self.features, device=device)

    @property
    def is_plain(self) -> bool:
        """True when the features are 0, 1, 2, ... in order and make up the whole output."""
        return [f for head in self.features for f in head] == list(range(self.size))


@dataclass(frozen=True)
class LayerPaths:
    """Dotted paths of one block's parts. `None` where the part could not be told apart.

    Attributes:
        attn_out, mlp_out: the module whose output is added to the residual stream: the projection itself, or
            the norm that follows it (Gemma-2, OLMo-2).
        up, gate: the MLP's first projections; `gate` is None for a plain MLP.
        attn_norm: the norm that attention reads through, None where it reads the residual stream itself (OLMo-2).
        q_norm, k_norm: norms of queries and keys before they are rotated (Qwen-3, Gemma-3, OLMo-2).
        no_heads: why what the output projection reads does not fall into heads; empty where it does.
        pattern_fixed, scores_fixed: why the attention pattern (the scores) cannot be written; empty where it can.
    """

    block: str
    attn: str
    q: HeadLayout | None
    k: HeadLayout | None
    v: HeadLayout | None
    attn_first: str
    o: str
    attn_out: str
    mlp_first: str
    up: str
    gate: str | None
    down: str
    mlp_out: str
    attn_norm: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    no_heads: str = ""
    pattern_fixed: str = ""
    scores_fixed: str = ""


@dataclass(frozen=True)
class WeightRef:
    """A projection's matrix: the parameter's name and how it is stored.

    Attributes:
        name: parameter name in `model.named_parameters()`.
        transposed: True where the stored tensor is (in, out), as in GPT-2's Conv1D.
    """

    name: str
    transposed: bool

    def oriented(self, stored: Tensor) -> Tensor:
        """A view of `stored` as (out, in)."""
        return stored.T if self.transposed else stored


@dataclass(frozen=True)
class ModelAdapter:
    """The structure of one decoder-only language model.

    Attributes:
        family: the model class's name, for messages.
        d_mlp: inner width M of the MLP, the length of a key.
        is_parallel: attention and MLP both read the block's input (GPT-J, NeoX, Phi, Falcon).
        tuple_out: blocks return a tuple whose first item is the residual stream.
        has_post_norm: a norm stands between the down projection and the residual stream.
        takes_position_ids: the model's forward accepts `position_ids`.
        head_dim: width of a head's output, which for latent attention is neither that of queries nor of the cache.
        has_sinks: a sink takes part of the attention, so that rows of the pattern sum to less than 1.
        logit_scale, logit_bias_scale, logit_cap: logits are cap(scale W u + bias_scale b), with u what the unembedding
            reads and cap(x) = c tanh(x / c) where there is a cap c; `no_logits` says why where that could not be shown.
        residual_error: relative error of the residual identity that detection measured.
    """

    family: str
    embed: str
    unembed: str
    final_norm: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_mlp: int
    layers: tuple[LayerPaths, ...]
    is_parallel: bool
    is_tied: bool
    tuple_out: bool
    takes_position_ids: bool
    has_sinks: bool = False
    logit_scale: float = 1.0
    logit_bias_scale: float = 1.0
    logit_cap: float | None = None
    no_logits: str = ""
    residual_error: float = field(default=0.0, compare=False)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def has_post_norm(self) -> bool:
        return self.layers[0].mlp_out != self.layers[0].down

    def check_layer(self, layer: Any) -> int:
        """`layer` as an int.

        Raises:
            ConfigError: there is no such layer; the message gives the range.
        """
        try:
            if isinstance(layer, bool):
                raise TypeError
            layer = index(layer)
        except TypeError:
            raise ConfigError(f"{layer!r} is no layer.", f"Give a whole number, 0 to {self.n_layers - 1}.") from None
        if not 0 <= layer < self.n_layers:
            raise ConfigError(
                f"There is no layer {layer} in {self.family}.", f"Choose one from 0 to {self.n_layers - 1}."
            )
        return layer

    def need_heads(self, layer: int) -> None:
        """Refuse what acts on single heads where there are none.

        Raises:
            SiteUnavailable: heads of this layer do not act each for itself; the message says why.
        """
        reason = self.layers[layer].no_heads
        if reason:
            having = [str(n) for n, paths in enumerate(self.layers) if not paths.no_heads]
            raise SiteUnavailable(
                f"Layer {layer} of {self.family} has no attention heads that can be told apart: {reason}.",
                f"Use layers {', '.join(having)}." if having else "Use 'attn_out', which all heads make together.",
            )

    def layer_of(self, parameter: str) -> int:
        """The block that a parameter belongs to: -1 before the blocks, n_layers after them."""
        for i, paths in enumerate(self.layers):
            if parameter.startswith(paths.block + "."):
                return i
        # A tied unembedding is the embedding, which every layer rests on.
        after = (self.final_norm + ".",) if self.is_tied else (self.final_norm + ".", self.unembed + ".")
        return self.n_layers if parameter.startswith(after) else -1

    def down(self, model: nn.Module, layer: int) -> WeightRef:
        """The MLP's second matrix W of `layer`, which maps a key to a value (ROME, arXiv 2202.05262)."""
        return weight_ref(model, self.layers[self.check_layer(layer)].down)


def weight_ref(model: nn.Module, path: str) -> WeightRef:
    """The matrix of the projection at `path`; orientation follows from the module's type, never its shape."""
    module = model.get_submodule(path)
    if isinstance(module, Conv1D):
        return WeightRef(f"{path}.weight", transposed=True)
    if isinstance(module, nn.Linear):
        return WeightRef(f"{path}.weight", transposed=False)
    raise AdapterError(
        f"'{path}' is a {type(module).__name__}, whose weight layout is not known.",
        "Load the model with plain (not quantised) weights.",
    )
