"""What a study gave: a row a run, the same over its seeds, figures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from editlab.display import html_table
from editlab.evaluation import metrics
from editlab.evaluation.cards import FactMetric, JointMetric, ModelMetric
from editlab.evaluation.results import STATES, Evaluation
from editlab.evaluation.statistics import Estimate, estimate_nested, estimate_nested_joint
from editlab.state.files import write_whole
from editlab.studies.plan import RunSpec, StudyPlan
from editlab.studies.work import EVALUATION, is_done

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.table import Table

POINT = ("model", "method", "settings", "facts", "n_facts", "mode", "batch_size")  # what seeds repeat
SIDES = tuple(f"{state}_{name}" for state in STATES for name in ("mean", "low", "high", "n"))


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study that have ended.

    Attributes:
        runs: long form: a row a run and metric, with both states' mean, interval and n.
        points: the same with the seeds of a point pooled: items nested in seeds.
        failed: reasons, by the names of the runs that gave no numbers.
    """

    plan: StudyPlan
    runs: pd.DataFrame = field(repr=False)
    points: pd.DataFrame = field(repr=False)
    failed: Mapping[str, str]

    @property
    def headline(self) -> str:
        """What has been done, in a sentence."""
        done, all_runs = self.runs["run"].nunique() if len(self.runs) else 0, len(self.plan.runs)
        failed = f"; {len(self.failed)} failed" if self.failed else ""
        return f"{done} of {all_runs} runs: {len(self.plan.models)} models, {len(self.plan.methods)} methods, " + (
            f"{len(self.plan.seeds)} seeds{failed}."
        )

    @cached_property
    def metrics(self) -> list[str]:
        """What was measured, in the order of the cards."""
        return list(dict.fromkeys(self.runs["metric"])) if len(self.runs) else []

    def to_pandas(self, *, seeds: bool = True) -> pd.DataFrame:
        """A row a run (or, without seeds, a row a point): the edited model's metrics, each with interval and n."""
        rows, keys = (self.runs, ["run", *POINT, "seed", "failed"]) if seeds else (self.points, [*POINT, "seeds"])
        if not len(rows):
            return pd.DataFrame(columns=keys)
        wide = []
        for key, found in rows.groupby(keys, sort=False, dropna=False):
            row: dict[str, Any] = dict(zip(keys, key, strict=True))
            for line in found.to_dict("records"):
                name = line["metric"]
                row |= {f"{name}_base": line["base_mean"], name: line["edited_mean"]}
                row |= {f"{name}_{part}": line[f"edited_{part}"] for part in ("low", "high", "n")}
            wide.append(row)
        return pd.DataFrame(wide)

    def cells(self, *, seeds: bool = False) -> tuple[list[str], list[list[str]]]:
        """Headers and texts for people: every metric as "mean (low to high)", and columns that vary."""
        rows, extra = (self.runs, ["seed"]) if seeds else (self.points, ["seeds"])
        keys = [k for k in POINT if k in ("model", "method") or (len(rows) and rows[k].nunique() > 1)] + extra
        out = []
        for key, found in rows.groupby(keys, sort=False, dropna=False) if len(rows) else ():
            lines = {line["metric"]: line for line in found.to_dict("records")}
            texts = [_text(lines[name]) if name in lines else "-" for name in self.metrics]
            out.append([*map(str, key), str(max(line["edited_n"] for line in lines.values())), *texts])
        return [*keys, "n", *self.metrics], out

    def table(self) -> Table:
        """For the terminal: a row a point, seeds pooled."""
        from rich.table import Table
        from rich.text import Text

        headers, rows = self.cells()
        table = Table(caption=CAPTION, caption_justify="left")
        for header in headers:
            table.add_column(header, justify="right" if header in self.metrics else "left")
        for row in rows:
            table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row))
        return table

    def _repr_html_(self) -> str:
        return f"<p>{self.headline}</p>{html_table(*self.cells())}<p>{CAPTION}</p>"

    def figures(self) -> dict[str, go.Figure]:
        """Scores by method, what an edit costs, and scores by batch size where there are several, by name."""
        from editlab.viz.studies import figures

        return figures(self)

    def plot(self) -> go.Figure:
        """Scores by method, with 95 % intervals and every seed as a dot."""
        return self.figures()["scores"]

    def save(self, folder: Path) -> Path:
        """Write results.parquet (long), runs.csv and points.csv (a row each)."""
        write_whole(folder / "results.parquet", partial(self.runs.to_parquet, index=False))
        write_whole(folder / "runs.csv", partial(self.to_pandas().to_csv, index=False))
        write_whole(folder / "points.csv", partial(self.to_pandas(seeds=False).to_csv, index=False))
        return folder


CAPTION = (
    "Means over the items of all seeds with 95 % intervals over seeds (jackknife; wide with few seeds). n: the largest "
    "number of items of any metric. Perplexity and drift of mode 'single' are means over the edited models."
)


def _text(line: Mapping[Any, Any]) -> str:
    interval = f" ({line['edited_low']:.3g} to {line['edited_high']:.3g})"
    return f"{line['edited_mean']:.3g}" + (interval if np.isfinite(line["edited_low"]) else "")


def collect(plan: StudyPlan, runs: Path, failed: Mapping[str, str]) -> StudyResult:
    """The numbers of the runs that are done, from their folders."""
    done = [spec for spec in plan.runs if is_done(runs / spec.name)]
    found = {spec.name: Evaluation.load(runs / spec.name / EVALUATION) for spec in done}
    by_run = [row for spec in done for row in _rows_of(spec, found[spec.name], runs)]
    groups: dict[tuple[Any, ...], list[RunSpec]] = {}
    for spec in done:
        groups.setdefault(tuple(spec.keys[k] for k in POINT), []).append(spec)
    by_point = [
        dict(zip(POINT, key, strict=True)) | {"seeds": len(specs)} | row
        for key, specs in groups.items()
        for row in _pooled([found[spec.name] for spec in specs])
    ]
    return StudyResult(plan, pd.DataFrame(by_run), pd.DataFrame(by_point), dict(failed))


def _rows_of(spec: RunSpec, found: Evaluation, runs: Path) -> Iterator[dict[str, Any]]:
    import json

    manifest = json.loads((runs / spec.name / "manifest.json").read_text(encoding="utf-8"))
    head = {"run": spec.name, **spec.keys, "failed": len(manifest["failed"]), "state_hash": manifest["state_hash"]}
    for line in found.lines:
        record = line.to_record()
        yield {**head, "metric": line.metric, **{side: record[side] for side in SIDES}}


def _pooled(found: Sequence[Evaluation]) -> Iterator[dict[str, Any]]:
    """A row a metric over several seeds."""
    for name in dict.fromkeys(line.metric for e in found for line in e.lines):
        row: dict[str, Any] = {"metric": name}
        having = [e for e in found if name in _names(e)]  # a seed may have drawn no fact with a neighbour
        for state in STATES:
            e = pooled(name, state, having)
            row |= {f"{state}_mean": e.mean, f"{state}_low": e.low, f"{state}_high": e.high, f"{state}_n": e.n}
        yield row


def _names(evaluation: Evaluation) -> set[str]:
    return {line.metric for line in evaluation.lines}


def pooled(name: str, state: str, found: Sequence[Evaluation]) -> Estimate:
    """A metric over the items of several seeds, with an interval that speaks of other seeds."""
    if name.startswith("lm_eval/"):  # no items are kept of these: the mean over seeds, without an interval
        means = [getattr(e[name], state).mean for e in found]
        return Estimate(float(np.mean(means)), float("nan"), float("nan"), len(means))
    metric = metrics.find(name.split("[")[0])
    shares = (0.0, 1.0)
    if isinstance(metric, JointMetric):  # a mean of means
        within = shares if all(metrics.find(of).card.is_share for of in metric.of) else None
        return estimate_nested_joint([_columns(e, metric.of, state) for e in found], metric.combine, within=within)
    if isinstance(metric, ModelMetric) and metric.combine is not None:
        return estimate_nested_joint([_columns(e, (name,), state) for e in found], metric.combine)
    assert isinstance(metric, FactMetric | ModelMetric)
    columns = [_columns(e, (name,), state)[0] for e in found]
    values = [[x for x in column if not np.isnan(x)] for column in columns]
    return estimate_nested(values, within=shares if metric.card.is_share else None)


def _columns(evaluation: Evaluation, names: Sequence[str], state: str) -> list[list[float]]:
    """Values of metrics over the same items, NaN where an item has none."""
    rows = evaluation.items[(evaluation.items["state"] == state) & evaluation.items["metric"].isin(names)]
    wide = rows.pivot_table(index="item", columns="metric", values="value", sort=False)
    # The unedited model has no value of some metrics, such as the ratio of its norms to its own.
    return [wide[name].tolist() if name in wide else [float("nan")] * len(wide) for name in names]
