"""Reading a pack, the cheapest refusal first; nothing is executed, unpickled or imported by name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError, safe_open

from editlab.errors import PackError
from editlab.state.edit import Delta, Edit
from editlab.state.ledger import Entry
from editlab.state.packs.header import damaged, match, read_header
from editlab.state.packs.manifest import (
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    TENSORS_NAME,
    EntryRecord,
    Manifest,
    parse_json,
    shown,
    validated,
)
from editlab.state.packs.records import MAX_HEADER_BYTES, MAX_RECORDS_BYTES, with_records

MAX_FILE_BYTES = 8 * 2**30


@dataclass(frozen=True, eq=False)
class Pack:
    """A pack in memory; the folder is no longer needed.

    Attributes:
        manifest: everything in pack.json.
        entries: the edits in order, ready for `Ledger.adopt`.
    """

    manifest: Manifest
    entries: tuple[Entry, ...] = field(repr=False)

    @property
    def base_name(self) -> str:
        """What the author called the base model."""
        return self.manifest.base.name

    @property
    def base_hash(self) -> str:
        """Content hash of the base model."""
        return self.manifest.base.base_hash

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Pack({len(self)} edits for {shown(self.base_name)}, base {self.base_hash[:12]})"


def read_pack(directory: str | Path, *, max_bytes: int | None = None) -> Pack:
    """Read and check a pack.

    Args:
        directory: the pack's folder.
        max_bytes: the largest tensor file to accept; by default 8 GiB, or 80 % of the free memory if less.

    Raises:
        PackError: it is not a pack, or it is unsafe, damaged or too large.
    """
    folder = Path(directory)
    limit = min(MAX_FILE_BYTES, int(0.8 * psutil.virtual_memory().available)) if max_bytes is None else max_bytes
    for _ in range(20):  # a bound, in case someone saves without end
        before = _stamp(folder)
        try:
            return _read_once(folder, limit)
        except PackError:
            if _stamp(folder) == before:
                raise
            # Someone saved over the pack while it was read: the new one is whole.
    return _read_once(folder, limit)


def _stamp(folder: Path) -> list[tuple[int, int, int] | None]:
    stamps: list[tuple[int, int, int] | None] = []
    for name in (MANIFEST_NAME, TENSORS_NAME):
        try:
            s = (folder / name).lstat()
        except (OSError, ValueError):
            stamps.append(None)
        else:
            stamps.append((s.st_ino, s.st_mtime_ns, s.st_size))
    return stamps


def _read_once(folder: Path, limit: int) -> Pack:
    manifest = read_manifest(folder)
    found = None
    for name in (TENSORS_NAME, f"edits-{manifest.file.sha256[:16]}.safetensors"):
        if not os.path.lexists(folder / name):
            continue
        try:
            return Pack(*_read_entries(folder / name, manifest, limit))
        except PackError as error:
            found = found or error
    raise found or PackError(f"The pack in '{folder}' has no {TENSORS_NAME}.", "Copy the whole folder.")


def read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise PackError(f"'{folder}' is not a folder.", f"A pack is a folder with {MANIFEST_NAME}.")
    if not os.path.lexists(folder / MANIFEST_NAME):
        raise PackError(f"'{folder}' has no {MANIFEST_NAME}.", "Choose the folder of a pack.")
    with _opened(folder / MANIFEST_NAME) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise PackError(f"{MANIFEST_NAME} is larger than {MAX_JSON_BYTES // 2**20} MiB.", "Split the pack.")
    return validated(parse_json(raw, MANIFEST_NAME))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file for reading: no link, no pipe, no device."""
    fix = "Unpack it again with plain files only."
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise PackError(f"'{path.name}' in the pack is a link or not a plain file.", fix)
        # Between the check and here it may have become something else: neither follow nor wait for it.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PackError(f"'{path.name}' in the pack is a link or not a plain file.", fix)
            yield file
    except OSError as error:
        why = error.strerror or error
        raise PackError(f"Cannot read '{path.name}' of the pack: {why}.", "Check the folder.") from None


def _read_entries(path: Path, manifest: Manifest, limit: int) -> tuple[Manifest, tuple[Entry, ...]]:
    with _opened(path) as file:
        info = os.fstat(file.fileno())
        if info.st_size > limit:
            raise PackError(
                f"{TENSORS_NAME} has {info.st_size / 2**20:,.1f} MiB, more than the {limit / 2**20:,.1f} MiB allowed.",
                f"Free memory, or get the edits in smaller packs: {MAX_FILE_BYTES / 2**30:.0f} GiB is the most.",
            )
        if info.st_size != manifest.file.size:
            raise damaged(f"it has {info.st_size} bytes, {MANIFEST_NAME} says {manifest.file.size}")
        records = manifest.records
        header = read_header(file, info.st_size, MAX_HEADER_BYTES if records else MAX_JSON_BYTES)
        if records is None:
            match(header, manifest)
        elif header.pop(records.tensor, None) != ("U8", [records.size]):
            raise damaged("it lacks the records of the entries")
        elif records.size > min(MAX_RECORDS_BYTES, limit // 8):  # what they take once they are read
            raise PackError(
                f"The records of the pack's edits have {records.size / 2**20:,.1f} MiB, too many to be read here.",
                f"Free memory, or get the edits in smaller packs: {MAX_RECORDS_BYTES // 2**20} MiB is the most.",
            )
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.file.sha256:
            raise damaged("its content differs from what was saved (SHA-256)")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as tensors:
                if not os.path.samestat(info, path.lstat()):
                    raise damaged("it was replaced while it was read")
                if records is not None:
                    manifest = with_records(manifest, tensors.get_tensor(records.tensor).numpy().tobytes())
                    match(header, manifest)
                return manifest, tuple(_entry(record, tensors) for record in manifest.entries)
        except (SafetensorError, OSError, RuntimeError) as error:  # torch's RuntimeError: it is gone by now
            raise damaged(f"safetensors says {shown(str(error))}") from None


def _entry(record: EntryRecord, tensors: Any) -> Entry:
    """One entry with tensors of its own (`Delta` and `Edit` copy them out of the mapped file)."""
    deltas = {}
    for name, delta in record.deltas.items():
        parts = {part: tensors.get_tensor(t.tensor) for part, t in delta.parts().items()}
        deltas[name] = Delta(**parts, is_gain=delta.kind == "gain")
        if not deltas[name].is_finite:
            raise damaged(f"the delta of {shown(name)} in {record.id} is not finite")
    edit = Edit(
        method=record.method,
        config=record.config,
        requests=list(record.requests),
        deltas=deltas,
        info=record.info,
        tensors={name: tensors.get_tensor(t.tensor) for name, t in record.tensors.items()},
        routing=record.routing,
    )
    return Entry(
        id=record.id,
        created=record.created,
        edit=edit,
        state=record.state,
        base_hash=record.base_hash,
        parent_state_hash=record.parent_state_hash,
        parent_lineage=record.parent_lineage,
    )
