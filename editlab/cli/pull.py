"""`editlab pull`: fetch a registered checkpoint into the cache."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from editlab.cli.console import Output, size_text
from editlab.cli.options import spread


def pull(
    out: Output,
    name: Annotated[
        str | None,
        typer.Argument(help="A registered name (see 'editlab ls models'); the default if left out."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if it is there.")] = False,
) -> None:
    """Fetch a registered checkpoint, verify it, and keep it in the cache. Instant when it is there."""
    from editlab.models import registry
    from editlab.models.pull import is_cached, pull_entry, read_record

    began = time.monotonic()
    entry = registry.default() if name is None else registry.get(name)
    if name is not None and entry.copies(name):
        out.warn(f"'{entry.name}' is not {entry.hub} itself. {entry.note}")
    was_there = is_cached(entry) and not force
    path = pull_entry(entry, out.on_step, force=force)
    seconds = round(time.monotonic() - began, 2)
    record = read_record(path) or {}
    if record.get("weights_as_registered") is False:
        out.warn("the converted weights differ from the registered hash; the source file was verified.")
    source, weights = record.get("source", {}), record.get("weights", {})
    data = {
        "name": entry.name,
        "path": str(path),
        "already_there": was_there,
        "source_sha256": source.get("member_sha256"),
        "weights_sha256": weights.get("sha256"),
        "weights_size": weights.get("size"),
        "seconds": seconds,
    }
    lines = [f"{entry.name}: {path}"]
    if source:
        lines.append(f"  source   {source['member'].rsplit('/', 1)[-1]}  sha256 {source['member_sha256']}")
        lines.append(f"  weights  model.safetensors, {size_text(weights['size'])}  sha256 {weights['sha256']}")
    lines.append(f"  already there ({seconds} s)" if was_there else f"  fetched in {seconds} s")
    out.result(data, "\n".join(lines))


def register(app: typer.Typer) -> None:
    app.command()(spread(pull))
