"""`editlab ls KIND`: what there is. A kind is one entry of `KINDS`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from editlab.cli.console import Output, size_text
from editlab.cli.options import spread
from editlab.display import text_table
from editlab.errors import ConfigError, UnknownName, did_you_mean


@dataclass(frozen=True)
class Listing:
    """Rows for JSON, and the columns that people see, of `shown` where that is given."""

    rows: list[dict[str, Any]]
    columns: list[str]
    empty: str = "There is nothing yet."
    shown: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The rows as a table, or the sentence for no rows."""
        if not self.rows:
            return self.empty
        return text_table(self.columns, [[row[column] for column in self.columns] for row in self.shown or self.rows])


def models() -> Listing:
    """The registered checkpoints, and whether they are on this machine."""
    from editlab.models import registry
    from editlab.models.pull import folder_of, is_cached

    rows = []
    for entry in registry.entries():
        here = is_cached(entry)
        rows.append(
            {
                "name": entry.name,
                "default": entry.default,
                "cached": here,
                "size": size_text(entry.weights.size) if entry.weights else "",
                "licence": entry.licence,
                "hub": entry.hub or "",
                "aliases": list(entry.aliases),
                "path": str(folder_of(entry)) if here else None,
                "note": entry.note,
            }
        )
    return Listing(rows, ["name", "default", "cached", "size", "licence", "hub"])


def methods() -> Listing:
    """The editing methods with their settings; one that cannot be used says why."""
    return _plugins("methods")


def probes() -> Listing:
    """The probes of prompts with their settings; one that cannot be used says why."""
    return _plugins("probes")


def _plugins(kind: str) -> Listing:
    from editlab import registry
    from editlab.config import settings_of

    rows: list[dict[str, Any]] = []
    for name in registry.names(kind):
        try:
            module = registry.get(name, kind)
        except ConfigError as error:
            rows.append({"name": name, "settings": None, "summary": error.what})
            continue
        summary = re.split(r"(?<=\.)\s", inspect.getdoc(module) or "", maxsplit=1)[0]
        rows.append({"name": name, "settings": settings_of(module.Config), "summary": " ".join(summary.split())})
    shown = [{**row, "settings": "?" if row["settings"] is None else len(row["settings"])} for row in rows]
    return Listing(rows, ["name", "settings", "summary"], shown=shown)


def settings(name: str, kind: str = "methods") -> Listing:
    """The settings of one method, or of one probe."""
    from editlab import registry
    from editlab.config import settings_of

    rows = settings_of(registry.get(name, kind).Config)
    shown = [{**row, "default": "none" if row["default"] is None else row["default"]} for row in rows]
    return Listing(rows, ["name", "default", "range", "description"], "It has no settings.", shown=shown)


def presets() -> Listing:
    """The settings kept by model and method, each with its source."""
    from editlab.edits import presets as kept

    rows: list[dict[str, Any]] = [
        {"model": p.model, "method": method, "preset": kind, "settings": dict(settings), "source": p.source}
        for p in kept.presets()
        for kind, methods in (("tuned", p.methods), ("published", p.published))
        for method, settings in methods.items()
    ]
    shown = [{**row, "settings": ", ".join(f"{k}={v}" for k, v in row["settings"].items())} for row in rows]
    return Listing(rows, ["model", "method", "preset", "settings", "source"], shown=shown)


def runs() -> Listing:
    """The run folders under ./runs, oldest first; `editlab resume` goes on with an interrupted one."""
    from editlab.runs.records import list_runs

    columns = ["name", "kind", "state", "written", "model", "edits", "fired"]
    rows = [
        {
            "name": run.name,
            "path": str(run.folder),
            "kind": run.kind,
            "state": run.state,
            "written": run.written,
            "model": run.model,
            "edits": run.edits,
            "fired": run.fired,
        }
        for run in list_runs(Path("runs"))
    ]
    shown = [{k: "" if v is None else v for k, v in row.items()} for row in rows]
    return Listing(rows, columns, "There is no run in ./runs yet.", shown=shown)


def formats() -> Listing:
    """The layouts of files that are read; `editlab cat NAME` describes one."""
    from editlab.data.formats import layouts

    rows = [
        {
            "name": layout.name,
            "title": layout.title,
            "holds": layout.holds,
            "known_by": list(layout.marks),
            "source": layout.source,
        }
        for layout in layouts().values()
    ]
    shown = [{**row, "known_by": ", ".join(row["known_by"])} for row in rows]
    return Listing(rows, ["name", "title", "holds", "known_by"], shown=shown)


def metrics() -> Listing:
    """The metrics; `editlab cat NAME` prints one's card."""
    from editlab.evaluation.metrics import families

    rows = [
        {"family": family, **asdict(metric.card), "aliases": list(metric.card.aliases)}
        for family, found in families().items()
        for metric in found
    ]
    return Listing(rows, ["name", "family", "better", "decoding", "title"])


def relations() -> Listing:
    """The relations that need no network, with what their rules leave out."""
    from editlab.data import relations as known

    rows: list[dict[str, Any]] = [
        {
            "name": relation.name,
            "title": relation.title,
            "rows": len(relation.rows),
            "stems": len(relation.stems),
            "closed": relation.is_closed,
            "excluded": dict(relation.excluded),
            "example": f"{known.fill(relation.stems[0], relation.rows[0].subject)} {relation.rows[0].answer}",
        }
        for relation in known.relations().values()
    ]
    shown = [{**row, "excluded": sum(row["excluded"].values())} for row in rows]
    return Listing(rows, ["name", "rows", "excluded", "stems", "example"], shown=shown)


KINDS: dict[str, Callable[[], Listing]] = {
    "formats": formats,
    "methods": methods,
    "metrics": metrics,
    "models": models,
    "presets": presets,
    "probes": probes,
    "relations": relations,
    "runs": runs,
}

OF_ONE = {"methods": "method", "probes": "probe"}  # kinds whose settings can be listed


def ls(
    out: Output,
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")],
    name: Annotated[
        str | None, typer.Argument(help="With methods or probes: the one whose settings are listed.")
    ] = None,
) -> None:
    """List what there is; `ls methods NAME` lists the settings of a method, `ls probes NAME` of a probe."""
    if kind not in KINDS:
        raise UnknownName(f"Nothing of the kind '{kind}' can be listed.", did_you_mean(kind, list(KINDS)))
    if name is not None and kind not in OF_ONE:
        raise ConfigError(f"'ls {kind}' takes no name.", "Only methods and probes can be listed one by one.")
    if name is not None:
        listing = settings(name, kind)
        out.result({OF_ONE[kind]: name, "settings": listing.rows}, listing.text())
    else:
        listing = KINDS[kind]()
        out.result({kind: listing.rows}, listing.text())


def register(app: typer.Typer) -> None:
    app.command()(spread(ls))
