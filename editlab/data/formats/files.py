"""The raw rows of a file, one at a time, with their places.

What a file is, is seen from its beginning and not from its name: Parquet by its magic bytes, JSON by its bracket,
a table by column names that some layout knows. Only text that looks like none of these is taken for prose, unless it
is called .json, .jsonl, .csv, .tsv or .parquet.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from editlab.data.formats.json_text import LARGEST, NotJson, decode, items
from editlab.errors import ConfigError

Kind = Literal["parquet", "json", "jsonl", "table", "prose", "empty", "unreadable"]
HEAD = 1 << 16
LONGEST_LINE = 1 << 20  # bytes, within which a first line is looked for
SAVE_AS = "Save the file as UTF-8 text."
_MARK = b"\xef\xbb\xbf"
# How a list or an object begins, and a text with a footnote or in braces does not.
_JSON = re.compile(rb"\[\s*([\[\]{\"]|null|true|false|-?\d+\s*,|$)|\{\s*([}\"']|$)")


@dataclass(frozen=True)
class RawRow:
    """What stands in one place of a file: a value, or why there is none.

    Attributes:
        where: "line 3", "record 3" (of a JSON document) or "row 3" (of Parquet); empty for the file as a whole.
        is_cell: whether the values come from a table's cells, where lists may be spelled as JSON.
    """

    where: str
    value: Any = None
    what: str = ""
    fix: str = ""
    is_cell: bool = False


def sniff(path: Path, columns: frozenset[str]) -> Kind:
    """What the file holds, from its first bytes.

    Args:
        columns: names that make a first line a table's header.

    Raises:
        ConfigError: there is no such file, or it cannot be opened.
    """
    try:
        with path.open("rb") as f:
            head = f.read(HEAD)
            # The first line of JSON lines may be long; a document may have only one.
            head += f.readline(LONGEST_LINE) + f.read(HEAD)
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from None
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(_MARK).lstrip()
    if not text:
        return "empty"
    if b"\0" in head or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "unreadable"
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl") or _JSON.match(text):
        if text.startswith(b"["):
            return "json"
        if text.startswith(b"{"):
            return _json_or_lines(text)
    header = text.partition(b"\n")[0].decode("utf-8", "replace").strip()
    if suffix in (".csv", ".tsv") or len(columns & set(_cells(header))) >= 2:
        return "table"
    by_name: dict[str, Kind] = {".json": "jsonl", ".jsonl": "jsonl", ".parquet": "unreadable"}
    return by_name.get(suffix, "prose")


def _json_or_lines(head: bytes) -> Kind:
    """Whether a text that begins with an object is one document, or an object on each line."""
    line, _, rest = head.partition(b"\n")
    is_open = line.rstrip().endswith((b"{", b"[", b",", b":"))
    return "json" if is_open or not rest.strip() else "jsonl"


def rows(path: Path, kind: Kind) -> Iterator[RawRow]:
    """All rows of a file that `sniff` found to be of this kind."""
    if kind == "parquet":
        yield from _parquet(path)
        return
    if kind == "unreadable":
        what = "cannot be read as UTF-8: it is in another encoding, or no text"
        yield RawRow("", what=what, fix=SAVE_AS)
        return
    with path.open("rb") as f:
        if kind == "json":
            yield from _document(f)
        elif kind == "jsonl":
            yield from _lines(f)
        elif kind == "table":
            yield from _table(f)


def _document(file: BinaryIO) -> Iterator[RawRow]:
    n = 0
    try:
        for value in items(file):
            n += 1
            yield RawRow(f"record {n}", value)
    except NotJson as error:
        yield RawRow(
            f"record {n + 1}", what=f"not valid JSON ({error})", fix="Repair it; what follows could not be read."
        )
    except UnicodeDecodeError as error:
        yield _undecodable(f"record {n + 1}", error)


def _lines(file: BinaryIO) -> Iterator[RawRow]:
    # Not by `splitlines`: JSON strings may hold U+2028 and its like unescaped.
    number = 0
    while line := file.readline(LARGEST):
        number += 1
        where = f"line {number}"
        if len(line) == LARGEST and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST)
            yield RawRow(where, what=f"has more than {LARGEST >> 20} MB", fix="Write one record a line.")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip(" \t\r\n"):
                yield _one_line(where, text)
        except UnicodeDecodeError as error:
            yield _undecodable(where, error)
        except NotJson as error:
            yield RawRow(where, what=f"not valid JSON ({error})", fix="Write one object a line.")


def _one_line(where: str, text: str) -> RawRow:
    return RawRow(where, decode(text))


def _undecodable(where: str, error: UnicodeDecodeError) -> RawRow:
    byte = error.object[error.start]
    return RawRow(where, what=f"cannot be read as UTF-8 (byte 0x{byte:02x})", fix=SAVE_AS)


def _cells(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=_delimiter(line)), [])]
    except csv.Error:
        return []


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _table(file: BinaryIO) -> Iterator[RawRow]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        while line := file.readline(LARGEST):
            number += 1
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")

    source = lines()
    names: list[str] = []
    began = 1
    try:
        header = next((line for line in source if line.strip()), "")
        names = _cells(header.rstrip("\r\n"))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            yield RawRow(f"line {number}", what=f"names the column '{twice[:100]}' twice", fix="Rename one.")
            return
        reader = csv.reader(source, delimiter=_delimiter(header), strict=True)
        while True:
            began = number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(f"line {began}", what=f"not valid CSV ({error})", fix="Check quotes and line ends.")
                continue
            if cells:
                yield _table_row(f"line {began}", names, cells)
    except UnicodeDecodeError as error:
        yield _undecodable(f"line {number}", error)


def _table_row(where: str, names: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(names):
        what = f"has {len(cells)} cells under {len(names)} column names"
        return RawRow(where, what=what, fix="Put cells with separators into double quotes.")
    return RawRow(where, {name: cell for name, cell in zip(names, cells, strict=True) if cell}, is_cell=True)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    n += 1
                    yield RawRow(f"row {n}", {k: v for k, v in row.items() if not _is_missing(v)}, is_cell=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        yield RawRow(f"row {n + 1}" if n else "", what=f"not valid Parquet ({reason})", fix="Write the file anew.")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
