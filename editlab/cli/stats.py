"""`editlab stats`: key statistics of layers, computed once and kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, Seed, spread
from editlab.display import text_table


def stats(
    out: Output,
    checkpoint: Checkpoint,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="Layer; repeatable. Default by model.")] = None,
    text: Annotated[
        str, typer.Option("--text", help="'factbook', a text file, or .jsonl/.csv/.parquet with a 'text' column.")
    ] = "factbook",
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="How many; default twenty per key dimension.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens taken of each passage.")] = 128,
    seed: Seed = 0,
    launcher: Annotated[
        str, typer.Option("--launcher", help="Where blocks of text are summed: local, ray or slurm.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Blocks at once; the result is the same.")] = 1,
    export: Annotated[Path | None, typer.Option("--out", help="Also copy the statistics into this folder.")] = None,
) -> None:
    """Second moments of the MLP keys over ordinary text. Interrupt and run again to go on."""
    import shutil

    import torch

    from editlab.data.corpus import load_corpus
    from editlab.edits.covariance import StatsSettings, collect, stats_path
    from editlab.edits.presets import usual_layer

    corpus = load_corpus(text)
    lm = checkpoint.open(out.on_step)
    layers = sorted(set(layer)) if layer else [usual_layer(lm.adapter)]
    settings = StatsSettings(tokens=tokens, max_length=max_length, seed=seed)
    began = time.perf_counter()
    if workers == 1 and launcher == "local":
        found = collect(lm, layers, corpus, settings, on_step=out.on_step)
    else:
        from editlab.studies.launchers import launch_settings
        from editlab.studies.statistics import collect_on

        launch = launch_settings(launcher, {"workers": workers, "threads": checkpoint.threads})
        found = collect_on(lm, lm.name, layers, text, settings, launcher, launch, out.on_step)
    seconds = round(time.perf_counter() - began, 2)
    rows = []
    for number, moments in found.items():
        covariance = moments.covariance
        eigenvalues = torch.linalg.eigvalsh(covariance)
        path = stats_path(lm, number, corpus, settings)
        if export is not None:
            export.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, export / path.name)
        rows.append(
            {
                "layer": number,
                "tokens": moments.count,
                "trace": float(covariance.trace()),
                "largest_eigenvalue": float(eigenvalues[-1]),
                "condition": float(eigenvalues[-1] / eigenvalues[0].clamp(min=1e-300)),
                "path": str(path),
            }
        )
    columns = ["layer", "tokens", "trace", "largest_eigenvalue", "condition"]
    shown = [[f"{r[c]:.4g}" if isinstance(r[c], float) else r[c] for c in columns] for r in rows]
    lines = [
        text_table(columns, shown),
        f"Kept in {stats_path(lm, layers[0], corpus, settings).parent} ({seconds} s).",
    ]
    out.result({"model": lm.name, "text": corpus.name, "layers": rows, "seconds": seconds}, "\n".join(lines))


def register(app: typer.Typer) -> None:
    app.command()(spread(stats))
