"""What a batch of edits writes into its journal, and the check of what is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from editlab.errors import ResumeRefused


class Planned(TypedDict):
    """What is to be done, with hashes of what it rests on; always the first event."""

    event: Literal["planned"]
    basis: dict[str, str]
    plan: dict[str, Any]
    model: str
    facts: list[dict[str, Any]]


class Started(TypedDict):
    """A chunk of facts is being edited."""

    event: Literal["started"]
    chunk: int


class Committed(TypedDict):
    """A chunk's edit is on the disk; `state` is the hash of the weights that it led to."""

    event: Literal["committed"]
    chunk: int
    edit: str
    digest: str
    state: str
    seconds: FiniteFloat
    rows: list[dict[str, Any]] | None


class Failed(TypedDict):
    """A chunk could not be edited."""

    event: Literal["failed"]
    chunk: int
    reason: str


class Checked(TypedDict):
    """Drift was measured after a chunk."""

    event: Literal["checked"]
    chunk: int
    values: dict[str, FiniteFloat]


class Stopped(TypedDict):
    """A limit was passed."""

    event: Literal["stopped"]
    chunk: int
    reason: str


class Forced(TypedDict):
    """The run was gone on with although this had changed."""

    event: Literal["forced"]
    changed: list[str]


class Finished(TypedDict):
    """Nothing is left to do; `state` is the hash of the final weights."""

    event: Literal["finished"]
    state: str


_EVENT: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        Planned | Started | Committed | Failed | Checked | Stopped | Forced | Finished, Field(discriminator="event")
    ],
)


def check_events(events: Sequence[Mapping[str, Any]], where: object) -> None:
    """Raise ResumeRefused unless these are events of a batch, planned once and before anything else."""
    for number, event in enumerate(events, 1):
        try:
            _EVENT.validate_python(event, strict=True)
            damaged = (event["event"] == "planned") != (number == 1)
        except ValidationError:
            damaged = True
        if damaged:
            raise ResumeRefused(
                f"Line {number} of the journal in '{where}' is damaged, or of another kind of run.",
                "Start a new run; this one cannot be gone on with.",
            )
