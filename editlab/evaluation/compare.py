"""Two evaluations side by side, with a paired test where they asked the same things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editlab.errors import ConfigError
from editlab.evaluation.results import Evaluation, number
from editlab.evaluation.statistics import Paired, adjusted, paired
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

# Settings under which scores of the same metric are not the same quantity.
_PROTOCOL = ("mode", "base_hash")
_PROTOCOL_OF_SUITE = ("max_new_tokens", "sink", "prose", "passages", "references")


@dataclass(frozen=True)
class Difference:
    """One metric in both evaluations, over the items that both have. q is p adjusted for the number of metrics."""

    metric: str
    a: float
    b: float
    paired: Paired
    q: float

    def to_record(self) -> dict[str, Any]:
        d = self.paired.difference
        return {
            "metric": self.metric,
            "a": self.a,
            "b": self.b,
            "difference": d.mean,
            "low": d.low,
            "high": d.high,
            "n": d.n,
            "p": self.paired.p,
            "q": self.q,
        }


@dataclass(frozen=True)
class Comparison(Saved):
    """What differs between two evaluations.

    Attributes:
        settings: (a, b) of every setting that differs. remarks: what stands in the way of reading the numbers.
    """

    differences: tuple[Difference, ...]
    settings: Mapping[str, tuple[Any, Any]]
    remarks: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([d.to_record() for d in self.differences])

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption="b - a over shared items; p: paired permutation test; q: p adjusted for all lines.")
        table.add_column("metric")
        for header in ("a", "b", "b - a", "95 % interval", "n", "p", "q"):
            table.add_column(header, justify="right", no_wrap=True)
        for d in self.differences:
            e = d.paired.difference
            interval = f"{number(e.low)} to {number(e.high)}" if e.n > 1 else ""
            cells = (number(d.a), number(d.b), number(e.mean), interval, str(e.n), f"{d.paired.p:.3g}", f"{d.q:.3g}")
            table.add_row(Text(d.metric), *cells)
        return table

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(index=False, float_format=number))


def compare(a: Evaluation, b: Evaluation, *, seed: int = 0) -> Comparison:
    """Compare the edited models of two evaluations, metric by metric.

    Raises:
        ConfigError: they share no item of any metric.
    """
    left, right = (_values(e) for e in (a, b))
    found = []
    for metric in left:
        items = [item for item in left[metric] if item in right.get(metric, {})]
        if items:
            x, y = ([side[metric][item] for item in items] for side in (left, right))
            found.append((metric, sum(x) / len(x), sum(y) / len(y), paired(x, y, seed=seed)))
    if not found:
        raise ConfigError(
            "These evaluations have no item in common, so there is nothing to compare.",
            "Evaluate both with the same facts (--suite FILE).",
        )
    q = adjusted([p.p for *_, p in found])
    differences = tuple(Difference(m, x, y, p, value) for (m, x, y, p), value in zip(found, q, strict=True))
    return Comparison(differences, _settings(a, b), tuple(_remarks(a, b, left, right)))


def _values(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    edited = evaluation.items[evaluation.items.state == "edited"].dropna(subset="value")
    return {
        str(metric): dict(zip(found.item, found.value, strict=True))
        for metric, found in edited.groupby("metric", sort=False)
    }


def _settings(a: Evaluation, b: Evaluation) -> dict[str, tuple[Any, Any]]:
    flat = [
        {k: v for k, v in e.settings.items() if k != "suite"}
        | {f"suite.{k}": v for k, v in e.settings["suite"].items()}
        for e in (a, b)
    ]
    return {k: (flat[0].get(k), flat[1].get(k)) for k in flat[0] | flat[1] if flat[0].get(k) != flat[1].get(k)}


def _remarks(
    a: Evaluation, b: Evaluation, left: Mapping[str, Mapping[str, float]], right: Mapping[str, Mapping[str, float]]
) -> list[str]:
    remarks = [
        f"{key} differs ({a.settings[key]} and {b.settings[key]}), so values are not of one kind."
        for key in _PROTOCOL
        if a.settings[key] != b.settings[key]
    ]
    remarks += [
        f"suite.{key} differs ({a.settings['suite'][key]} and {b.settings['suite'][key]}): compare only what does not "
        "depend on it."
        for key in _PROTOCOL_OF_SUITE
        if a.settings["suite"][key] != b.settings["suite"][key]
    ]
    for metric in left:
        only_one = len(set(left[metric]) ^ set(right.get(metric, {})))
        if metric in right and only_one:
            remarks.append(f"{metric}: {only_one} items are in one evaluation only and left out.")
    missing = sorted(set(left) ^ set(right))
    if missing:
        remarks.append(f"Measured in one only: {', '.join(missing)}.")
    return remarks
