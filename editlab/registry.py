"""Finding plug-ins: the modules of a package, and the entry points of other packages.

A new editing method is one file in `editlab/edits/methods/`, a new probe of prompts one in `editlab/probes/prompts/`, a
new launcher of studies one in `editlab/studies/launchers/`; a package of its own can offer one under the entry-point
group `editlab.methods`, `editlab.probes` or `editlab.launchers`. Nothing is imported
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
    "launchers": "editlab.studies.launchers",
}
NOUNS = {"methods": "method", "memories": "kind of memory", "probes": "probe", "launchers": "launcher"}
CONTRACTS = {
    "methods": ("Config", "compute"),
    "memories": ("layer",),
    "probes": ("Config", "run"),
    "launchers": ("Config", "launch"),
}


def names(kind: str = "methods") -> list[str]:
    """Names of all plug-ins of a kind, sorted; `rome_legacy.py` is called `rome-legacy`."""
    return sorted(_own(kind).keys() | _external(kind).keys())


def get(name: str, kind: str = "methods") -> Any:
    """The plug-in called `name`.

    Raises:
        UnknownName: there is none. ConfigError: the module cannot be imported, lacks a name of the contract, or two
            plug-ins have this name.
    """
    name = _plain(name)
    every_own, every_external = _own(kind), _external(kind)
    own, external = every_own.get(name, []), every_external.get(name, [])
    if not own and not external:
        known = sorted(every_own.keys() | every_external.keys())
        raise UnknownName(f"There is no {NOUNS[kind]} '{name}'.", did_you_mean(name, known))
    if len(own) + len(external) > 1:
        # None may take another's place unnoticed.
        places = [*own, *(e.value for e in external)]
        raise ConfigError(f"There are several {kind} called '{name}': {', '.join(places)}.", "Remove or rename one.")
    module: ModuleType
    try:
        module = external[0].load() if external else importlib.import_module(own[0])
    except (ImportError, SyntaxError, AttributeError) as error:
        raise ConfigError(f"The {NOUNS[kind]} '{name}' cannot be imported: {error}.", "Repair or remove it.") from error
    missing = [n for n in CONTRACTS[kind] if not hasattr(module, n)]
    if missing:
        raise ConfigError(f"'{module.__name__}' is no {NOUNS[kind]}: it lacks {', '.join(missing)}.")
    return module


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _own(kind: str) -> dict[str, list[str]]:
    """Modules of the package, by the plug-in's name."""
    package = importlib.import_module(PACKAGES[kind])
    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            found.setdefault(_plain(module.name), []).append(f"{PACKAGES[kind]}.{module.name}")
    return found


def _external(kind: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for e in entry_points(group=f"editlab.{kind}"):
        # An editable install may list the same entry point twice.
        if all(e.value != other.value for other in found.setdefault(_plain(e.name), [])):
            found[_plain(e.name)].append(e)
    return found
