"""From whatever a user wrote to a validated config object, all problems in one message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from editlab.errors import ConfigError, did_you_mean


class MethodConfig(BaseModel):
    """Base of every method's settings: frozen, unknown keys refused. Fields carry their help text and range."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=BaseModel)


def build(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """`model` from `values`.

    Raises:
        ConfigError: every invalid or unknown key, in one message that starts with `where`.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        known = list(model.model_fields)
        lines = []
        for e in error.errors():
            field = ".".join(str(part) for part in e["loc"])
            if e["type"] == "extra_forbidden":
                lines.append(f"there is no setting '{field}'. {did_you_mean(field, known)}")
            else:
                lines.append(f"'{field}' = {e['input']!r}: {e['msg'].removeprefix('Value error, ')}")
        raise ConfigError(f"Settings of {where}: {'; '.join(lines)}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with a mapping at its top.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}.") from None
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
        except yaml.YAMLError:
            raise ConfigError(f"The value of '{pair}' cannot be read.") from None
    return out


def _scalar(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() and text.lower() not in {"true", "false"} else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
