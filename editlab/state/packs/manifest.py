"""`pack.json`: its records, checked strictly, and JSON that a stranger may have written."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from editlab.errors import PackError

SCHEMA_VERSION = 1
MANIFEST_NAME = "pack.json"
TENSORS_NAME = "edits.safetensors"
RECORDS_NAME = "records"  # tensor that has the entries where they are too many for pack.json
MAX_JSON_BYTES = 16 * 2**20  # of pack.json, and of the header of the tensor file
MAX_JSON_DEPTH = 64
MAX_ENTRIES = 20_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}

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
        for name in ("kind", "path") if self.routing is not None else ():
            if not isinstance(text := (self.routing or {}).get(name), str) or len(text) > 512:
                raise ValueError(f"a routing's {name} is no name")
        return self

    def tensor_records(self) -> list[TensorRecord]:
        """Every tensor this entry owns in the tensor file."""
        return [*(p for d in self.deltas.values() for p in d.parts().values()), *self.tensors.values()]


class BaseRecord(_Strict):
    """The weights the edits were made for; `tensors` has the base's hash of each edited parameter."""

    name: Name
    base_hash: Sha256
    config_hash: Sha256 | None = None  # in older packs, of the model's config
    tensors: dict[Name, Sha256]


class FileRecord(_Strict):
    """The tensor file. It is found by content, so this name cannot point anywhere else."""

    name: Literal["edits.safetensors"]
    size: Annotated[int, Field(ge=8)]
    sha256: Sha256


class RecordsRecord(_Strict):
    """The tensor that has the entries' records, where they are not in `pack.json` (see `records.py`)."""

    tensor: Literal["records"]
    size: Annotated[int, Field(ge=1)]
    active: Annotated[int, Field(ge=0, le=MAX_ENTRIES)]


class Manifest(_Strict):
    """`pack.json`."""

    schema_version: Literal[1]
    editlab: Annotated[str, StringConstraints(max_length=64)]
    base: BaseRecord
    file: FileRecord
    entries: Annotated[list[EntryRecord], Field(max_length=MAX_ENTRIES)]
    records: RecordsRecord | None = None

    @property
    def n_active(self) -> int:
        """How many edits are in force."""
        return self.records.active if self.records else sum(entry.state == "active" for entry in self.entries)

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        if self.records is not None:
            if self.entries:
                raise ValueError("entries are in two places")
            return self  # they are checked once they have been read
        ids = [e.id for e in self.entries]
        if len(set(ids)) < len(ids):
            raise ValueError("two entries have the same id")
        tensors = [t.tensor for e in self.entries for t in e.tensor_records()]
        if len(set(tensors)) < len(tensors):
            raise ValueError("two records use the same tensor")
        if {name for e in self.entries for name in e.deltas} != set(self.base.tensors):
            raise ValueError("base.tensors does not list exactly the edited parameters")
        return self


def parse_json(raw: bytes, what: str) -> Any:
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


def validated(data: Any) -> Manifest:
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
            f"{MANIFEST_NAME} is not a valid pack at {shown(where)}: {first['msg']}{more}.",
            "Get the pack again, or update editlab if it was made by a newer version.",
        ) from None


def shown(text: str) -> str:
    """A stranger's text for a message: short, and with control characters escaped."""
    return repr(text if len(text) <= 120 else text[:117] + "...")
