"""The names of the places that can be read and written, and what is found there.

Shapes: B batch, T positions, S key positions, H query heads, K key-value heads, e head width, D model
width, M inner MLP width, V vocabulary. Every name means the same in every architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from editlab.errors import UnknownName, did_you_mean


@dataclass(frozen=True)
class Site:
    """One named place.

    Attributes:
        name: the name used everywhere in editlab.
        shape: what a capture without `at=` has.
        meaning: what the tensor is.
        layered: False for the places that a model has once.
        has_heads: True where a dimension of the shape counts heads.
        tap: True where the attention function itself has to be replaced to get there.
    """

    name: str
    shape: str
    meaning: str
    layered: bool = True
    tap: bool = False
    has_heads: bool = False


_ALL = (
    Site("embed", "B T D", "output of the token embedding, before position embeddings", layered=False),
    Site("resid_pre", "B T D", "residual stream entering the block"),
    Site("attn_in", "B T D", "what the q, k, v projections read (after the norm)"),
    Site("q", "B T H e", "queries before rotary embedding and q/k norms", has_heads=True),
    Site("k", "B T K e", "keys before rotary embedding and q/k norms", has_heads=True),
    Site("v", "B T K e", "values", has_heads=True),
    Site("q_rot", "B H T e", "queries as the attention product uses them", tap=True, has_heads=True),
    Site("k_rot", "B K S e", "keys as the attention product uses them", tap=True, has_heads=True),
    Site("scores", "B H T S", "attention scores before the softmax, mask added", tap=True, has_heads=True),
    Site("pattern", "B H T S", "attention weights after the softmax", tap=True, has_heads=True),
    Site("z", "B T H e", "head outputs before the output projection", has_heads=True),
    Site("attn_raw", "B T D", "output of the attention's output projection"),
    Site("attn_out", "B T D", "what attention adds to the residual stream"),
    Site("resid_mid", "B T D", "residual stream between attention and MLP (sequential blocks only)"),
    Site("mlp_in", "B T D", "what the MLP's first projection reads (after the norm)"),
    Site("mlp_key", "B T M", "input of the down projection: the key k of ROME"),
    Site("mlp_value", "B T D", "output of the down projection: the value v of ROME"),
    Site("mlp_out", "B T D", "what the MLP adds to the residual stream"),
    Site("resid_post", "B T D", "residual stream leaving the block"),
    Site("final", "B T D", "output of the final norm", layered=False),
    Site("logits", "B T V", "the model's logits", layered=False),
)

SITES: dict[str, Site] = {site.name: site for site in _ALL}


def site(name: str) -> Site:
    """The site called `name`.

    Raises:
        UnknownName: there is none; the message lists them.
    """
    if not isinstance(name, str):
        raise UnknownName(f"{name!r:.60} is no name of a site.", "Give one name, such as 'resid_post'.")
    try:
        return SITES[name]
    except KeyError:
        raise UnknownName(f"There is no site '{name}'.", did_you_mean(name, list(SITES))) from None
