"""Files of facts and of related records, in the layouts that the field publishes and in editlab's own.

    facts = load_facts("counterfact.json")
    loaded = load_records("known_1000.json", skip_malformed=True)
    print(check("mine.csv").text())

A layout is one module of this package with a `LAYOUT` (see `base`), found without a list; the page of the same name
describes it. Nothing is guessed silently: a row that cannot be used is a `Problem` with file, row, field and fix, and
a choice that had to be made is a note.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from editlab.data.formats import files
from editlab.data.formats.base import Flaw, Layout, Malformed
from editlab.data.formats.json_text import NotJson, decode
from editlab.data.formats.report import Note, Problem, Report
from editlab.errors import ConfigError, RequestError, UnknownName, did_you_mean, short
from editlab.facts import Fact
from editlab.joining import PREFIXES, check_prefix

__all__ = [
    "Layout",
    "Loaded",
    "Note",
    "Problem",
    "Report",
    "check",
    "facts_of",
    "iter_records",
    "layouts",
    "load_facts",
    "load_records",
    "read_fact",
]
HEADER = "target_prefix"  # a first record with this field alone is a header
LOOKED_AT = 100  # rows at the start of a file, in which its layout is looked for


@cache
def layouts() -> dict[str, Layout]:
    """All layouts by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        layout = getattr(importlib.import_module(f"{__name__}.{module.name}"), "LAYOUT", None)
        if isinstance(layout, Layout):
            found[layout.name] = layout
    return found


@dataclass(frozen=True)
class Loaded:
    """The records of one file.

    Attributes:
        records: all of one kind, in the order of the file. layout: how they were written down.
        report: what was skipped and what is to be known.
    """

    records: tuple[BaseModel, ...]
    layout: Layout
    report: Report


def read_fact(row: Any, where: str = "The request") -> Fact:
    """A fact from a row in any layout that holds facts.

    Raises:
        RequestError: with `where`, the field, and what is wrong.
    """
    if isinstance(row, Fact):
        return row
    if not isinstance(row, dict):
        raise RequestError(f"{where} is {type(row).__name__}, not an object with prompt, subject and target_new.")
    try:
        layout = _layout_of(row) or layouts()["rows"]
        made = layout.convert(row, lambda field, what: None)
    except Malformed as error:
        said = [str(Problem("", "", flaw.field, flaw.what, flaw.fix)) for flaw in error.flaws]
        raise RequestError(f"{where}: {' '.join(said)}") from None
    if not isinstance(made, Fact):
        raise RequestError(f"{where} is one of the {layout.holds} of {layout.title}, not a fact.", layout.use)
    return made


def iter_records(path: str | Path, layout: str | None = None) -> Iterator[BaseModel | Problem]:
    """The records of a file one after the other, with a `Problem` in the place of what cannot be read.

    Args:
        layout: the name of a layout; seen from the rows if left out.

    Raises:
        ConfigError: there is no such file. UnknownName: there is no such layout.
    """
    reading = _Reading(Path(path), layout)
    return (item for item in reading if not isinstance(item, Note))


def load_records(
    path: str | Path,
    *,
    layout: str | None = None,
    skip_malformed: bool = False,
    target_prefix: str | None = None,
) -> Loaded:
    """All records of a file.

    Args:
        target_prefix: of the facts that do not say it themselves, over what the file says of all of them.

    Raises:
        RequestError: rows are malformed and not to be skipped, or there is no record; with the whole report.
        ConfigError: the file is missing or is no file of records. UnknownName: there is no such layout.
    """
    reading = _Reading(Path(path), layout, target_prefix)
    if reading.kind == "prose":
        raise RequestError(
            f"'{path}' holds no record: it is plain text.", "Name it where text is asked for, as in 'editlab stats'."
        )
    records = tuple(item for item in reading if not isinstance(item, Problem))
    report = reading.report
    if report.problems and (not skip_malformed or not report.problems[0].row):
        raise RequestError(report.text(), "Correct them, or leave them out with skip_malformed.")
    if reading.layout is None or not records:
        raise RequestError(f"'{path}' holds no fact and no other record.", report.text() if report.problems else "")
    return Loaded(records, reading.layout, report)


def load_facts(path: str | Path, *, skip_malformed: bool = False, target_prefix: str | None = None) -> list[Fact]:
    """The facts of a file in any layout that holds facts.

    Raises:
        RequestError: rows are malformed and not to be skipped (all of them are named), or the file holds no fact.
        ConfigError: the file is missing.
    """
    return facts_of(load_records(path, skip_malformed=skip_malformed, target_prefix=target_prefix))


def facts_of(loaded: Loaded) -> list[Fact]:
    """The records of a file if they are facts.

    Raises:
        RequestError: they are something else.
    """
    facts = [record for record in loaded.records if isinstance(record, Fact)]
    if not facts:
        layout = loaded.layout
        raise RequestError(f"'{loaded.report.file}' holds {layout.holds} of {layout.title}.", layout.use)
    return facts


def check(path: str | Path) -> Report:
    """What a file holds and everything that is wrong with it, without keeping its records.

    Raises:
        ConfigError: there is no such file.
    """
    reading = _Reading(Path(path), None)
    if reading.kind == "prose":
        return _check_prose(Path(path))
    for _ in reading:
        pass
    return reading.report


def _check_prose(path: Path) -> Report:
    from editlab.data.corpus import load_corpus

    report = Report(path.name, holds="passages of plain text")
    try:
        report.records = report.rows = len(load_corpus(path).passages)
    except ConfigError as error:
        report.problems.append(Problem(path.name, "", "", error.what.rstrip("."), files.SAVE_AS))
    return report


def _layout_of(row: dict[str, Any]) -> Layout | None:
    """The layout that a row is written in, or None.

    Raises:
        Malformed: it could be several.
    """
    for is_general in (False, True):
        found = [x for x in layouts().values() if x.is_general is is_general and x.matches(row)]
        if len(found) > 1:
            marks = [next(mark for mark in x.marks if mark in row) for x in found]
            names = " and ".join(x.name for x in found)
            raise Malformed(Flaw("", f"has fields of {names} ({', '.join(marks)})", "Keep those of one layout."))
        if found:
            return found[0]
    return None


class _Reading:
    """One pass through a file: yields records, problems and notes, and keeps the report."""

    def __init__(self, path: Path, layout: str | None, target_prefix: str | None = None) -> None:
        known = layouts()
        if layout is not None and layout not in known:
            raise UnknownName(f"There is no layout '{layout}'.", did_you_mean(layout, list(known)))
        self.layout = known[layout] if layout is not None else None
        self.path = path
        self._given = {} if target_prefix is None else {HEADER: check_prefix(target_prefix)}
        self._header: dict[str, Any] = {}
        self._nested = frozenset(name for x in known.values() for name in x.nested)
        self.kind = files.sniff(path, self._nested | {mark for x in known.values() for mark in x.marks})
        self.report = Report(path.name)
        self._ids: dict[str, str] = {}
        self._places: dict[bytes, list[str]] = {}

    def __iter__(self) -> Iterator[BaseModel | Problem]:
        raw = files.rows(self.path, self.kind)
        ahead: list[files.RawRow] = []
        while self.layout is None and len(ahead) < LOOKED_AT and (row := next(raw, None)) is not None:
            ahead.append(row)
            self.layout = self._seen_in(row)
        if self.layout is not None:
            self.report.layout, self.report.holds = self.layout.name, self.layout.holds
        for row in chain(ahead, raw):
            self.report.rows += bool(row.where)
            try:
                yield from self._record(row)
            except Malformed as error:
                for flaw in error.flaws:
                    yield self._problem("" if error.whole_file else row.where, flaw)
                if error.whole_file:
                    return
        self.report.same_place = [tuple(rows) for rows in self._places.values() if len(rows) > 1]
        if self.report.rows == 0 and not self.report.problems:
            yield self._problem("", Flaw("", "holds no fact and no other record", "Put at least one record into it."))

    def _seen_in(self, row: files.RawRow) -> Layout | None:
        """The layout that one row shows, if it shows one."""
        try:
            return _layout_of(self._decoded(row)) if isinstance(row.value, dict) else None
        except Malformed:
            return None

    def _record(self, row: files.RawRow) -> Iterator[BaseModel | Problem]:
        if row.what:
            raise Malformed(Flaw("", row.what, row.fix))
        if not isinstance(row.value, dict):
            what = f"is {type(row.value).__name__}, not an object"
            raise Malformed(Flaw("", what, "Write one object for each record."))
        value = self._decoded(row)
        if self.report.rows == 1 and set(value) == {HEADER} and not self._header:
            self._take_header(value)
            return
        layout = self._agreed(value)
        if layout.record is Fact:
            value = self._header | self._given | value
        notes: list[tuple[str, str]] = []
        made = layout.convert(value, lambda field, what: notes.append((field, what)))
        made = self._identified(made, row.where)
        for field, what in notes:
            note = Note(self.path.name, row.where, field, what)
            self.report.notes.append(note)
            yield note
        self.report.records += 1
        if isinstance(made, Fact) and made.has_subject:
            place = hashlib.sha256(f"{made.before}\0{made.subject}".encode()).digest()
            self._places.setdefault(place, []).append(row.where)
        yield made

    def _take_header(self, row: dict[str, Any]) -> None:
        """What a first record says of all others."""
        if row[HEADER] not in PREFIXES:
            raise Malformed(
                Flaw(HEADER, f"is {short(str(row[HEADER]))}", f"Use one of {', '.join(PREFIXES)}."), whole_file=True
            )
        self._header = row
        self.report.rows = 0

    def _agreed(self, row: dict[str, Any]) -> Layout:
        """The file's layout, unless the row is plainly of another."""
        layout = self.layout
        if layout is None:
            fields = ", ".join(short(str(name)) for name in list(row)[:6]) or "none"
            known = ", ".join(sorted(layouts()))
            flaw = Flaw("", f"is of no known layout: its fields are {fields}", f"Known: {known}. See 'editlab cat'.")
            raise Malformed(flaw, whole_file=True)
        if not layout.matches(row) or layout.is_general:
            other = _layout_of(row)
            if other is not None and other is not layout and not other.is_general:
                fix = "Put records of different kinds into different files."
                raise Malformed(Flaw("", f"is of the layout {other.name}, the file is of {layout.name}", fix))
        return layout

    def _identified(self, record: BaseModel, where: str) -> BaseModel:
        """The record with an id, its own or its number in the file; no two may have the same."""
        given = getattr(record, "id", "")
        id = given or str(self.report.rows - 1)
        if id in self._ids:
            whose = f"'{short(id)}'" if given else f"'{id}' (its number, for it has none)"
            raise Malformed(Flaw("id", f"{whose} is the id of {self._ids[id]} too", "Give every row its own id."))
        self._ids[id] = where
        return record if given else record.model_copy(update={"id": id})

    def _problem(self, where: str, flaw: Flaw) -> Problem:
        problem = Problem(self.path.name, where, flaw.field, flaw.what, flaw.fix)
        self.report.problems.append(problem)
        return problem

    def _decoded(self, row: files.RawRow) -> dict[str, Any]:
        """The row; of a table's, with those cells decoded that spell a list or an object."""
        made: dict[str, Any] = dict(row.value)
        if not row.is_cell:
            return made
        for name in self._nested & set(made):
            cell = made[name]
            if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
                try:
                    made[name] = decode(cell)
                except NotJson as error:
                    raise Malformed(
                        Flaw(name, f"not valid JSON ({error})", 'Write JSON, like ["...", "..."].')
                    ) from None
        return made
