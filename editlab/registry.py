"""Finding plug-ins: the modules of a package, and the entry points of other packages.

A new editing method is one file in `editlab/edits/methods/`; a package of its own can offer one under the entry-point
group `editlab.methods`. Nothing is imported until a name is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from editlab.errors import ConfigError, UnknownName, did_you_mean

PACKAGES = {"methods": "editlab.edits.methods"}
CONTRACTS = {"methods": ("Config", "compute")}


def names(kind: str = "methods") -> list[str]:
    """Names of all plug-ins of a kind, sorted; `rome_legacy.py` is called `rome-legacy`."""
    package = importlib.import_module(PACKAGES[kind])
    found = {m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(found | {e.name for e in entry_points(group=f"editlab.{kind}")})


def get(name: str, kind: str = "methods") -> Any:
    """The plug-in called `name`.

    Raises:
        UnknownName: there is none. ConfigError: the module lacks a name of the contract.
    """
    known = names(kind)
    name = name.strip().lower().replace("_", "-")
    if name not in known:
        raise UnknownName(f"There is no {kind.rstrip('s')} '{name}'.", did_you_mean(name, known))
    module: ModuleType
    external = {e.name: e for e in entry_points(group=f"editlab.{kind}")}
    if name in external:
        module = external[name].load()
    else:
        module = importlib.import_module(f"{PACKAGES[kind]}.{name.replace('-', '_')}")
    missing = [n for n in CONTRACTS[kind] if not hasattr(module, n)]
    if missing:
        raise ConfigError(f"'{module.__name__}' is no {kind.rstrip('s')}: it lacks {', '.join(missing)}.")
    return module
