"""Side memories: edits that change a module's output for the sequences they are for, and no weight.

A kind of memory is one module of `kinds/` with `layer(module, edits)`: the routed layer that all edits of the kind at
one module make together. What a memory does is a function of its edits alone, so undoing, saving and forking are the
ledger's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import nn

from editlab import registry
from editlab.errors import EditlabError
from editlab.hooks.routing import Routed
from editlab.state.edit import Edit


def build(model: nn.Module, edits: Sequence[Edit]) -> dict[str, Routed]:
    """Routed layers by module path.

    Raises:
        EditlabError: two kinds of memory at one module, or a module that the model lacks.
    """
    at: dict[str, list[Edit]] = {}
    for edit in edits:
        assert edit.routing is not None
        at.setdefault(str(edit.routing["path"]), []).append(edit)
    layers: dict[str, Routed] = {}
    for path, here in at.items():
        kinds = {str(edit.routing["kind"]) for edit in here if edit.routing}
        if len(kinds) > 1:
            raise EditlabError(
                f"'{path}' would have memories of the kinds {' and '.join(sorted(kinds))}.",
                "Put them at different layers.",
            )
        layers[path] = registry.get(kinds.pop(), "memories").layer(_module(model, path), here)
    return layers


def digest_of(edits: Sequence[Edit]) -> str:
    """A hash of what the memories are made of; "" without any."""
    return hashlib.sha256("".join(edit.digest for edit in edits).encode()).hexdigest() if edits else ""


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise EditlabError(f"The model has no module '{path}'.", "The memory was made for another model.") from None


def weights(layers: Mapping[str, Routed]) -> list[str]:
    """The parameters whose module's output the layers change."""
    return [f"{path}.weight" for path in layers]
