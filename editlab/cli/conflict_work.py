"""What the commands of `editlab conflicts` share: a model, items, tables for people, and the run folder at the end."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.cli.console import Output, table

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM
    from editlab.probes.conflicts.items import Items

RATES = ("condition", "memory", "context", "other", "subjects", "prefers_memory", "difference")
EVIDENCE = ("evidence", "group", "memorization_ratio", "low", "high", "n", "undecided")


class Work:
    """What every command begins and ends with: a free run folder, a model with edits; a run folder and a result."""

    def __init__(
        self, out: Output, run: Path | None, model: str | None, dtype: str, device: str, edits: Path | None
    ) -> None:
        if run is not None:
            from editlab.runs import check_free

            check_free(run)
        from editlab.lm import LM

        self.out, self.run = out, run
        self.asked: dict[str, Any] = {}
        self.lm: LM = LM.from_pretrained(model, dtype=dtype, device=device, on_step=out.on_step)
        if edits is not None:
            self.lm.load_edits(edits)

    def end(
        self,
        headline: str,
        rows: pd.DataFrame,
        plotted: Mapping[str, Any],
        extra: Mapping[str, Any],
        columns: tuple[str, ...] = (),
        *,
        pack: bool = False,
    ) -> None:
        """Write the run folder, and say what came out."""
        from editlab.runs import run_folder, write_table

        if columns:
            self.out.show(shown(rows, columns))
        folder = self.run or run_folder("conflicts", self.lm.base_hash)
        figures: dict[str, go.Figure] = (
            {name: found.plot() for name, found in plotted.items()} if find_spec("plotly") else {}
        )
        if pack:
            self.lm.save_edits(folder)
        edits = [entry.id for entry in self.lm.ledger.active]
        known = {"headline": headline, "model_edits": edits, **extra}
        write_table(folder, self.lm, "conflicts", _finite(self.asked), rows, _finite(known), figures)
        self.out.result(
            {"run": str(folder), "headline": headline, "rows": plain(rows), **extra}, f"{headline}\nRun: {folder}"
        )


def item_settings(format: str, stem: str | None, draws: int, subjects: int | None, seed: int) -> Any:
    """The settings of the items."""
    from editlab.config import build
    from editlab.data.conflicts import check_format
    from editlab.probes.conflicts.items import ItemSettings

    given = {"format": check_format(format), "stem": stem, "draws": draws, "subjects": subjects, "seed": seed}
    return build(ItemSettings, given, "the conflicts")


def asked_of(command: str, relation: str, file: Path | None, settings: Any) -> dict[str, Any]:
    """What a run's config says of its command and conflicts."""
    where = {"relation": relation} if file is None else {"file": str(file)}
    return {"command": command, **where, **settings.model_dump(mode="json")}


def cases_of(relation: str, file: Path | None) -> Any:
    """Cases of a relation, or of a file if there is one."""
    from editlab.data.conflicts import cases_of_file, cases_of_relation

    return cases_of_relation(relation) if file is None else cases_of_file(file)


def build_items_of(work: Work, relation: str, file: Path | None, settings: Any) -> Items:
    """The items, and a remark on what they are."""
    from editlab.probes.conflicts.items import build_items

    items = build_items(work.lm, cases_of(relation, file), settings, on_step=work.out.on_step)
    work.out.say(items.headline)
    return items


def is_conflictqa(file: Path) -> bool:
    """Whether a file has that layout."""
    from editlab.data.formats import load_records

    return load_records(file).layout.name == "conflictqa"


def score_columns(rows: pd.DataFrame) -> list[str]:
    """Columns of a head table beyond the usual."""
    return [name for name in ("S_subject", "S_context", "gradient") if name in rows]


def shown(rows: pd.DataFrame, columns: tuple[str, ...]) -> str:
    """A table for people: shares in per cent, everything else short."""
    shares = {"memory", "context", "other", "recall", "agreeing", "prefers_memory", "rise", "low", "high"}
    shares |= {"memorization_ratio", "undecided", "rise_low", "rise_high", "pruned", "unpruned"}

    def cell(name: str, value: Any) -> str:
        if isinstance(value, float):
            if value != value:
                return ""
            return f"{value:.0%}" if name in shares else f"{value:.3g}"
        return str(value)

    found = [name for name in columns if name in rows]
    return table(found, [[cell(name, row[name]) for name in found] for row in rows.to_dict("records")]) + "\n"


def plain(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [
        {str(k): v for k, v in row.items()} for row in rows.astype(object).where(rows.notna(), None).to_dict("records")
    ]


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
