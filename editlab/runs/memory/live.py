"""A study that is under way, from what its journal has so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from editlab.runs.memory.run import read_planned, rows_of
from editlab.runs.memory.verbs import VERBS


@dataclass(frozen=True)
class SoFar:
    """What a study has found so far.

    Attributes:
        curves: columns series, update, value (a mean over courses and items) and n. measure: what the value is.
        is_share: it lies between 0 and 1. probes: groups of rows that the journal has.
    """

    verb: str
    curves: pd.DataFrame
    measure: str
    is_share: bool
    probes: int


def so_far(folder: Path) -> SoFar | None:
    """The curves of a run's folder; None before its first probe.

    Raises:
        ConfigError: the folder is that of something else. ResumeRefused: its journal is damaged.
    """
    planned = read_planned(folder, VERBS)
    rows = rows_of(folder) if planned is not None else []
    if planned is None or not rows:
        return None
    name = planned.verb.name
    table = pd.DataFrame(rows)
    make, measure = planned.verb.live
    probes = len(table[["course", "update"]].drop_duplicates())
    return SoFar(name, make(table), measure, measure.startswith("share"), probes)
