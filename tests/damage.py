"""Ways to damage a file: odd values at any depth of what it holds, and broken bytes. All seeded."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

ODD: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "\0", "\ud800", "\u2028", "{}", "{} {}",
    "NaN", [], [[]], [None], {}, {"str": 1}, {"prompt": []}, [{"prompt": 1}], [[["a"]]], "x" * 150_000, ["x"] * 300,
]  # fmt: skip


def nested(depth: int) -> Any:
    """A text inside that many lists."""
    value: Any = "a"
    for _ in range(depth):
        value = [value]
    return value


def place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """A container at any depth of `tree` (which is not empty), and one of its keys."""
    at = tree
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not (isinstance(at[key], dict | list) and at[key] and rng.random() < 0.6):
            return at, key
        at = at[key]


def change_field(rng: random.Random, tree: Any) -> None:
    """Put something of another type into one field, at any depth."""
    at, key = place(rng, tree)
    at[key] = rng.choice([*ODD, nested(rng.choice([5, 200]))])


def drop(rng: random.Random, tree: Any) -> None:
    """Take one field or item away, at any depth."""
    at, key = place(rng, tree)
    del at[key]


def repeat(rng: random.Random, tree: Any) -> None:
    """Put one value of the tree in the place of another."""
    at, key = place(rng, tree)
    source, name = place(rng, tree)
    at[key] = copy.deepcopy(source[name])


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    what = rng.choice([b"\0", b"\xff\xfe", b"\n", b'"', b"[" * 3000, b"NaN", b"\\ud800", b"\x1b[31m", b"\xe4"])
    return data[:at] + what + data[at:]


def recode(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252"]), "replace")


def empty(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([b"", b"\n", b"\xef\xbb\xbf", b"[", b"{", b"PAR1", b"\0", b"[]", b"{}", b"null"])


TREE_DAMAGE: list[Callable[[random.Random, Any], None]] = [change_field, change_field, drop, repeat]
BYTE_DAMAGE: list[Callable[[random.Random, bytes], bytes]] = [cut, flip, insert, recode, empty]
