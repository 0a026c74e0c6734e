"""`editlab ls KIND`: what there is. A kind is one entry of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from editlab.cli import options
from editlab.cli.console import Output, size_text, table
from editlab.errors import UnknownName, did_you_mean


@dataclass(frozen=True)
class Listing:
    """Rows for JSON, and the columns of them that people see."""

    rows: list[dict[str, Any]]
    columns: list[str]
    empty: str = "There is nothing yet."

    def text(self) -> str:
        """The rows as a table, or the sentence for no rows."""
        if not self.rows:
            return self.empty
        return table(self.columns, [[row[column] for column in self.columns] for row in self.rows])


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


KINDS: dict[str, Callable[[], Listing]] = {"models": models}


def register(app: typer.Typer) -> None:
    @app.command()
    def ls(
        kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")],
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """List what there is."""
        with Output(as_json=as_json, quiet=quiet) as out:
            if kind not in KINDS:
                raise UnknownName(f"Nothing of the kind '{kind}' can be listed.", did_you_mean(kind, list(KINDS)))
            listing = KINDS[kind]()
            out.result({kind: listing.rows}, listing.text())
