"""Names of heads and of their components: "20.0" is head 0 of layer 20, "20.0.3" its fourth component."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from editlab.errors import RequestError

Mode = Literal["q", "k", "v"]
MODES: tuple[Mode, ...] = ("q", "k", "v")
READS = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, order=True)
class Part:
    """A head, or one component of it.

    Attributes:
        component: 0 for the largest singular value of the head's OV (of QK where it reads); None for the whole head.
    """

    layer: int
    head: int
    component: int | None = None

    @classmethod
    def parse(cls, text: str) -> Part:
        """From "L.H" or "L.H.i".

        Raises:
            RequestError: it is neither.
        """
        found = re.fullmatch(r"\s*(\d+)\.(\d+)(?:\.(\d+))?\s*", text)
        if not found:
            raise RequestError(
                f"'{text}' names no head.", "Write LAYER.HEAD, such as 20.0, or LAYER.HEAD.COMPONENT, such as 20.0.0."
            )
        layer, head, component = found.groups()
        return cls(int(layer), int(head), None if component is None else int(component))

    @property
    def whole(self) -> Part:
        """The head."""
        return Part(self.layer, self.head)

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}" + ("" if self.component is None else f".{self.component}")

    def check(self, n_layers: int, n_heads: int, width: int) -> Part:
        """Itself.

        Raises:
            RequestError: the model has no such part; the message gives the ranges.
        """
        inside = self.layer < n_layers and self.head < n_heads and (self.component or 0) < width
        if not inside or min(self.layer, self.head, self.component or 0) < 0:
            raise RequestError(
                f"There is no {self} in this model.",
                f"Layers go from 0 to {n_layers - 1}, heads to {n_heads - 1}, components to {width - 1}.",
            )
        return self


@dataclass(frozen=True, order=True)
class Channel:
    """What `source` writes, as `target` reads it with its queries, keys or values.

    Raises:
        RequestError: the source does not come before the target.
    """

    source: Part
    target: Part
    mode: Mode

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RequestError(f"'{self.mode}' is no way to read.", f"Choose one of {', '.join(MODES)}.")
        if self.source.layer >= self.target.layer:
            raise RequestError(
                f"{self.source} cannot speak to {self.target}: what a layer writes reaches later layers only.",
                "Name the earlier head first.",
            )

    def __str__(self) -> str:
        return f"{self.source} → {self.target} ({self.mode.upper()})"
