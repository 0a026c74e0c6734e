"""What a study shows while it is under way: means alone, quick enough to be drawn anew at every probe.

Each takes the rows so far (with `course` and `update`) and gives columns series, update, value (a mean over courses and
items) and n.
"""

from __future__ import annotations

import pandas as pd

from editlab.probes.memory.recognition import prefers
from editlab.runs.memory.acquire import CONTROL


def _means(series: pd.Series, update: pd.Series, value: pd.Series) -> pd.DataFrame:
    table = pd.DataFrame({"series": series, "update": update, "value": value.astype(float)})
    found = table.groupby(["series", "update"], sort=False)["value"].agg(["mean", "size"]).reset_index()
    return found.rename(columns={"mean": "value", "size": "n"})


def of_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """Recognition and exact recall."""
    wide = rows.pivot(index=["course", "update", "item"], columns="role", values=["loss", "exact"]).reset_index()
    told = pd.Series(prefers(wide["loss", "studied"], wide["loss", "foil"]))
    parts = [("recognition", told), ("recall", wide["exact", "studied"])]
    return pd.concat([_means(pd.Series(name, wide.index), wide["update"], value) for name, value in parts])


def of_facts(rows: pd.DataFrame) -> pd.DataFrame:
    """Exact recall, engine by engine."""
    return _means(rows["engine"], rows["update"], rows["exact"])


def of_passages(rows: pd.DataFrame) -> pd.DataFrame:
    """Rise of log-probability by depth; passages that are never injected apart."""
    probe = ["course", "passage", "depth", "probe"]
    first = rows[rows["update"] == 0].set_index(probe)["lp"]
    rise = rows["lp"].to_numpy() - first.reindex(pd.MultiIndex.from_frame(rows[probe])).to_numpy()
    series = rows["depth"].where(rows["scenario"] != CONTROL, "never injected")
    return _means(series, rows["update"], pd.Series(rise, rows.index))


def of_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Debiased accuracy by condition."""
    return _means(rows["condition"], rows["update"], rows["debiased"])


def of_forgetting(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss by what is to become of the texts, up to the end of the study."""
    whole = rows[rows["state"].isin(["before", "studied"])]
    return _means(whole["role"], whole["update"], whole["loss"])
