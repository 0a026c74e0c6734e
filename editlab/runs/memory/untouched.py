"""A model is what it was before a study: checked on the bits, because `state_hash` keeps the hashes of a base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.errors import EditlabError
from editlab.state.hashes import fingerprint

if TYPE_CHECKING:
    from editlab.lm import LM

PROMPTS = ("The", "In the year 1900 the", "One, two, three, four")


class ModelTouched(EditlabError):
    """A study has changed the model that it must only read."""


@contextmanager
def untouched(lm: LM) -> Iterator[str]:
    """Gives the content hash of all weights; at the end, however it comes, that and some logits must be the same.

    Raises:
        ModelTouched: they are not.
    """
    digest, logits, state = _digest(lm), _logits(lm), lm.state_hash
    try:
        yield digest
    finally:
        if _digest(lm) != digest or lm.state_hash != state or not torch.equal(_logits(lm), logits):
            raise ModelTouched("The study has changed the model itself.", "Load the model again; and report this.")


def _digest(lm: LM) -> str:
    return fingerprint(dict(lm.model.named_parameters()) | dict(lm.model.named_buffers()))


def _logits(lm: LM) -> Tensor:
    return lm.forward(lm.encode(PROMPTS)).clone()
