"""Attention heads by layer and number, and gains on what they give.

A gain of 0 prunes a head, 1 leaves it alone, 2 doubles it; with a mean, (1 - gain) times that takes the place of what
is missing. It acts on the head's output z before the output projection, at every position of prompts and of generated
tokens, so keys and values of later layers change with it: a KV cache from before is of another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import index

import torch
from torch import Tensor

from editlab.errors import ConfigError
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.session import Session

Head = tuple[int, int]  # layer, query head


def head_name(head: Head) -> str:
    """A head as people write it: "23.4"."""
    return f"{head[0]}.{head[1]}"


def read_heads(text: str) -> tuple[Head, ...]:
    """Heads as typed: "23.4, 24.1", each once.

    Raises:
        ConfigError: it is no list of heads.
    """
    found = []
    for part in re.split(r"[,;\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", part)
        if match is None:
            raise ConfigError(f"'{part}' is no head.", "Write layer and head with a point, as in 23.4, 24.1.")
        found.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(found))


def heads_of(given: str | Iterable[Head]) -> tuple[Head, ...]:
    """Heads from text such as "23.4, 24.1" or from pairs of layer and head.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, str):
        return read_heads(given)
    try:
        return tuple((index(layer), index(head)) for layer, head in given)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{given!r:.60} names no heads.", 'Give pairs of layer and head, or text such as "23.4, 24.1".'
        ) from None


def check_heads(adapter: ModelAdapter, heads: Iterable[Head]) -> list[Head]:
    """The heads, sorted.

    Raises:
        ConfigError: there is no such layer or head. SiteUnavailable: the layer's heads do not act each for itself.
    """
    heads = sorted(set(heads))
    for layer, head in heads:
        adapter.need_heads(adapter.check_layer(layer))
        if not 0 <= head < adapter.n_heads:
            raise ConfigError(
                f"There is no head {head_name((layer, head))} in {adapter.family}.",
                f"Each layer has heads 0 to {adapter.n_heads - 1}.",
            )
    return heads


def kv_group(adapter: ModelAdapter, head: int) -> int:
    """Which key-value head a query head reads."""
    return head // (adapter.n_heads // adapter.n_kv_heads)


@dataclass(frozen=True, eq=False)
class HeadGains:
    """A gain for some heads; the others have 1.

    Attributes:
        means: (e,) by head, what takes the place of what a gain takes away; heads without one get nothing.
    """

    gains: Mapping[Head, float]
    means: Mapping[Head, Tensor] = field(default_factory=dict)

    @classmethod
    def pruning(cls, heads: Iterable[Head], means: Mapping[Head, Tensor] | None = None) -> HeadGains:
        """Prune these heads: by zero, or by their means where given."""
        heads = list(heads)
        return cls(dict.fromkeys(heads, 0.0), {h: means[h] for h in heads if h in means} if means else {})

    @property
    def changed(self) -> dict[Head, float]:
        """The heads whose gain is not 1."""
        return {head: gain for head, gain in self.gains.items() if gain != 1.0}

    @property
    def lowest(self) -> int | None:
        """The first layer with a changed head; None without any."""
        return min((layer for layer, _ in self.changed), default=None)

    @contextmanager
    def within(self, session: Session) -> Iterator[None]:
        """While open, the gains are in force in the session's runs and generations.

        Raises:
            ConfigError: there is no such head.
        """
        wishes = []
        changed = self.changed
        check_heads(session.adapter, changed)
        for layer in sorted({layer for layer, _ in changed}):
            heads = sorted(head for at, head in changed if at == layer)
            wishes.append(session.patch("z", layer, self._scaled(layer, heads), heads=heads, during="all"))
        try:
            yield
        finally:
            session.remove(wishes)

    def _scaled(self, layer: int, heads: list[int]) -> Callable[[Tensor], Tensor]:
        gains = torch.tensor([self.gains[layer, head] for head in heads])[:, None]
        means = None
        if any((layer, head) in self.means for head in heads):
            some = next(iter(self.means.values()))
            means = torch.stack([self.means.get((layer, head), torch.zeros_like(some)) for head in heads])

        def scale(part: Tensor) -> Tensor:
            g = gains.to(part)
            return part * g if means is None else part * g + means.to(part) * (1 - g)

        return scale
