"""Token batches: ids, mask, positions, and where in the padded frame a character of the text ended up.

Hugging Face's bare `forward` does not derive position ids from the mask, so a left-padded GPT-2 batch is
silently wrong without them (logits off by 1.27 on a tiny model); every batch here carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from editlab.errors import ConfigError, RequestError

Span = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Padded rows of token ids.

    Attributes:
        ids: (B, T) int64 token ids; pad columns hold an arbitrary valid id.
        mask: (B, T) int64, 1 on real tokens. Real tokens of a row are contiguous; pads may stand on
            either side.
        spans: per row, the character range of every real token in its text; empty tuples when the batch was
            made from ids.
        ends: (B,) for each row the first column that is no prompt but an answer to it; None when all is prompt. Only
            side memories ask for it: they decide by the prompt alone.
    """

    ids: Tensor
    mask: Tensor
    spans: tuple[tuple[Span, ...], ...] = ()
    ends: Tensor | None = None

    @property
    def n_rows(self) -> int:
        return self.ids.shape[0]

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    @property
    def position_ids(self) -> Tensor:
        """(B, T) position of each token within its row, 0 on leading pads."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def first(self) -> Tensor:
        """(B,) column of each row's first real token."""
        return self.mask.argmax(-1)

    @property
    def lengths(self) -> Tensor:
        """(B,) number of real tokens."""
        return self.mask.sum(-1)

    @property
    def last(self) -> Tensor:
        """(B,) column of each row's last real token."""
        return self.first + self.lengths - 1

    def column(self, row: int, token: int) -> int:
        """Padded-frame column of a row's `token`-th real token."""
        return int(self.first[row]) + token

    def rows(self, index: Tensor | Sequence[int]) -> Batch:
        """The batch of the rows at `index` (repeats allowed)."""
        index = torch.as_tensor(index, device=self.ids.device)
        if index.numel() and not (-self.n_rows <= int(index.min()) and int(index.max()) < self.n_rows):
            raise ConfigError(
                f"There is no row {int(index.abs().max())} in this batch.", f"Rows go from 0 to {self.n_rows - 1}."
            )
        spans = tuple(self.spans[int(i)] for i in index) if self.spans else ()
        return Batch(self.ids[index], self.mask[index], spans, None if self.ends is None else self.ends[index])

    def to(self, device: torch.device | str) -> Batch:
        ends = None if self.ends is None else self.ends.to(device)
        return Batch(self.ids.to(device), self.mask.to(device), self.spans, ends)


def pad_rows(
    rows: Sequence[Sequence[int]],
    *,
    pivots: Sequence[int] | Literal["left", "right"] = "left",
    spans: tuple[tuple[Span, ...], ...] = (),
    prompts: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad rows of ids so that they share a column.

    Args:
        rows: token ids per row, none empty.
        pivots: `"left"` pads on the left (last tokens aligned), `"right"` on the right; a sequence gives, per
            row, the token index that all rows shall have in the same column, with pads on both sides.
        prompts: how many of each row's tokens are its prompt; default all.
    """
    if not rows or any(len(row) == 0 for row in rows):
        raise RequestError("A text is empty after tokenisation.", "Give at least one token.")
    if pivots == "left":
        before = [len(row) for row in rows]
    elif pivots == "right":
        before = [0] * len(rows)
    else:
        before = [int(p) for p in pivots]
    lead = max(before)
    width = lead + max(len(row) - b for row, b in zip(rows, before, strict=True))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (row, b) in enumerate(zip(rows, before, strict=True)):
        start = lead - b
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    ends = None if prompts is None else torch.tensor([lead - b + n for b, n in zip(before, prompts, strict=True)])
    return Batch(ids, mask, spans, ends).to(device)


@dataclass(frozen=True)
class Encoded:
    """A text as its tokenizer encodes it.

    Attributes:
        ids: of the text alone. spans: the character range of each.
        prefix, suffix: what the tokenizer puts around the text of itself.
    """

    ids: list[int]
    spans: tuple[Span, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def tokenize(tokenizer: Any, text: str) -> Encoded:
    """The ids of a text, and what the tokenizer puts around them."""
    # Not verbose: what is too long is refused where it would run, in a sentence of ours.
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids = list(encoded["input_ids"])
    is_special = [bool(x) for x in encoded["special_tokens_mask"]]
    start = next((i for i, special in enumerate(is_special) if not special), len(ids))
    stop = next((i for i in range(len(ids), start, -1) if not is_special[i - 1]), start)
    spans = tuple((int(a), int(b)) for a, b in encoded["offset_mapping"][start:stop])
    return Encoded(ids[start:stop], spans, tuple(ids[:start]), tuple(ids[stop:]))


def token_at(spans: Sequence[Span], char: int) -> int:
    """Index of the token whose span contains character `char`.

    Byte-level tokenizers may give several tokens the span of one multi-byte character: the last one counts,
    since it is the first position that has seen the whole character.

    Raises:
        RequestError: no token covers that character.
    """
    found = [i for i, (a, b) in enumerate(spans) if a <= char < b]
    if not found:
        raise RequestError(f"No token covers character {char} of the text.")
    return found[-1]


def positions_of(model: Any) -> int | None:
    """How many tokens a model reads at most; None if its configuration does not say."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def within_positions(model: Any, tokens: int) -> int:
    """So many tokens, or as many as the model has positions for."""
    return min(tokens, positions_of(model) or tokens)


def check_length(model: Any, tokens: int) -> None:
    """Refuse what a model has no positions for: some fail there, and others go on with nonsense.

    Raises:
        RequestError: there are more tokens than that.
    """
    most = positions_of(model)
    if most is not None and tokens > most:
        raise RequestError(
            f"This takes {tokens:,} tokens, and the model reads {most:,} at most.",
            "Shorten the prompt, or ask for fewer new tokens.",
        )
