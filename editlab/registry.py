"""Finding plug-ins: the modules of a package, and the entry points of other packages.

A new editing method is one file in `editlab/edits/methods/`, a new probe of prompts one in `editlab/probes/prompts/`; a
package of its own can offer one under the entry-point group `editlab.methods` or `editlab.probes`. Nothing is imported
until a name is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from editlab.errors import ConfigError, UnknownName, did_you_mean

PACKAGES = {
    "methods": "editlab.edits.methods",
    "memories": "editlab.memories.kinds",
    "probes": "editlab.probes.prompts",
}
NOUNS = {"methods": "method", "memories": "kind of memory", "probes": "probe"}
CONTRACTS = {"methods": ("Config", "compute"), "memories": ("layer",), "probes": ("Config", "run")}


def names(kind: str = "methods") -> list[str]:
    """Names of all plug-ins of a kind, sorted; `rome_legacy.py` is called `rome-legacy`."""
    package = importlib.import_module(PACKAGES[kind])
    found = {_plain(m.name) for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(found | set(_external(kind)))


def get(name: str, kind: str = "methods") -> Any:
    """The plug-in called `name`.

    Raises:
        UnknownName: there is none. ConfigError: the module cannot be imported, lacks a name of the contract, or two
            plug-ins have this name.
    """
    known = names(kind)
    name = _plain(name)
    if name not in known:
        raise UnknownName(f"There is no {NOUNS[kind]} '{name}'.", did_you_mean(name, known))
    package = importlib.import_module(PACKAGES[kind])
    own = [m.name for m in pkgutil.iter_modules(package.__path__) if _plain(m.name) == name]
    external = _external(kind).get(name, [])
    if len(own) + len(external) > 1:
        # None may take another's place unnoticed.
        places = [*(f"{PACKAGES[kind]}.{n}" for n in own), *(e.value for e in external)]
        raise ConfigError(f"There are several {kind} called '{name}': {', '.join(places)}.", "Remove or rename one.")
    module: ModuleType
    try:
        module = external[0].load() if external else importlib.import_module(f"{PACKAGES[kind]}.{own[0]}")
    except (ImportError, SyntaxError, AttributeError) as error:
        raise ConfigError(f"The {NOUNS[kind]} '{name}' cannot be imported: {error}.", "Repair or remove it.") from error
    missing = [n for n in CONTRACTS[kind] if not hasattr(module, n)]
    if missing:
        raise ConfigError(f"'{module.__name__}' is no {NOUNS[kind]}: it lacks {', '.join(missing)}.")
    return module


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _external(kind: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for e in entry_points(group=f"editlab.{kind}"):
        # An editable install may list the same entry point twice.
        if all(e.value != other.value for other in found.setdefault(_plain(e.name), [])):
            found[_plain(e.name)].append(e)
    return found
