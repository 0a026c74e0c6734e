"""The results of an evaluation: every value, every answer, and a summary that carries its definitions."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.display import html_table
from editlab.errors import ConfigError
from editlab.evaluation import metrics
from editlab.evaluation.statistics import Estimate
from editlab.jsonable import finite
from editlab.state.files import filled_or_removed, folder_for, write_json, write_whole

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

STATES = ("base", "edited")
NAME = "evaluation.json"


@dataclass(frozen=True)
class Line:
    """One metric under the unedited and the edited model. `metric` may carry a group: "portability_acc[Reasoning]"."""

    metric: str
    base: Estimate
    edited: Estimate

    @property
    def card(self) -> Any:
        """The metric's card; UnknownName is raised for "lm_eval/...", whose tasks have none."""
        return metrics.find(self.metric.split("[")[0]).card

    @property
    def chance(self) -> float | None:
        return None if self.metric.startswith("lm_eval/") else self.card.chance

    def to_record(self) -> dict[str, Any]:
        """A flat dict with both states."""
        sides = {f"{state}_{name}": value for state in STATES for name, value in asdict(getattr(self, state)).items()}
        if self.metric.startswith("lm_eval/"):
            return {"metric": self.metric, **sides, "chance": None, "better": "higher", "decoding": "lm-eval"}
        card = self.card
        return {
            "metric": self.metric,
            **sides,
            "chance": card.chance,
            "better": card.better,
            "decoding": card.decoding,
            "formula": card.formula,
            "source": card.source,
        }


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        lines: the summary, a line per metric.
        items: long form: metric, state, item, value; a row per item and metric.
        prompts: a row per question: both answers as text, and the targets' negative log-likelihoods.
        matrix: facts by edits so far (see `editlab.evaluation.sequence`); None unless asked for.
        settings: the suite, the model, the mode and the protocol.
    """

    lines: tuple[Line, ...]
    items: pd.DataFrame = field(repr=False)
    prompts: pd.DataFrame = field(repr=False)
    settings: Mapping[str, Any]
    matrix: pd.DataFrame | None = field(default=None, repr=False)

    def __getitem__(self, metric: str) -> Line:
        """The line of a metric, by name or alias.

        Raises:
            UnknownName: no such metric. ConfigError: it was not measured.
        """
        bare, bracket, group = metric.partition("[")
        wanted = metric if metric.startswith("lm_eval/") else metrics.find(bare).card.name + bracket + group
        for line in self.lines:
            if line.metric == wanted:
                return line
        raise ConfigError(
            f"'{metric}' was not measured here.", f"There are: {', '.join(x.metric for x in self.lines)}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """The summary as a DataFrame."""
        import pandas as pd

        return pd.DataFrame([line.to_record() for line in self.lines])

    def table(self) -> Table:
        """The summary for the terminal: unedited, edited, interval, n, chance."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=None, caption=self.caption, caption_justify="left")
        table.add_column("metric")
        for header in ("unedited", "edited", "95 % interval", "n", "chance", "better"):
            table.add_column(header, justify="right", no_wrap=True)
        for line in self.lines:
            # As plain text: "portability_acc[Reasoning]" holds no markup.
            table.add_row(*(Text(cell) for cell in _cells(line)))
        return table

    @property
    def caption(self) -> str:
        """The protocol in one sentence."""
        s = self.settings
        missing = f" No data for: {', '.join(s['without_data'])}." if s["without_data"] else ""
        return (
            f"{s['n_facts']} facts, {s['n_edited']} of them edited; mode {s['mode']}: {s['protocol']} "
            f"Free answers: greedy, {s['suite']['max_new_tokens']} tokens; seed {s['suite']['seed']}.{missing}"
        )

    def _repr_html_(self) -> str:
        head = ("metric", "unedited", "edited", "95 % interval", "n", "chance", "better")
        table = html_table(head, (_cells(line) for line in self.lines))
        return f"{table}<p>{html.escape(self.caption)}</p>"

    def save(self, folder: str | Path) -> Path:
        """Write results.parquet, prompts.parquet, matrix.parquet and, last, evaluation.json; the folder.

        Raises:
            ConfigError: an evaluation is there already. WriteFailed: the system does not let it be written.
        """
        folder = folder_for(folder, NAME, "an evaluation")
        tables = {"results": self.items, "prompts": self.prompts, "matrix": self.matrix}
        with filled_or_removed(folder):
            for name, table in tables.items():
                if table is not None:
                    write_whole(folder / f"{name}.parquet", partial(table.to_parquet, index=False))
            write_json(folder / NAME, self.to_json())
        return folder

    def to_json(self) -> dict[str, Any]:
        """Summary and settings as JSON holds them."""
        return {
            "schema_version": 1,
            "settings": dict(self.settings),
            "metrics": [finite(line.to_record()) for line in self.lines],
        }

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """The evaluation that was saved in `folder`.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        import pandas as pd

        folder = Path(folder)
        try:
            found = json.loads((folder / NAME).read_text(encoding="utf-8"))
            lines = tuple(_line(record) for record in found["metrics"])
            tables = {n: pd.read_parquet(folder / f"{n}.parquet") for n in ("results", "prompts")}
            matrix = folder / "matrix.parquet"
            loaded = cls(
                lines,
                tables["results"],
                tables["prompts"],
                found["settings"],
                pd.read_parquet(matrix) if matrix.is_file() else None,
            )
            # Read here, so that a file that lacks something is known as damaged.
            _ = loaded.caption, loaded.to_json()
            return loaded
        except FileNotFoundError as error:
            raise ConfigError(
                f"'{folder}' holds no evaluation: there is no {Path(str(error.filename)).name}.",
                "Make one with 'editlab eval RUN --out FOLDER'.",
            ) from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ConfigError(f"The evaluation in '{folder}' is damaged: {error}.") from None


def _line(record: Mapping[str, Any]) -> Line:
    def side(state: str) -> Estimate:
        mean, low, high = (
            float("nan") if record[f"{state}_{name}"] is None else float(record[f"{state}_{name}"])
            for name in ("mean", "low", "high")
        )
        return Estimate(mean, low, high, int(record[f"{state}_n"]), str(record[f"{state}_method"]))

    return Line(record["metric"], side("base"), side("edited"))


def _cells(line: Line) -> tuple[str, ...]:
    record = line.to_record()
    e = line.edited
    interval = f"{number(e.low)} to {number(e.high)}" if math.isfinite(e.low) else ""
    chance = "" if record["chance"] is None else f"{record['chance']:g}"
    return line.metric, number(line.base.mean), number(e.mean), interval, str(e.n), chance, record["better"]


def number(x: float) -> str:
    """Four significant digits, or one decimal from 1000 on; a dash where there is nothing."""
    return "-" if not math.isfinite(x) else f"{x:.4g}" if abs(x) < 1000 else f"{x:.1f}"
