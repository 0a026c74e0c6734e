"""What people hand to sessions, checked before anything runs, so that a mistake ends in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from editlab.errors import ConfigError, RequestError
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.sites import site as lookup


def check_batch(given: Any, *kinds: type) -> None:
    """Refuse what is no batch (or cone, where one is allowed).

    Raises:
        RequestError: it is text, ids or something else.
    """
    if isinstance(given, kinds):
        return
    names = " or a ".join(kind.__name__ for kind in kinds)
    what = f"{given!r:.60}" if isinstance(given, str) else f"a {type(given).__name__}"
    hint = (
        f"Encode the text first: lm.encode({given!r:.60})." if isinstance(given, str) else "lm.encode(texts) makes one."
    )
    raise RequestError(f"The model runs on a {names}, and was given {what}.", hint)


def check_text(given: Any, fix: str = "Give a text.") -> None:
    """Refuse what is no text.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(given, str):
        raise RequestError(f"{given!r:.60} is no text.", fix)


def check_texts(given: Any) -> list[str]:
    """One text or several as a list.

    Raises:
        RequestError: there is none, one is empty, or something else was given.
    """
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for text in texts:
        check_text(text, "Give a text or a list of texts.")
    if not texts:
        raise RequestError("There is no text.", "Give at least one.")
    if not all(texts):
        raise RequestError("There is an empty text in the batch.", "Give every row some text.")
    return texts


def check_read(read: Any) -> None:
    """Refuse what says no positions.

    Raises:
        ConfigError: it is neither "all", None nor a tensor of columns or a mask.
    """
    is_positions = isinstance(read, Tensor) and not read.is_floating_point() and not read.is_complex()
    if not is_positions and read is not None and not (isinstance(read, str) and read == "all"):
        raise ConfigError(
            f"read={read!r:.60} says no positions.",
            'Use "all", None, a tensor with a column for each row such as batch.last, or a bool mask.',
        )


def check_choice(name: str, given: Any, choices: Sequence[str], other: str = "") -> None:
    """Refuse a word that is none of `choices`; `other` names what else is allowed.

    Raises:
        ConfigError: it is none of them.
    """
    if given not in choices:
        listed = ", ".join(f"'{choice}'" for choice in choices) + (f" or {other}" if other else "")
        raise ConfigError(f"{name}={given!r:.60} is not known.", f"Use {listed}.")


def check_count(name: str, given: Any) -> int:
    """A whole number above 0.

    Raises:
        ConfigError: it is none.
    """
    try:
        count = index(given)
    except TypeError:
        count = 0
    if count < 1:
        raise ConfigError(f"{name}={given!r:.60} is no number of tokens.", "Give a whole number, 1 or more.")
    return count


def check_column(given: Any, width: int) -> int:
    """A column of a batch.

    Raises:
        ConfigError: there is no such column.
    """
    try:
        column = index(given)
    except TypeError:
        column = -1
    if not 0 <= column < width:
        raise ConfigError(f"Column {given!r:.60} lies outside the batch.", f"Columns go from 0 to {width - 1}.")
    return column


def check_device(given: Any) -> torch.device | None:
    """The device of that name; None stays None.

    Raises:
        ConfigError: torch knows no such device.
    """
    if given is None:
        return None
    try:
        return torch.device(given)
    except (RuntimeError, TypeError):
        raise ConfigError(f"There is no device {given!r:.60}.", "Use a name such as 'cpu' or 'cuda:0'.") from None


def layers_of(adapter: ModelAdapter, layers: Any) -> list[int]:
    """One layer or several as a list.

    Raises:
        ConfigError: there is no such layer.
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable) or (isinstance(layers, Tensor) and not layers.dim()):
        return [adapter.check_layer(layers)]
    return [adapter.check_layer(layer) for layer in layers]


def site_layers(adapter: ModelAdapter, site: str, layers: Any) -> list[int | None]:
    """The layers of a site: those named, or all; [None] for a site that exists once.

    Raises:
        ConfigError: there is no such layer, or the site has none.
    """
    if lookup(site).layered:
        return [*layers_of(adapter, range(adapter.n_layers) if layers is None else layers)]
    if layers is not None:
        raise ConfigError(f"Site '{site}' exists once, not per layer.", "Leave the layer out.")
    return [None]


def places_of(sites: Any) -> list[tuple[str, int | None]]:
    """Sites to capture as (name, layer or None for every layer); one name or one pair stands for a list of it.

    Raises:
        ConfigError: an entry is neither a name nor a pair of name and layer.
    """
    is_pair = (
        isinstance(sites, tuple) and len(sites) == 2 and isinstance(sites[0], str) and not isinstance(sites[1], str)
    )
    if isinstance(sites, str) or (is_pair and not isinstance(sites[1], tuple)):
        sites = [sites]
    if not isinstance(sites, Iterable):
        raise ConfigError(f"{sites!r:.60} names no sites.", "Give a list such as ['resid_post', ('z', 5)].")
    found = []
    for item in sites:
        name, layer = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(name, str):
            raise ConfigError(f"{item!r:.60} names no site.", "Give a name, or a pair of name and layer: ('z', 5).")
        found.append((name, layer))
    return found


def head_index(adapter: ModelAdapter, site: str, heads: Any) -> Tensor:
    """(n,) the heads of a site.

    Raises:
        ConfigError: the site has no heads, or not these.
    """
    if not lookup(site).has_heads:
        raise ConfigError(f"Site '{site}' has no heads.", "Leave `heads` out.")
    limit = adapter.n_kv_heads if site in ("k", "v", "k_rot") else adapter.n_heads
    try:
        listed = [index(head) for head in heads]
    except TypeError:
        raise ConfigError(
            f"heads={heads!r:.60} names no heads.", f"Give a list of whole numbers, 0 to {limit - 1}."
        ) from None
    if not all(0 <= head < limit for head in listed):
        raise ConfigError(f"A head in {listed} does not exist.", f"Heads go from 0 to {limit - 1}.")
    return torch.tensor(listed, dtype=torch.long)
