"""Results that can be written to a folder and read back, whatever they hold.

    found = lm.locate("The capital of {} is", "France")
    found.save("trace")
    Trace.load("trace").plot()

A result is a dataclass of numbers, texts, containers, arrays, tables, settings and further dataclasses. `result.json`
has its structure, `arrays.safetensors` and `table-N.parquet` what is large. Reading executes nothing: classes are
looked up among editlab's own dataclasses and settings, and filled.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editlab.errors import ConfigError
from editlab.state.files import filled_or_removed, folder_for, write_json, write_tensors, write_whole

NAME, ARRAYS = "result.json", "arrays.safetensors"
_KIND = "$"  # the key that tells what a JSON object stands for


class Saved:
    """What a result dataclass inherits to have `save` and `load`."""

    def save(self, folder: str | Path) -> Path:
        """Write it into a folder that has nothing of that kind yet; the folder.

        Raises:
            ConfigError: a result is there already. WriteFailed: the system does not let it be written; nothing is left.
        """
        arrays: dict[str, Tensor] = {}
        tables: list[pd.DataFrame] = []
        found = _packed(self, arrays, tables)
        folder = folder_for(folder, NAME, "a result")
        with filled_or_removed(folder):
            write_tensors(folder / ARRAYS, arrays)
            for number, table in enumerate(tables):
                write_whole(folder / f"table-{number}.parquet", partial(table.to_parquet))
            write_json(folder / NAME, {"schema_version": 1, "result": found})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The result that was saved in `folder`.

        Raises:
            ConfigError: there is none, it is of another kind, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / NAME).is_file():
            raise ConfigError(f"'{folder}' holds no result: there is no {NAME}.", "Save one with result.save(folder).")
        try:
            arrays = load_file(folder / ARRAYS)
            found = json.loads((folder / NAME).read_text(encoding="utf-8"))["result"]
            result = _unpacked(found, arrays, lambda number: pd.read_parquet(folder / f"table-{number}.parquet"))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, SafetensorError) as error:
            raise ConfigError(f"The result in '{folder}' is damaged, or of another version: {error}.") from None
        if not isinstance(result, cls):
            raise ConfigError(f"'{folder}' holds a {type(result).__name__}, not a {cls.__name__}.")
        return result


def _packed(value: Any, arrays: dict[str, Tensor], tables: list[pd.DataFrame]) -> Any:
    """The value as JSON holds it; arrays and tables are put aside."""
    again = partial(_packed, arrays=arrays, tables=tables)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_KIND: "float", "value": str(value)}
    if isinstance(value, tuple | list):
        items = [again(item) for item in value]
        return items if isinstance(value, list) else {_KIND: "tuple", "items": items}
    if isinstance(value, dict):
        return {_KIND: "dict", "items": [[again(key), again(item)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        return {_KIND: "tensor", "name": _aside(value.detach().cpu().clone(), arrays)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return {_KIND: "array", "name": _aside(torch.from_numpy(np.array(value, order="C")), arrays)}
        return {_KIND: "list array", "items": again(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, pd.DataFrame):
        tables.append(value)
        return {_KIND: "table", "number": len(tables) - 1}
    if isinstance(value, BaseModel):
        return {_KIND: "settings", "of": _name(value), "value": value.model_dump_json()}
    if is_dataclass(value) and not isinstance(value, type):
        return {_KIND: "class", "of": _name(value)} | {
            "fields": {f.name: again(getattr(value, f.name)) for f in fields(value) if f.init}
        }
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def _aside(array: Tensor, arrays: dict[str, Tensor]) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name


def _name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _unpacked(found: Any, arrays: dict[str, Tensor], table: Callable[[int], pd.DataFrame]) -> Any:
    """What `_packed` was given."""
    again = partial(_unpacked, arrays=arrays, table=table)
    if isinstance(found, list):
        return [again(item) for item in found]
    if not isinstance(found, dict):
        return found
    match found[_KIND]:
        case "float":
            return float(found["value"])
        case "tuple":
            return tuple(again(item) for item in found["items"])
        case "dict":
            return {again(key): again(item) for key, item in found["items"]}
        case "tensor":
            return arrays[found["name"]]
        case "array":
            return arrays[found["name"]].numpy()
        case "list array":
            return np.array(again(found["items"]), dtype=found["dtype"])
        case "table":
            return table(found["number"])
        case "settings":
            return _class(found["of"], BaseModel).model_validate_json(found["value"])
        case "class":
            return _class(found["of"], None)(**{name: again(item) for name, item in found["fields"].items()})
    raise ValueError(f"there is no kind '{found[_KIND]}'")


def _class(name: str, base: type | None) -> Any:
    """A class of editlab: settings, or a dataclass.

    Raises:
        ValueError: it is anything else.
    """
    module, _, path = name.partition(":")
    if module.split(".")[0] != "editlab":
        raise ValueError(f"'{name}' is not of editlab")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not isinstance(found, type) or not (is_dataclass(found) if base is None else issubclass(found, base)):
        raise ValueError(f"'{name}' is no result")
    return found
