"""Run folders as they lie on the disk: what each is, and whether it came to its end.

There is no index: folders are looked at when they are asked for, so that they can be copied or deleted by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from editlab.errors import EditlabError, ResumeRefused
from editlab.runs.batch import is_finished
from editlab.runs.journal import NAME as JOURNAL
from editlab.runs.journal import Journal

RunState = Literal["complete", "stopped", "interrupted", "unreadable"]


class _Base(TypedDict):
    name: str


class _Edited(TypedDict):
    fires: bool


class _Manifest(TypedDict):
    """What is read of a manifest here."""

    kind: str
    written: str
    base: _Base
    edits: list[_Edited]
    state: NotRequired[Literal["complete", "stopped"]]
    config: NotRequired[dict[str, Any]]
    undone: NotRequired[list[Any]]


_MANIFEST = TypeAdapter(_Manifest)


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    Attributes:
        state: "stopped" by a stop rule, "interrupted" where something is left to do, "unreadable" without a sound
            manifest or journal.
        manifest: its contents; empty for a run that was interrupted, whose model and edits come from its journal.
    """

    folder: Path
    kind: str
    state: RunState
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)
    planned_model: str | None = None
    committed: int | None = None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def is_batch(self) -> bool:
        """It is a batch of edits: it has a journal, with its plan and its facts."""
        return self.kind == "edit" and (self.folder / JOURNAL).is_file()

    @property
    def written(self) -> str | None:
        """UTC time, ISO 8601."""
        return self.manifest.get("written")

    @property
    def model(self) -> str | None:
        """The name of the model it ran on."""
        return self.manifest["base"]["name"] if self.manifest else self.planned_model

    @property
    def edits(self) -> int | None:
        """How many facts were edited."""
        return len(self.manifest["edits"]) if self.manifest else self.committed

    @property
    def fired(self) -> int | None:
        """How many of them are answered with the new target."""
        return sum(edit["fires"] for edit in self.manifest["edits"]) if self.manifest else None

    @property
    def headline(self) -> str:
        """What came out, in a few words."""
        if self.manifest.get("headline"):
            return str(self.manifest["headline"])
        if not (self.manifest and self.edits):
            return ""
        undone = len(self.manifest.get("undone", []))
        since = f"; {undone} edit{'' if undone == 1 else 's'} undone since" if undone else ""
        return f"{self.fired} of {self.edits} facts fire{since}"


def list_runs(root: Path) -> list[RunRecord]:
    """The run folders directly under `root`, by name: those that began, and those that have a manifest."""
    marked = {path.parent for mark in ("manifest.json", JOURNAL) for path in root.glob(f"*/{mark}")}
    return [read_record(folder) for folder in sorted(marked)]


def read_record(folder: Path) -> RunRecord:
    """What a run folder is."""
    if (folder / "manifest.json").is_file():
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            _MANIFEST.validate_python(manifest, strict=True)
            return RunRecord(folder, manifest["kind"], manifest.get("state", "complete"), manifest)
        except (OSError, ValueError, RecursionError):
            return RunRecord(folder, "", "unreadable")
    try:
        events = Journal(folder).events
        committed = sum(event["event"] == "committed" for event in events)
        state: RunState = "complete" if is_finished(folder) else "interrupted"
        kind, model = events[0].get("kind", "edit"), events[0]["model"]
        if not isinstance(kind, str) or not isinstance(model, str):
            raise ValueError("names are text")
        return RunRecord(folder, kind, state, {}, model, committed)
    except (EditlabError, OSError, ValueError, KeyError, IndexError):
        return RunRecord(folder, "", "unreadable")


def finished_state(folder: Path) -> str:
    """Hash of the weights that a finished run led to, less what was undone since.

    Raises:
        ResumeRefused: its manifest is missing or damaged.
    """
    record = read_record(folder)
    state = record.manifest.get("state_hash")
    if not isinstance(state, str):
        raise ResumeRefused(
            f"'{folder}' is finished, but its manifest.json is missing or damaged.",
            "Put it back as it was, or start a new run.",
        )
    return state


def recorded_mode(folder: Path) -> str:
    """How a run's edits are to be scored: "single" if each was undone before the next."""
    mode = read_record(folder).manifest.get("config", {}).get("mode")
    return "single" if mode == "single" else "together"
