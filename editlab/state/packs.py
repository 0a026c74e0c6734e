"""Edit packs: a ledger on disk, safe to take from a stranger.

A pack is a folder with `pack.json` (what, on which base, in which order) and `edits.safetensors` (the
numbers). Only JSON and safetensors are read; nothing is executed, unpickled or imported by name.

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

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editlab.errors import EditlabError, PackError
from editlab.state.edit import Delta, Edit
from editlab.state.ledger import Entry, Ledger

SCHEMA_VERSION = 1
MANIFEST_NAME = "pack.json"
TENSORS_NAME = "edits.safetensors"
MAX_JSON_BYTES = 16 * 2**20  # of pack.json, and of the header of the tensor file
MAX_JSON_DEPTH = 64
MAX_ENTRIES = 20_000
MAX_FILE_BYTES = 8 * 2**30

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
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


# --- pack.json ----------------------------------------------------------------------------------------

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,512}$")]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(\+00:00|Z)$")]
Size = Annotated[int, Field(ge=0, le=2**40)]
Shape = Annotated[list[Size], Field(max_length=8)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TensorRecord(_Strict):
    """One tensor of the tensor file."""

    tensor: Name
    shape: Shape
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"]


class DeltaRecord(_Strict):
    """One parameter's change: `tensors` names left and right, or dense; `shape` is the parameter's."""

    kind: Literal["lowrank", "dense", "gain"]
    tensors: Annotated[list[Name], Field(min_length=1, max_length=2)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(min_length=1, max_length=8)]
    dtype: Literal["F32", "F64"]
    rank: int | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> DeltaRecord:
        if self.kind == "dense" and (len(self.tensors) != 1 or self.rank is not None):
            raise ValueError("a dense delta has one tensor and no rank")
        if self.kind == "gain" and self.rank != 1:
            raise ValueError("a gain has rank 1")
        if self.kind in ("lowrank", "gain"):
            if len(self.tensors) != 2 or len(self.shape) != 2 or self.rank is None:
                raise ValueError("a low-rank delta or gain has two tensors, a rank and a 2-dimensional shape")
            if not 1 <= self.rank <= min(self.shape):
                raise ValueError(f"rank {self.rank} is impossible for a {self.shape[0]} x {self.shape[1]} weight")
        return self

    def parts(self) -> dict[str, TensorRecord]:
        """Its tensors by their name in `Delta`."""
        if self.kind == "dense":
            return {"dense": TensorRecord(tensor=self.tensors[0], shape=self.shape, dtype=self.dtype)}
        (rows, cols), rank = self.shape, self.rank or 0
        left, right = self.tensors
        return {
            "left": TensorRecord(tensor=left, shape=[rows, rank], dtype=self.dtype),
            "right": TensorRecord(tensor=right, shape=[rank, cols], dtype=self.dtype),
        }


class EntryRecord(_Strict):
    """One ledger entry."""

    id: Identifier
    method: Identifier
    config: dict[str, JsonValue]
    requests: list[dict[str, JsonValue]]
    info: dict[str, JsonValue]
    state: Literal["active", "removed"]
    created: Time
    base_hash: Sha256
    parent_state_hash: Sha256
    parent_lineage: Sha256
    deltas: dict[Name, DeltaRecord]
    tensors: dict[Name, TensorRecord]
    routing: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> EntryRecord:
        if not self.deltas and self.routing is None:
            raise ValueError("an entry has neither deltas nor a routing")
        return self

    def tensor_records(self) -> list[TensorRecord]:
        """Every tensor this entry owns in the tensor file."""
        return [*(p for d in self.deltas.values() for p in d.parts().values()), *self.tensors.values()]


class BaseRecord(_Strict):
    """The weights the edits were made for; `tensors` has the base's hash of each edited parameter."""

    name: Name
    base_hash: Sha256
    config_hash: Sha256 | None = None
    tensors: dict[Name, Sha256]


class FileRecord(_Strict):
    """The tensor file. It is found by content, so this name cannot point anywhere else."""

    name: Literal["edits.safetensors"]
    size: Annotated[int, Field(ge=8)]
    sha256: Sha256


class Manifest(_Strict):
    """`pack.json`."""

    schema_version: Literal[1]
    editlab: Annotated[str, StringConstraints(max_length=64)]
    base: BaseRecord
    file: FileRecord
    entries: Annotated[list[EntryRecord], Field(max_length=MAX_ENTRIES)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        ids = [e.id for e in self.entries]
        if len(set(ids)) < len(ids):
            raise ValueError("two entries have the same id")
        tensors = [t.tensor for e in self.entries for t in e.tensor_records()]
        if len(set(tensors)) < len(tensors):
            raise ValueError("two records use the same tensor")
        if {name for e in self.entries for name in e.deltas} != set(self.base.tensors):
            raise ValueError("base.tensors does not list exactly the edited parameters")
        return self


def _parse_json(raw: bytes, what: str) -> Any:
    """JSON without what the standard forbids or a stranger could abuse."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise ValueError("a key appears twice")
        return out

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("a number is not finite")
        return number

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
        level, depth = [value], 0
        while level:
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
            for text in (s for x in level for s in (x if isinstance(x, dict) else [x]) if isinstance(s, str)):
                text.encode()  # refuses half of a surrogate pair
            level = [
                child
                for x in level
                if isinstance(x, dict | list)
                for child in (x.values() if isinstance(x, dict) else x)
            ]
    except RecursionError:
        raise PackError(f"{what} is nested too deeply to be a pack.", "Get the pack again.") from None
    except ValueError as error:
        raise PackError(f"{what} is not valid JSON: {error}.", "Get the pack again.") from None
    return value


def _validated(data: Any) -> Manifest:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is int and version != SCHEMA_VERSION:
        raise PackError(
            f"This pack has schema version {version}; this editlab reads {SCHEMA_VERSION}.", "Update editlab."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        # The input is not echoed: it may be huge, or carry terminal escapes.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        more = f" ({error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
        raise PackError(
            f"{MANIFEST_NAME} is not a valid pack at {_shown(where)}: {first['msg']}{more}.",
            "Get the pack again, or update editlab if it was made by a newer version.",
        ) from None


def _shown(text: str) -> str:
    """A stranger's text for a message: short, and with control characters escaped."""
    return repr(text if len(text) <= 120 else text[:117] + "...")


# --- reading ------------------------------------------------------------------------------------------


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
        return f"Pack({len(self)} edits for {_shown(self.base_name)}, base {self.base_hash[:12]})"


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
    manifest = _read_manifest(folder)
    found = None
    for name in (TENSORS_NAME, f"edits-{manifest.file.sha256[:16]}.safetensors"):
        if not os.path.lexists(folder / name):
            continue
        try:
            return Pack(manifest, _read_entries(folder / name, manifest, limit))
        except PackError as error:
            found = found or error
    raise found or PackError(f"The pack in '{folder}' has no {TENSORS_NAME}.", "Copy the whole folder.")


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise PackError(f"'{folder}' is not a folder.", f"A pack is a folder with {MANIFEST_NAME}.")
    if not os.path.lexists(folder / MANIFEST_NAME):
        raise PackError(f"'{folder}' has no {MANIFEST_NAME}.", "Choose the folder of a pack.")
    with _opened(folder / MANIFEST_NAME) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise PackError(f"{MANIFEST_NAME} is larger than {MAX_JSON_BYTES // 2**20} MiB.", "Split the pack.")
    return _validated(_parse_json(raw, MANIFEST_NAME))


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


def _read_entries(path: Path, manifest: Manifest, limit: int) -> tuple[Entry, ...]:
    with _opened(path) as file:
        info = os.fstat(file.fileno())
        if info.st_size > limit:
            raise PackError(
                f"{TENSORS_NAME} has {info.st_size / 2**20:,.1f} MiB, more than the {limit / 2**20:,.1f} MiB allowed.",
                "Pass a larger max_bytes if you trust the pack and have the memory.",
            )
        if info.st_size != manifest.file.size:
            raise _damaged(f"it has {info.st_size} bytes, {MANIFEST_NAME} says {manifest.file.size}")
        _match(_read_header(file, info.st_size), manifest)
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.file.sha256:
            raise _damaged("its content differs from what was saved (SHA-256)")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as tensors:
                if not os.path.samestat(info, path.lstat()):
                    raise _damaged("it was replaced while it was read")
                return tuple(_entry(record, tensors) for record in manifest.entries)
        except (SafetensorError, OSError, RuntimeError) as error:  # torch's RuntimeError: it is gone by now
            raise _damaged(f"safetensors says {_shown(str(error))}") from None


def _damaged(why: str) -> PackError:
    return PackError(f"{TENSORS_NAME} does not belong to this pack or is damaged: {why}.", "Get the pack again.")


def _read_header(file: BufferedReader, size: int) -> dict[str, tuple[str, list[int]]]:
    """Per tensor its dtype and shape, after checking that the data fills the file exactly."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_JSON_BYTES, size - 8):
        raise _damaged("its header is larger than the file or than the limit")
    header = _parse_json(file.read(length), f"The header of {TENSORS_NAME}")
    if not isinstance(header, dict):
        raise _damaged("its header is not an object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise _damaged("its metadata is not text")
    spans, found = [], {}
    for name, item in header.items():
        if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
            raise _damaged(f"the record of {_shown(name)} is malformed")
        dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
            raise _damaged(f"{_shown(name)} has an unknown dtype {_shown(str(dtype))}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(shape) > 8 or len(offsets) != 2:
            raise _damaged(f"the record of {_shown(name)} is malformed")
        if offsets[1] - offsets[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise _damaged(f"the shape of {_shown(name)} does not match its bytes")
        spans.append((offsets[0], offsets[1]))
        found[name] = (dtype, shape)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged("its tensors overlap or leave gaps")
        end = stop
    if end != size - 8 - length:
        raise _damaged(f"its header declares {end} bytes of data, the file has {size - 8 - length}")
    return found


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _match(header: dict[str, tuple[str, list[int]]], manifest: Manifest) -> None:
    wanted = {t.tensor: (t.dtype, t.shape) for e in manifest.entries for t in e.tensor_records()}
    for name in wanted.keys() | header.keys():
        if name not in header:
            raise _damaged(f"{MANIFEST_NAME} lists a tensor {_shown(name)} that it lacks")
        if name not in wanted:
            raise _damaged(f"it has a tensor {_shown(name)} that {MANIFEST_NAME} does not list")
        if header[name] != wanted[name]:
            raise _damaged(f"{_shown(name)} is {header[name]}, {MANIFEST_NAME} says {wanted[name]}")


def _entry(record: EntryRecord, tensors: Any) -> Entry:
    """One entry with tensors of its own (`Delta` and `Edit` copy them out of the mapped file)."""
    deltas = {}
    for name, delta in record.deltas.items():
        parts = {part: tensors.get_tensor(t.tensor) for part, t in delta.parts().items()}
        deltas[name] = Delta(**parts, is_gain=delta.kind == "gain")
        if not deltas[name].is_finite:
            raise _damaged(f"the delta of {_shown(name)} in {record.id} is not finite")
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


def apply_pack(pack: Pack, ledger: Ledger, *, force: bool = False) -> list[Entry]:
    """Append a pack's entries to a ledger, with their ids, times and states; all or none.

    Args:
        pack: from `read_pack`.
        ledger: of a view of the base the pack was made for.
        force: go on although the base differs; the shapes must still fit.

    Raises:
        PackError: the base is another one, an id is taken, or a delta does not fit.
    """
    view, base = ledger.view, pack.manifest.base
    if not force and view.base_hash != base.base_hash:
        here = getattr(getattr(view.model, "config", None), "name_or_path", "") or type(view.model).__name__
        raise PackError(
            f"This pack was made for {_shown(base.name)} (hash {base.base_hash[:12]}), "
            f"the model here is {_shown(str(here))} (hash {view.base_hash[:12]}).",
            "Load that model, or apply with force if you know that the edited weights mean the same.",
        )
    try:
        for name, sha in base.tensors.items():
            if not force and view.base_sha256(name) != sha:
                raise PackError(f"The pack's hash of {_shown(name)} contradicts its base.", "Get the pack again.")
        return ledger.adopt(pack.entries)
    except PackError:
        raise
    except EditlabError as error:
        raise PackError(f"The pack does not fit this model. {error.what}", error.fix) from error


# --- writing ------------------------------------------------------------------------------------------


def save_pack(
    directory: str | Path,
    ledger: Ledger,
    base_name: str,
    *,
    config_hash: str | None = None,
    only: Sequence[str] | None = None,
) -> Path:
    """Write a ledger as a pack, over an older pack if there is one; see the module for the order of steps.

    Args:
        directory: the folder; made if missing.
        ledger: entries of every state are saved.
        base_name: what the base model is called, for messages.
        config_hash: SHA-256 of the model's config, if known.
        only: ids of the entries to save; default all.

    Raises:
        PackError: the folder has another kind of pack.json, the pack exceeds a limit, or the disk refuses.
    """
    folder = Path(directory)
    token = secrets.token_hex(4)
    tensors_tmp = folder / f"edits-{token}.safetensors.tmp"
    manifest_tmp = folder / f"pack-{token}.json.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(folder / MANIFEST_NAME):
            _refuse_other_manifest(folder)
        with ledger.view.lock:
            entries = list(ledger) if only is None else [ledger[id] for id in only]
        records, tensors = _records(entries)
        save_file(tensors, str(tensors_tmp))
        size, sha = _synced(tensors_tmp)
        base = {
            "name": base_name,
            "base_hash": ledger.view.base_hash,
            "config_hash": config_hash,
            "tensors": {n: ledger.view.base_sha256(n) for e in entries for n in e.edit.deltas},
        }
        _write_manifest(
            manifest_tmp,
            {
                "schema_version": SCHEMA_VERSION,
                "editlab": _version(),
                "base": base,
                "file": {"name": TENSORS_NAME, "size": size, "sha256": sha},
                "entries": records,
            },
        )
        by_content = folder / f"edits-{sha[:16]}.safetensors"
        for source, target in (
            (tensors_tmp, by_content),
            (manifest_tmp, folder / MANIFEST_NAME),
            (by_content, folder / TENSORS_NAME),
        ):
            os.replace(source, target)  # noqa: PTH105 (one name for all the renames, which a test interrupts)
            _sync_folder(folder)
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise PackError(
            f"Cannot write the pack in '{folder}': {why}.", "Free some space or choose another folder."
        ) from error
    finally:
        for path in (tensors_tmp, manifest_tmp):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return folder


def _refuse_other_manifest(folder: Path) -> None:
    try:
        _read_manifest(folder)
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


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
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
    _validated(_parse_json(text, MANIFEST_NAME))
    with path.open("xb") as file:
        file.write(text)
    _synced(path)


def _synced(path: Path) -> tuple[int, str]:
    """Push a file to the disk; its size and SHA-256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are not lost
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _version() -> str:
    try:
        return metadata.version("editlab")
    except metadata.PackageNotFoundError:
        return "unknown"
