"""Edit packs: a ledger on disk, safe to take from a stranger.

A pack is a folder with `pack.json` (what, on which base, in which order) and `edits.safetensors` (the
numbers). Only JSON and safetensors are read; nothing is executed, unpickled or imported by name.

Entries whose records take too much room for `pack.json` (10,000 facts do) are told by lines of JSON in a tensor of the
tensor file instead; see `records`. Nothing else is different, and packs that are small are as they always were.

Reading, cheapest refusal first: file types and sizes; `pack.json` against a strict schema; the safetensors
header against the file's size and against `pack.json`; the SHA-256 of the tensor file; then the tensors.

Two files cannot be replaced in one step, so `pack.json` alone decides which pack the folder holds: it has the
SHA-256 of its tensor file, and the file with that content is looked for as `edits.safetensors`, then as
`edits-<hash>.safetensors`. Saving over a pack:

1. write the tensors to a temporary file, sync, rename it to `edits-<hash>.safetensors` (nobody reads it yet);
2. write `pack.json` to a temporary file, sync, rename: the old pack ends and the new one begins here;
3. rename `edits-<hash>.safetensors` to `edits.safetensors`, over the old numbers, and clear leftovers.

Stopped anywhere, the folder reads as the old pack or as the new one, and the finished folder always has the
two usual names. One process may write a folder at a time; any number may read it meanwhile.
"""

from __future__ import annotations

from editlab.state.packs.applying import apply_pack
from editlab.state.packs.reading import Pack, read_pack
from editlab.state.packs.records import check_room
from editlab.state.packs.writing import save_pack

__all__ = ["Pack", "apply_pack", "check_room", "read_pack", "save_pack"]
