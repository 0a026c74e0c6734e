"""Which features of a projection belong to which head, seen from the q, k and v that attention computes with.

1. v: a projection holds a head if some of its features equal it at every token.
2. k: the same at position 0, where rotary embedding is the identity; norms on k hide that, and then the projection's
   name has to do.
3. q is what remains, or, where the three are one projection, lies as v and k show: all of q, k, v in turn, or group by
   group.
"""

from __future__ import annotations

from torch import Tensor

from editlab.hooks.adapter import HeadLayout
from editlab.hooks.witness import Seen, matched


def query_key_value(
    seen: Seen, n_heads: int, n_kv: int
) -> tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None]:
    """The layouts of q, k and v; None for what cannot be told."""
    keys, values = seen.k, seen.v
    if keys is None or values is None or keys.shape[1] != n_kv or values.shape[1] != n_kv:
        return None, None, None
    outputs = matched(seen.first, values)
    firsts = list(outputs)
    v = next((h for n in firsts if (h := _match(n, outputs[n], values))), None)
    if v is None:
        return None, None, None
    key_width = keys.shape[-1]
    query_width = seen.q.shape[-1] if seen.q is not None else key_width
    if len(firsts) == 3:
        rest = [n for n in firsts if n != v.path]
        # Norms on q and k hide the match; then the name has to do.
        k_path = next((n for n in rest if _match(n, outputs[n], keys, slice(0, 1))), None) or next(
            (n for n in rest if n.rsplit(".", 1)[-1].startswith("k")), rest[-1]
        )
        rest.remove(k_path)
        q, k = (
            _plain(path, heads, width) if outputs[path].shape[-1] == heads * width else None
            for path, heads, width in ((rest[0], n_heads, query_width), (k_path, n_kv, key_width))
        )
        return q, k, v
    return _fused(v, outputs[v.path], keys, n_heads, n_kv, key_width)


def _match(path: str, output: Tensor, cached: Tensor, positions: slice = slice(None)) -> HeadLayout | None:
    """Which features of `output` (B, T, F) hold the cached heads (B, K, T, e), by their values."""
    have = output[:, positions].flatten(0, 1)  # (n, F)
    want = cached[:, :, positions].permute(0, 2, 1, 3).flatten(0, 1)  # (n, K, e)
    features = []
    for head in want.unbind(1):
        same = (have[:, :, None] - head[:, None, :]).abs().amax(0)  # (F, e)
        best, index = same.min(0)
        if not bool((best <= 1e-6 + 1e-5 * head.abs().amax()).all()) or len(index.unique()) != len(index):
            return None
        features.append(tuple(index.tolist()))
    return HeadLayout(path, tuple(features), have.shape[-1])


def _plain(path: str, heads: int, width: int) -> HeadLayout:
    features = tuple(tuple(range(h * width, (h + 1) * width)) for h in range(heads))
    return HeadLayout(path, features, heads * width)


def _fused(
    v: HeadLayout, output: Tensor, keys: Tensor, n_heads: int, n_kv: int, width: int
) -> tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None]:
    """q and k of a fused projection, from where v lies: all of q, k, v in turn, or group by group."""
    total = output.shape[-1]
    if total != (n_heads + 2 * n_kv) * width:
        return None, None, v
    per_group = n_heads // n_kv
    concatenated = tuple(range((n_heads + 2 * n_kv) * width))
    span = (per_group + 2) * width

    def heads(starts: list[int]) -> HeadLayout:
        return HeadLayout(v.path, tuple(concatenated[s : s + width] for s in starts), total)

    in_turn = (
        heads([h * width for h in range(n_heads)]),
        heads([(n_heads + h) * width for h in range(n_kv)]),
        heads([(n_heads + n_kv + h) * width for h in range(n_kv)]),
    )
    grouped = (
        heads([(h // per_group) * span + (h % per_group) * width for h in range(n_heads)]),
        heads([g * span + per_group * width for g in range(n_kv)]),
        heads([g * span + (per_group + 1) * width for g in range(n_kv)]),
    )
    for q, k, candidate in (in_turn, grouped):
        if candidate == v and _match(v.path, output, keys, slice(0, 1)) == k:
            return q, k, v
    return None, None, v
