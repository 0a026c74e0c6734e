"""From whatever a user wrote to a validated config object, all problems in one message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from editlab.errors import ConfigError, did_you_mean, short


class MethodConfig(BaseModel):
    """Base of every method's settings: frozen, unknown keys refused. Fields carry their help text and range."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_by_accident(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes, no, on and off as booleans, and a boolean passes for the number 0 or 1.
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not Any and bool not in (kind, *get_args(kind)):
            raise ValueError("is a yes or no here; put quotes around a text")
        return value


C = TypeVar("C", bound=BaseModel)
MOST = 10  # problems that are listed
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml, 3,000 brackets take seconds to refuse


def build(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """`model` from `values`.

    Raises:
        ConfigError: the invalid and unknown keys, ten at most, in one message that starts with `where`.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        known = list(model.model_fields)
        lines = []
        for e in error.errors():
            field = short(".".join(str(part) for part in e["loc"]))
            if e["type"] == "extra_forbidden":
                lines.append(f"there is no setting '{field}'. {did_you_mean(field, known)}")
            else:
                given = short(repr(e["input"]))
                lines.append(f"'{field}' = {given}: {e['msg'].removeprefix('Value error, ')}")
        more = f"; and {len(lines) - MOST} more" if len(lines) > MOST else ""
        raise ConfigError(f"Settings of {where}: {'; '.join(lines[:MOST])}{more}") from None


def settings_of(model: type[BaseModel]) -> list[dict[str, Any]]:
    """One row per setting: name, default, range and description, of plain values."""
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append(
            {
                "name": name,
                "default": None if field.is_required() else default,
                "range": _range(field),
                "description": field.description or "",
            }
        )
    return rows


def _range(field: FieldInfo) -> str:
    """What a value may be: "0 to 500", "above 0", "a, b or c", or the name of its type."""
    is_union = get_origin(field.annotation) in (UnionType, Literal)
    kinds = [k for k in (get_args(field.annotation) if is_union else (field.annotation,)) if k is not type(None)]
    if get_origin(field.annotation) is Literal:
        return " or ".join(", ".join(map(str, kinds)).rsplit(", ", 1))
    bounds = {n: getattr(m, n) for m in field.metadata for n in ("ge", "gt", "le", "lt") if hasattr(m, n)}
    if "ge" in bounds and "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    if bounds:
        return ", ".join(f"{words[n]} {value}" for n, value in bounds.items())
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if dict in (field.annotation, get_origin(field.annotation)):
        return "a mapping"
    if kinds and get_origin(kinds[0]) is tuple:
        return "a list"
    is_plain = get_origin(field.annotation) in (None, UnionType)
    return names.get(kinds[0], "") if is_plain and len(kinds) == 1 else str(field.annotation)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with a mapping at its top.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.", "Name a YAML file with settings.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: 2020-13-45 is no date
        raise ConfigError(
            f"'{path}' is not valid YAML: {' '.join(str(error).split())}.",
            "Write settings as 'name: value' lines, and quotes around texts.",
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' must hold settings as 'name: value' lines.")
    return value


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["lr=0.1", "steps=20"]` as a mapping; values are read as YAML scalars."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ConfigError(f"'{pair}' is not a setting.", "Write name=value.")
        try:
            out[name.strip().replace("-", "_")] = _scalar(value)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise ConfigError(
                f"The value of '{pair}' cannot be read.", "Write name=value, and quotes around a text."
            ) from None
    return out


def _scalar(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
