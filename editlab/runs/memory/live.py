"""Curves of a study that is under way, from what its journal has so far: means alone, quick enough to be drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from editlab.probes.memory.recognition import prefers
from editlab.runs.memory.acquire import CONTROL
from editlab.runs.memory.run import read_planned, rows_of
from editlab.runs.memory.verbs import VERBS

Curves = Callable[[pd.DataFrame], pd.DataFrame]


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
    make, measure = _CURVES[name]
    probes = len(table[["course", "update"]].drop_duplicates())
    return SoFar(name, make(table), measure, measure.startswith("share"), probes)


def _means(series: pd.Series, update: pd.Series, value: pd.Series) -> pd.DataFrame:
    table = pd.DataFrame({"series": series, "update": update, "value": value.astype(float)})
    found = table.groupby(["series", "update"], sort=False)["value"].agg(["mean", "size"]).reset_index()
    return found.rename(columns={"mean": "value", "size": "n"})


def _of_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """Recognition and exact recall."""
    wide = rows.pivot(index=["course", "update", "item"], columns="role", values=["loss", "exact"]).reset_index()
    told = pd.Series(prefers(wide["loss", "studied"], wide["loss", "foil"]))
    parts = [("recognition", told), ("recall", wide["exact", "studied"])]
    return pd.concat([_means(pd.Series(name, wide.index), wide["update"], value) for name, value in parts])


def _of_facts(rows: pd.DataFrame) -> pd.DataFrame:
    """Exact recall, engine by engine."""
    return _means(rows["engine"], rows["update"], rows["exact"])


def _of_passages(rows: pd.DataFrame) -> pd.DataFrame:
    """Rise of log-probability by depth; passages that are never injected apart."""
    probe = ["course", "passage", "depth", "probe"]
    first = rows[rows["update"] == 0].set_index(probe)["lp"]
    rise = rows["lp"].to_numpy() - first.reindex(pd.MultiIndex.from_frame(rows[probe])).to_numpy()
    series = rows["depth"].where(rows["scenario"] != CONTROL, "never injected")
    return _means(series, rows["update"], pd.Series(rise, rows.index))


def _of_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Debiased accuracy by condition."""
    return _means(rows["condition"], rows["update"], rows["debiased"])


def _of_forgetting(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss by what is to become of the texts, up to the end of the study."""
    whole = rows[rows["state"].isin(["before", "studied"])]
    return _means(whole["role"], whole["update"], whole["loss"])


_CURVES: dict[str, tuple[Curves, str]] = {
    **dict.fromkeys(("recognize", "recall", "retain"), (_of_texts, "share of studied texts")),
    "survive": (_of_facts, "share of facts recalled"),
    "acquire": (_of_passages, "rise of log-probability (nats a token)"),
    "order": (_of_order, "share in the right order"),
    "unlearn": (_of_forgetting, "loss (nats a token)"),
}
