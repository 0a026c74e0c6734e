"""Writing a pack over an older one, so that it is the old or the new one at every moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from editlab.errors import PackError, system_cause
from editlab.models.cache import sync_folder
from editlab.state.files import missing_folders, remove, remove_empty
from editlab.state.ledger import Entry, Ledger
from editlab.state.packs.manifest import (
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    RECORDS_NAME,
    SCHEMA_VERSION,
    TENSORS_NAME,
    parse_json,
    validated,
)
from editlab.state.packs.reading import read_manifest
from editlab.state.packs.records import lines_of, with_records

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_LEFTOVER = re.compile(
    r"edits-[0-9a-f]{16}\.safetensors|edits-[0-9a-f]{8}\.safetensors\.tmp|pack-[0-9a-f]{8}\.json\.tmp"
)


def save_pack(
    directory: str | Path,
    ledger: Ledger,
    base_name: str,
    *,
    only: Sequence[str] | None = None,
) -> Path:
    """Write a ledger as a pack, over an older pack if there is one; see the module for the order of steps.

    Args:
        directory: the folder; made if missing.
        ledger: entries of every state are saved.
        base_name: what the base model is called, for messages.
        only: ids of the entries to save; default all.

    Raises:
        PackError: the folder has another kind of pack.json, the pack exceeds a limit, or the disk refuses.
    """
    folder = Path(directory)
    token = secrets.token_hex(4)
    tensors_tmp = folder / f"edits-{token}.safetensors.tmp"
    manifest_tmp = folder / f"pack-{token}.json.tmp"
    made, is_older, is_written = missing_folders(folder), os.path.lexists(folder / MANIFEST_NAME), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_older:
            _refuse_other_manifest(folder)
        with ledger.view.lock:
            entries = list(ledger) if only is None else [ledger[id] for id in only]
        records, tensors = _records(entries)
        aside = None
        if len(json.dumps(records, ensure_ascii=False, indent=1)) > MAX_JSON_BYTES // 2:  # there it is indented more
            aside = tensors[RECORDS_NAME] = lines_of(records)
        tensors_tmp.open("xb").close()
        mode = tensors_tmp.stat().st_mode
        save_file(tensors, str(tensors_tmp))
        tensors_tmp.chmod(mode)  # safetensors makes files for the owner alone
        size, sha = _synced(tensors_tmp)
        base = {
            "name": base_name,
            "base_hash": ledger.view.base_hash,
            "tensors": {n: ledger.view.base_sha256(n) for e in entries for n in e.edit.deltas},
        }
        _write_manifest(
            manifest_tmp,
            {
                "schema_version": SCHEMA_VERSION,
                "editlab": _version(),
                "base": base,
                "file": {"name": TENSORS_NAME, "size": size, "sha256": sha},
                "entries": [] if aside is not None else records,
                **({} if aside is None else {"records": _aside(entries, aside)}),
            },
            aside,
        )
        by_content = folder / f"edits-{sha[:16]}.safetensors"
        for source, target in (
            (tensors_tmp, by_content),
            (manifest_tmp, folder / MANIFEST_NAME),
            (by_content, folder / TENSORS_NAME),
        ):
            os.replace(source, target)  # noqa: PTH105 (one name for all the renames, which a test interrupts)
            sync_folder(folder)
        is_written = True
        _clear(folder)
    except (OSError, SafetensorError) as error:
        raise PackError(
            f"Cannot write the pack in '{folder}': {system_cause(error)}.", "Free some space or choose another folder."
        ) from error
    finally:
        for path in (tensors_tmp, manifest_tmp):
            remove(path)
        if not is_written and not is_older:
            for name in (MANIFEST_NAME, TENSORS_NAME):
                remove(folder / name)
            _clear(folder)
            remove_empty(made)
    return folder


def _clear(folder: Path) -> None:
    """Remove what a pack was written by, or what a killed process left of that."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            remove(path)


def _refuse_other_manifest(folder: Path) -> None:
    try:
        read_manifest(folder)
    except PackError as error:
        raise PackError(
            f"'{folder}' has a {MANIFEST_NAME} that is not a pack of this version, so it is not overwritten. "
            f"{error.what}",
            "Choose another folder, or delete that file.",
        ) from None


def _records(entries: list[Entry]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def store(name: str, tensor: Tensor) -> str:
        # safetensors refuses shared memory; one edit may stand in two entries.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
        return name

    def described(name: str, tensor: Tensor) -> dict[str, Any]:
        if tensor.dtype not in _CODES:
            raise PackError(f"A pack cannot hold '{name}': its dtype is {tensor.dtype}.", "Convert it first.")
        return {"tensor": store(name, tensor), "shape": list(tensor.shape), "dtype": _CODES[tensor.dtype]}

    records = []
    for e in entries:
        deltas = {}
        for param, delta in e.edit.deltas.items():
            names = [store(f"{e.id}/deltas/{param}/{part}", t) for part, t in delta.tensors.items()]
            is_dense = delta.dense is not None
            deltas[param] = {
                "kind": "gain" if delta.is_gain else "dense" if is_dense else "lowrank",
                "tensors": names,
                "shape": list(delta.shape),
                "dtype": _CODES[delta.dtype],
                "rank": None if is_dense else delta.rank,
            }
        records.append(
            {
                "id": e.id,
                "method": e.edit.method,
                "config": e.edit.config,
                "requests": e.edit.requests,
                "info": e.edit.info,
                "state": e.state,
                "created": e.created,
                "base_hash": e.base_hash,
                "parent_state_hash": e.parent_state_hash,
                "parent_lineage": e.parent_lineage,
                "deltas": deltas,
                "tensors": {n: described(f"{e.id}/tensors/{n}", t) for n, t in e.edit.tensors.items()},
                **({} if e.edit.routing is None else {"routing": e.edit.routing}),
            }
        )
    return records, tensors


def _aside(entries: Sequence[Entry], lines: Tensor) -> dict[str, Any]:
    return {"tensor": RECORDS_NAME, "size": len(lines), "active": sum(e.is_active for e in entries)}


def _write_manifest(path: Path, content: dict[str, Any], aside: Tensor | None) -> None:
    """Write what the reader accepts: a pack that could not be read again is refused now."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1).encode()
    except (ValueError, RecursionError) as error:
        raise PackError(f"An entry cannot be saved as JSON: {error}.", "Check its texts.") from None
    if len(text) > MAX_JSON_BYTES:
        raise PackError(
            f"{MANIFEST_NAME} would have {len(text) / 2**20:.0f} MiB, more than {MAX_JSON_BYTES // 2**20}.",
            "Save fewer edits per pack.",
        )
    manifest = validated(parse_json(text, MANIFEST_NAME))
    if aside is not None:
        with_records(manifest, aside.numpy().tobytes())
    with path.open("xb") as file:
        file.write(text)
    _synced(path)


def _synced(path: Path) -> tuple[int, str]:
    """Push a file to the disk; its size and SHA-256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _version() -> str:
    try:
        return metadata.version("editlab")
    except metadata.PackageNotFoundError:
        return "unknown"
