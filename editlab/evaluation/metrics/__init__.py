"""The metrics, one file a family; a file that offers `METRICS` is found without a list.

Unless the user names metrics, all are reported but those of families that say `IS_STANDARD = False`, because they cost
more, or need data of their own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

from editlab.errors import UnknownName, did_you_mean
from editlab.evaluation.cards import Metric

STANDARD = "standard"


@cache
def families() -> dict[str, tuple[Metric, ...]]:
    """Every metric, by family (the module's name)."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: _module(name).METRICS for name in sorted(found)}


def _module(family: str) -> Any:
    return importlib.import_module(f"{__name__}.{family}")


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of the families."""
    return {m.card.name: m for family in families().values() for m in family}


def find(name: str) -> Metric:
    """The metric with this name or alias, in any letter case.

    Raises:
        UnknownName: there is none.
    """
    wanted = name.strip().casefold()
    for metric in all_metrics().values():
        if wanted in {n.casefold() for n in (metric.card.name, *metric.card.aliases)}:
            return metric
    raise UnknownName(f"There is no metric '{name}'.", did_you_mean(name, list(all_metrics())))


def select(names: Iterable[str]) -> dict[str, Metric]:
    """The metrics that these names mean: a metric, a family, "standard", or "all".

    Raises:
        UnknownName: a name is none of these.
    """
    chosen: dict[str, Metric] = {}
    for name in names:
        if name == "all":
            chosen |= all_metrics()
        elif name == STANDARD:
            usual = [family for name, family in families().items() if getattr(_module(name), "IS_STANDARD", True)]
            chosen |= {m.card.name: m for family in usual for m in family}
        elif name in families():
            chosen |= {m.card.name: m for m in families()[name]}
        else:
            metric = find(name)
            chosen[metric.card.name] = metric
    return {name: metric for name, metric in all_metrics().items() if name in chosen}
