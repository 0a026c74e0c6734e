"""Token rows of a request: which ids run, which token is edited, which logits are read.

Everything is indexed by character offsets of the complete text: adding up the lengths of separately encoded pieces is
wrong as soon as a tokenizer merges across a boundary or adds a token of its own. The target's ids are those of the
joint encoding beyond the prompt, and input rows are put together from ids; nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editlab.errors import RequestError
from editlab.facts import Fact
from editlab.hooks.batch import Batch, pad_rows, positions_of, token_at
from editlab.joining import TargetPrefix, join

if TYPE_CHECKING:
    from editlab.lm import LM


@dataclass(frozen=True)
class Row:
    """One input row.

    Attributes:
        ids: token ids.
        index: the edited token: the last one of the subject.
        reads: tokens whose next-token logits are read, ascending.
        targets: for each read, the id that should come next; empty for a row that only compares distributions.
        straddles: the edited token reaches beyond the subject's end, so its key depends on what follows.
        subject: the subject's first token.
    """

    ids: tuple[int, ...]
    index: int
    reads: tuple[int, ...]
    targets: tuple[int, ...] = ()
    straddles: bool = False
    subject: int = 0


def target_ids(
    lm: LM, prompt: str, target: str, prefix: TargetPrefix = "auto", *, sink: bool
) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the target that continues it.

    Prompt and target are encoded as one text; the target is what follows the longest beginning that this has in common
    with the prompt alone. So the prompt lacks its last token where that one changes by what follows.

    Args:
        prefix: what stands between the two; "auto" goes by the rule of `editlab.joining`.

    Raises:
        RequestError: the target gives no token.
    """
    prompt, continuation = join(prompt, target, prefix)
    alone, _ = lm.tokens(prompt, sink=sink)
    ids, _ = lm.tokens(prompt + continuation, sink=sink)
    cut = common_length(alone, ids)
    prompt_part, target_part = ids[:cut], ids[cut:]
    if not prompt_part:  # one token for both: nothing would be left that the target could follow
        prompt_part, target_part = alone, lm.tokens(continuation, special=False)[0]
    if not target_part:
        raise RequestError(f"The target '{target}' gives no token with this tokenizer.", "Use another target.")
    return prompt_part, target_part


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two rows have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def rewrite_row(lm: LM, fact: Fact, *, context: str = "", sink: bool) -> Row:
    """The prompt (after `context`, if any) with the new target but its last token; reads the target's logits.

    Raises:
        RequestError: the target gives no token, or the subject's only token changes by it.
    """
    lead = f"{context}. " if context else ""
    prompt, target = target_ids(lm, lead + fact.text, fact.target_new, fact.target_prefix, sink=sink)
    index, straddles = subject_index(lm, fact, lead, sink=sink)
    ids = (*prompt, *target[:-1])
    reads = tuple(range(len(prompt) - 1, len(ids)))
    _, spans = lm.tokens(lead + fact.text, sink=sink)
    first = token_at(spans, len(lead) + (len(fact.before) if fact.has_subject else 0))
    if first >= len(prompt):
        raise RequestError(
            f"The tokenizer joins '{fact.subject}' and '{fact.target_new}' to one token.",
            "Word the prompt so that something stands between them.",
        )
    index = min(index, len(prompt) - 1)
    return Row(ids, index, reads, tuple(target), straddles, min(first, index))


def rewrite_rows(lm: LM, fact: Fact, contexts: Sequence[str], *, sink: bool) -> list[Row]:
    """`rewrite_row` behind each context that leaves it room: rows that the model has no positions for are left out."""
    most = positions_of(lm.model)
    rows = [rewrite_row(lm, fact, context=text, sink=sink) for text in contexts]
    return [row for text, row in zip(contexts, rows, strict=True) if not text or most is None or len(row.ids) <= most]


def subject_index(lm: LM, fact: Fact, lead: str = "", *, sink: bool) -> tuple[int, bool]:
    """The token that holds the last character of the subject, or of a prompt without, and whether it reaches beyond."""
    end = len(lead) + len(fact.before) + len(fact.subject)
    _, spans = lm.tokens(lead + fact.text, sink=sink)
    index = token_at(spans, end - 1)
    return index, spans[index][1] > end


def essence_row(lm: LM, fact: Fact, *, sink: bool) -> Row:
    """The row whose next-token distribution is kept: "{subject} is a", read at the subject's last token."""
    text = f"{fact.subject} is a"
    ids, spans = lm.tokens(text, sink=sink)
    index = token_at(spans, len(fact.subject) - 1)
    return Row(tuple(ids), index, (index,))


def align(rows: Sequence[Row], device: torch.device | str = "cpu") -> tuple[Batch, int]:
    """Rows padded so that every edited token stands in one column, and that column."""
    batch = pad_rows(
        [row.ids for row in rows],
        pivots=[row.index for row in rows],
        prompts=[row.reads[0] + 1 if row.targets else len(row.ids) for row in rows],
        device=device,
    )
    return batch, batch.column(0, rows[0].index)


def read_mask(batch: Batch, rows: Sequence[Row]) -> torch.Tensor:
    """(B, T) bool mask of the tokens whose logits are read; row by row, ascending, as `Row.targets`."""
    mask = torch.zeros_like(batch.mask, dtype=torch.bool)
    for i, row in enumerate(rows):
        for token in row.reads:
            mask[i, batch.column(i, token)] = True
    return mask
