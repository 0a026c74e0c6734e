"""The few errors that editlab raises on purpose.

Each carries what happened, why, and what to do about it, so that the terminal, the app and a notebook
can show the same sentence. `exit_code` is what the command line ends with.
"""

from __future__ import annotations

import errno
import os
import re


class EditlabError(Exception):
    """A mistake or limit that the user can act on.

    Args:
        what: one sentence: what was asked and what went wrong.
        fix: one sentence: what to do now. May be empty when `what` says it.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} {fix}".strip())


class ConfigError(EditlabError):
    """A setting, file or option is invalid."""

    exit_code = 2


class UnknownName(ConfigError):
    """No method, model, site or ledger entry has this name."""


class RequestError(ConfigError):
    """An edit request cannot be carried out as written (subject, prompt or target)."""


class PackError(ConfigError):
    """An edit pack is unsafe, damaged, or was made for other weights."""


class WriteFailed(EditlabError):
    """The system does not let a file be written: no space, no permission, no such place."""


class ModelError(EditlabError):
    """A model or data set is missing, incomplete or unsupported."""

    exit_code = 3


class AdapterError(ModelError):
    """The structure of the model was not recognised, or failed its numeric proof."""


class SiteUnavailable(ConfigError):
    """The site does not exist in this architecture, or cannot be written there."""


class SiteNotReached(EditlabError):
    """A hook was registered and the forward pass never came by."""


class StaleState(EditlabError):
    """A cached state was made by weights that have changed since."""


class EditFailed(EditlabError):
    """The method ran and the result is not an edit (no weight changed, or the optimiser diverged)."""


class ResumeRefused(EditlabError):
    """A run cannot be gone on with: what it rests on has changed."""

    exit_code = 7


class RunBusy(EditlabError):
    """Another process is writing this run."""

    exit_code = 8


class Interrupted(EditlabError):
    """The user stopped the work; what was done so far is kept and can be resumed."""

    exit_code = 130


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def system_cause(error: BaseException) -> str:
    """What the operating system said, in words, for an error of a library that it passed through."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (named := re.search(r"\(os error (\d+)\)", str(error))):  # as Rust's libraries write it
        number = int(named[1])
    if number in _FULL or "disk is full" in str(error):  # SQLite has no numbers
        return "the disk is full"
    lines = str(error).strip().splitlines()
    return os.strerror(number).lower() if number is not None else (lines[0] if lines else type(error).__name__)


def is_disk_full(error: BaseException) -> bool:
    """Whether this is a disk that is full, in any of the forms that Python and libraries give it."""
    return system_cause(error) == "the disk is full"


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint that lists `known`, led by the closest match to `name`."""
    import difflib

    close = difflib.get_close_matches(str(name), known, n=1)  # a notebook may hand in anything
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Available: {', '.join(sorted(known))}."


def short(text: str) -> str:
    """A text as it is quoted in a message."""
    text = text if len(text) <= 100 else text[:97] + "..."
    return text.encode(errors="backslashreplace").decode()
