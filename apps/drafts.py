"""What a tab has not saved, kept beside the runs, so that a reload or a crash does not lose it.

A draft is an edit pack under `runs/.drafts`, one a session. Its owner rewrites it when the ledger has changed and drops
it when there is nothing to lose any more. Another session gets a copy of it, never the ledger itself. Not on a shared
server, where a new session cannot be told from another person's.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from editlab.errors import EditlabError
from editlab.state.packs.reading import read_manifest

from .session import Lab
from .sharing import is_shared

FOLDER = ".drafts"


@dataclass(frozen=True)
class Draft:
    """Unsaved edits of another session, on the weights that are loaded."""

    folder: Path
    edits: int
    written: datetime


def keep(lab: Lab) -> None:
    """Write what this session has not saved, if that has changed since it was last written."""
    if is_shared():
        return
    folder = lab.runs_root / FOLDER / lab.id
    if not lab.is_unsaved:
        drop(folder)
        lab.drafted = ""
    elif lab.drafted != lab.state:
        lab.lm.save_edits(folder)
        lab.drafted = lab.state


def drop(folder: Path) -> None:
    """Forget a draft."""
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others' drafts may be there
            folder.parent.rmdir()


def of_others(lab: Lab) -> list[Draft]:
    """The drafts that this session may copy, the latest first."""
    found = []
    for path in (lab.runs_root / FOLDER).glob("*/pack.json"):
        try:
            manifest = read_manifest(path.parent)
            written = datetime.fromtimestamp(path.stat().st_mtime)
        except (EditlabError, OSError):  # its owner may have saved it in the meantime
            continue
        if path.parent.name != lab.id and manifest.base.base_hash == lab.lm.base_hash:
            found.append(Draft(path.parent, manifest.n_active, written))
    return sorted(found, key=lambda draft: draft.written, reverse=True)
