"""`editlab cat NAME`: one of the pages that come with the package, a method's page, or a metric's card."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import spread
from editlab.errors import UnknownName, did_you_mean

# Packages whose .md files are pages, by what the pages are about.
PAGES = {
    "format": "editlab.data.formats",
    "guide": "editlab.evaluation",
    "facts": "editlab.data.relations",
    "methods": "editlab.edits.methods",
    "probes": "editlab.probes.prompts",
    "studies": "editlab.studies",
}


def pages() -> dict[str, tuple[str, Traversable]]:
    """The kind and the file of every page, by name; a README is called as its package is."""
    return {
        (package.rpartition(".")[2] if page.name == "README.md" else page.name.removesuffix(".md")): (kind, page)
        for kind, package in PAGES.items()
        for page in files(package).iterdir()
        if page.name.endswith(".md")
    }


def cat(
    out: Output,
    name: Annotated[
        str, typer.Argument(help="A format, metric or method (see 'editlab ls'), or a page such as 'scoring'.")
    ],
) -> None:
    """Print the page about a file format or a method, a metric's card, or how something is done."""
    from editlab import registry

    known = pages()
    plain = name.strip().lower().replace("_", "-")
    if plain in known:
        kind, page = known[plain]
        text = page.read_text(encoding="utf-8").rstrip()
    elif plain in registry.names():
        from editlab.edits.pages import method_page

        kind, text = "method", method_page(plain).rstrip()
    else:
        kind, text = "metric", _card(name, [*known, *registry.names()])
    out.result({"name": plain, "kind": kind, "text": text}, text)


def register(app: typer.Typer) -> None:
    app.command()(spread(cat))


def _card(name: str, pages: list[str]) -> str:
    from editlab.evaluation import metrics

    try:
        return metrics.find(name.strip().replace("-", "_")).card.text()
    except UnknownName:
        known = [*pages, *metrics.all_metrics()]
        raise UnknownName(f"There is no page, method or metric '{name}'.", did_you_mean(name, known)) from None
