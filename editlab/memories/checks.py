"""What a side memory must be like before anything is made of it: its parts may come from a stranger's pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editlab.errors import EditlabError
from editlab.state.edit import Edit

R = TypeVar("R", bound=BaseModel)


def damaged(edit: Edit, why: str) -> EditlabError:
    """The error for a memory that cannot be what its method made."""
    return EditlabError(f"A side memory of {edit.method} is damaged: {why}.", "Get its pack again, or edit anew.")


def parsed(routing: type[R], edit: Edit) -> R:
    """The edit's routing.

    Raises:
        EditlabError: it is none of this kind.
    """
    try:
        return routing.model_validate(edit.routing, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:3])
        raise damaged(edit, f"its routing is wrong at {where[:80]!r}: {first['msg']}") from None


def sizes(module: nn.Module, path: str) -> tuple[int, int]:
    """(d_out, d_in) of a linear module.

    Raises:
        EditlabError: it is another sort of module.
    """
    if isinstance(module, Conv1D):  # stored as (in, out)
        return module.weight.shape[1], module.weight.shape[0]
    if not isinstance(module, nn.Linear):
        raise EditlabError(f"'{path}' is no linear module.", "The memory was made for another model.")
    return module.weight.shape[0], module.weight.shape[1]


def tensor(edit: Edit, name: str, shape: Sequence[int | None], dtype: torch.dtype | None = None) -> Tensor:
    """One of the edit's tensors.

    Args:
        shape: with None for a size that is free.
        dtype: default a floating one, in which every entry must be finite.

    Raises:
        EditlabError: there is none, or it is another one.
    """
    found = edit.tensors.get(name)
    if found is None:
        raise damaged(edit, f"it has no '{name}'")
    fits = found.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
    if not fits or (found.dtype != dtype if dtype else not found.is_floating_point()):
        raise damaged(edit, f"'{name}' is {found.dtype} of shape {tuple(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        raise damaged(edit, f"'{name}' is not finite")
    return found
