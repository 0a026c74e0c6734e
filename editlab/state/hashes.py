"""Content hashes of weights: SHA-256 per tensor, and over the sorted (name, hash) pairs of a set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from editlab.errors import EditlabError


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content (row-major); a contiguous CPU tensor is not copied.

    Raises:
        EditlabError: the tensor has no data here (meta), or is not a plain strided tensor.
    """
    t = tensor.detach()
    if t.device.type == "meta":
        raise EditlabError("A tensor on the meta device has no content to hash.", "Load the model without offloading.")
    if t.layout != torch.strided or t.is_quantized:
        raise EditlabError(
            f"Cannot hash a {t.layout} tensor of dtype {t.dtype}.", "Load the model without quantisation."
        )
    digest = hashlib.sha256(f"{t.dtype}{tuple(t.shape)}".encode())
    if t.numel():
        flat = t.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over (name, tensor hash) pairs in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{len(name)}:{name}={hashes[name]}\n".encode())
    return digest.hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of a set of named tensors; equal only if names, dtypes, shapes and bits are."""
    return Fingerprint({name: t.detach for name, t in tensors.items()}).root()


class Fingerprint:
    """Content hashes of a fixed set of named tensors, computed when asked for and kept.

    Args:
        sources: for each name, a function that returns the tensor. A function, because weights that
            accelerate keeps on disk exist only while they are read.
        aliases: further names of tied tensors, and the name each stands for. They enter the hash of the set,
            so that it does not depend on whether equal weights are one object (offloading unties them).
    """

    def __init__(self, sources: Mapping[str, Callable[[], Tensor]], aliases: Mapping[str, str] | None = None) -> None:
        self._sources = dict(sources)
        self._aliases = dict(aliases or {})
        self._known: dict[str, str] = {}

    def sha256(self, name: str) -> str:
        """The hash of one tensor."""
        if name not in self._known:
            try:
                self._known[name] = tensor_sha256(self._sources[name]())
            except EditlabError as error:
                raise EditlabError(f"Cannot identify the weight '{name}'. {error.what}", error.fix) from None
        return self._known[name]

    def root(self, replaced: Mapping[str, str] | None = None) -> str:
        """The hash of the whole set, with the tensor hashes in `replaced` in place of the stored ones."""
        replaced = replaced or {}
        wanted = [name for name in self._sources if name not in replaced]
        missing = [name for name in wanted if name not in self._known]
        if missing:
            # hashlib releases the GIL, so threads help; a few saturate memory bandwidth.
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                list(pool.map(self.sha256, missing))
        hashes = {**{name: self._known[name] for name in wanted}, **replaced}
        return combine_hashes({**hashes, **{a: hashes[name] for a, name in self._aliases.items()}})
