"""What a layout is: how its rows are recognised, and how one becomes a record.

A layout is one module of this package with a `LAYOUT`. It recognises rows by their fields, never by the file's name,
and converts one row at a time. What is wrong with a row is a `Malformed` that names the field as the file has it;
what a reader should know although the row is usable goes to `note`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from editlab.errors import short
from editlab.facts import LONGEST, Fact

Row = dict[str, Any]
Note = Callable[[str, str], None]  # field, what
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong with a row: the field as the file has it, what it is, what to do."""

    field: str
    what: str
    fix: str = ""


class Malformed(ValueError):
    """A row cannot be converted.

    Attributes:
        flaws: all that is wrong with it.
        whole_file: nothing else in the file can be of use either.
    """

    def __init__(self, *flaws: Flaw, whole_file: bool = False) -> None:
        self.flaws = flaws
        self.whole_file = whole_file
        super().__init__("; ".join(f"{flaw.field}: {flaw.what}" for flaw in flaws))


@dataclass(frozen=True)
class Layout:
    """One published way to write records down.

    Attributes:
        name: of the module, in the command line. title: for people. source: where it is published.
        marks: the fields that tell it from others. nested: those that hold lists or objects, which a table's cell
            spells as JSON.
        record: what a row becomes. holds: what such rows are, in the plural. use: the sentence for whoever
            expected something else.
        matches: whether a row is of this layout, by its fields. convert: a row's record; raises `Malformed`.
        is_general: asked last, because it also accepts what is hardly recognisable.
    """

    name: str
    title: str
    source: str
    marks: tuple[str, ...]
    record: type[BaseModel]
    matches: Callable[[Row], bool]
    convert: Callable[[Row, Note], BaseModel]
    nested: frozenset[str] = frozenset()
    holds: str = "facts"
    use: str = "They are for editing."
    is_general: bool = False


def build(record: type[Record], values: Row, row: Row, names: Mapping[str, str] | None = None) -> Record:
    """The validated record of `values`.

    Args:
        row: as the file has it. names: what our fields are called there, where that differs; dotted when nested.

    Raises:
        Malformed: with every field that is wrong.
    """
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise Malformed(*(_flaw(dict(e), record, row, names or {}) for e in error.errors())) from None


def _flaw(error: dict[str, Any], record: type[BaseModel], row: Row, names: Mapping[str, str]) -> Flaw:
    where = [str(part) for part in error["loc"]]
    if not where:
        return Flaw(names.get("prompt", "prompt"), _message(error["msg"]))
    theirs = names.get(where[0], where[0])
    if where[0] in names and len(where) == 2 and not isinstance(lookup(row, theirs), list):
        where = where[:1]  # a single text, of which we made a list
    field = short(".".join([theirs, *where[1:]]))
    value, kind = error["input"], error["type"]
    if kind == "missing" or (value is None and kind != "extra_forbidden"):
        return Flaw(field, "Field required", "Give it a value.")
    if kind == "extra_forbidden":
        close = get_close_matches(where[-1][:100], list(record.model_fields), n=1) if len(where) == 1 else []
        return Flaw(
            field,
            f"{error['msg']} in {record.__name__.lower()} rows",
            f"Did you mean '{close[0]}'?" if close else "Remove it or correct its name.",
        )
    if kind == "string_type":
        fix = f'Quote this value: "{short(str(value))}".' if is_number(value) else "Write one text in quotes."
        return Flaw(field, f"{error['msg']}, is {kind_of(value)}", fix)
    if kind == "tuple_type":
        return Flaw(field, f"{error['msg']}, is {kind_of(value)}", 'Write a list: ["...", "..."].')
    fix = f"Cut it to {LONGEST:,} characters." if "characters, more than" in error["msg"] else ""
    return Flaw(field, _message(error["msg"]), fix)


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")


def lookup(row: Row, path: str) -> Any:
    """What stands at a dotted path, or None."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def is_number(value: object) -> bool:
    """Whether it is a number, to which yes and no do not belong."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind_of(value: object) -> str:
    """What a value is, for people."""
    if isinstance(value, bool):
        return "true or false"
    if is_number(value):
        return "a number"
    names = {str: "text", list: "a list", tuple: "a list", dict: "an object", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")


def identity(row: Row, *fields: str) -> str:
    """The row's id as text, from the first of `fields` that it has; empty if it has none.

    Raises:
        Malformed: it is neither text nor a whole number.
    """
    for field in fields:
        value = row.get(field)
        if value is None:
            continue
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
        raise Malformed(Flaw(field, f"is {kind_of(value)}", "Use text or a whole number."))
    return ""


def texts(value: Any) -> Any:
    """A list of texts where a layout has one or several; what is neither is left for validation to refuse."""
    return [] if value is None or value == "" else value if isinstance(value, list) else [value]


def first(value: Any) -> Any:
    """The usual answer where a layout has one or a list of them."""
    return (value[0] if value else None) if isinstance(value, list) else value


def fact(values: Row, row: Row, names: Mapping[str, str], note: Note) -> Fact:
    """A fact of a published layout, all of which name subjects, with a remark where the edit would change nothing.

    Raises:
        Malformed: with every field that is wrong.
    """
    values |= {name: row[name] for name in ("target_prefix", "target_prefix_by") if name in row}
    subject, prompt = values.get("subject"), values.get("prompt")
    if (subject is None or subject == "") and isinstance(prompt, str) and "{}" not in prompt:
        values = {**values, "prompt": prompt + "{}"}  # so that the subject is missed
    made = build(Fact, values, row, names)
    if made.target_new == made.target_true:
        note(names.get("target_new", "target_new"), "is also the true answer: the edit asks for what holds already")
    return made
