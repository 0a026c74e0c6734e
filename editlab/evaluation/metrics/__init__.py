"""The metrics, one file a family; a file that offers `METRICS` is found without a list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from editlab.errors import UnknownName, did_you_mean
from editlab.evaluation.cards import Metric

# What is reported unless the user names metrics; the others cost more, or need data of their own.
STANDARD = "standard"


@cache
def families() -> dict[str, tuple[Metric, ...]]:
    """Every metric, by family (the module's name)."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}").METRICS for name in sorted(found)}


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
            chosen |= {
                n: m for f, family in families().items() if f != "fluency" for m in family for n in [m.card.name]
            }
        elif name in families():
            chosen |= {m.card.name: m for m in families()[name]}
        else:
            metric = find(name)
            chosen[metric.card.name] = metric
    return {name: metric for name, metric in all_metrics().items() if name in chosen}
