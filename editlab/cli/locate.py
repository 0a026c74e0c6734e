"""`editlab locate`: causal tracing of one prompt, or the average over a file of facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output, read_facts, settle_prefixes
from editlab.cli.options import EditedCheckpoint, SkipMalformed, TargetPrefix, new_folder, spread
from editlab.display import text_table
from editlab.errors import ConfigError
from editlab.jsonable import records

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from editlab.probes.trace_results import Trace, TraceAverage

ASKED = ("model", "edits", "prompt", "subject", "answer", "file", "limit")  # of a config file, beside the settings
SHADES = " ░▒▓█"


def locate(
    out: Output,
    checkpoint: EditedCheckpoint,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTING=VALUE]...", help="Settings: window, noise, samples, min_gap."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help='Text with {} for the subject: "The capital of {} is".')
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What is corrupted.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="What to follow; default what the model says.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Facts in any layout; gives their average.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="With --file: the first so many.")] = None,
    skip_malformed: SkipMalformed = False,
    target_prefix: TargetPrefix = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="YAML: settings, and what to trace (a run's config.yaml is one)."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="What is restored: residual (the default), mlp or attention.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the noise.")] = None,
    run: Annotated[Path | None, new_folder("Run folder; default runs/TIME-locate-HASH.")] = None,
) -> None:
    """Which layers and tokens carry a fact: restore clean states in a corrupted run, one at a time."""
    from editlab.config import build, load_yaml, parse_overrides
    from editlab.probes.trace import Config, trace_many

    given = load_yaml(config_file) if config_file else {}
    of_file = {name: given.pop(name) for name in ASKED if name in given}
    for name, value in of_file.items():
        if not isinstance(value, int if name == "limit" else str):
            raise ConfigError(f"'{config_file}' has no usable '{name}': {value!r}.", "See a run's config.yaml.")
    asked: dict[str, Any] = {"prompt": prompt, "subject": subject, "answer": answer, "file": file}
    if prompt is None and file is None:
        asked |= {name: of_file.get(name) for name in asked if asked[name] is None}
    limit = limit or of_file.get("limit")
    if checkpoint.edits is None and "edits" in of_file:
        checkpoint = replace(checkpoint, edits=Path(of_file["edits"]))
    settings = {**given, **parse_overrides(overrides or [])}
    settings |= {name: value for name, value in (("kind", kind), ("seed", seed)) if value is not None}
    config = build(Config, settings, "the trace")
    if (asked["file"] is None) == (asked["prompt"] is None):
        raise ConfigError("Give either --prompt with --subject, or --file.", "Not both, not none.")
    if asked["file"] is None and asked["subject"] is None:
        raise ConfigError("--subject is missing.", "Name what the prompt is about.")
    file = Path(asked["file"]) if asked["file"] is not None else None
    facts = read_facts(out, file, skip_malformed, target_prefix)[:limit] if file is not None else []
    lm = checkpoint.open(out.on_step, of_file.get("model"))
    found: Trace | TraceAverage
    if file is None:
        of = asked["answer"]
        one = lm.locate(
            str(asked["prompt"]),
            str(asked["subject"]),
            answer=of,
            target_prefix=target_prefix or "auto",
            on_step=out.on_step,
            **config.model_dump(),
        )
        out.show(_map(one))
        found = one
    else:
        facts = settle_prefixes(out, lm, facts, file)
        found = trace_many(lm, facts, config, out.on_step)
        rows = found.to_pandas().dropna(subset=["effect", "low"]).nlargest(8, "effect")
        cells = [
            [r.layer, r.role, f"{r.effect:.1%}", f"{r.low:.1%} to {r.high:.1%}", f"{r.noise:.1%}", r.n]
            for r in rows.itertuples()
        ]
        out.show(text_table(["layer", "token", "effect", "95 %", "noise up to", "n"], cells))
    edits = None if checkpoint.edits is None else str(checkpoint.edits)
    asked |= {"file": str(file) if file else None, "limit": limit, "edits": edits}
    from editlab.runs import run_folder, write_trace

    folder = write_trace(run or run_folder("locate", lm.base_hash), lm, found, asked)
    out.result(
        {
            "run": str(folder),
            "headline": found.headline,
            "suggested_layers": list(found.suggestion.layers),
            "suggestion": found.suggestion.text,
            "left_out": [{"fact": f, "reason": r} for f, r in getattr(found, "left_out", ())],
            "effects": records(found.to_pandas()),
        },
        f"{found.headline}\n{found.suggestion.text}\nRun: {folder}",
    )


def register(app: typer.Typer) -> None:
    app.command()(spread(locate))


def _map(found: Trace) -> Table:
    """Tokens down, layers across, darker where more is restored; a token's peak in brackets is no more than noise."""
    from rich.table import Table
    from rich.text import Text

    effect: np.ndarray = found.effect
    top = max(float(effect.max()), 1e-9)
    shown = Table(title=None, show_header=True, pad_edge=False)
    shown.add_column("token (* subject)", no_wrap=True)
    shown.add_column(f"layers 0 to {len(effect) - 1}", no_wrap=True)
    shown.add_column("peak", justify="right", no_wrap=True)
    for i, text in enumerate(found.tokens):
        mark = " *" if found.subject[0] <= i < found.subject[1] else ""
        cells = [SHADES[max(0, min(4, round(4 * e / top)))] * 2 for e in effect[:, i]]
        layer = int(effect[:, i].argmax())
        peak = f"{effect[layer, i]:+.1%} at {layer}"
        if not effect[layer, i] > found.noise[layer, i]:
            peak = f"({peak})"
        shown.add_row(Text(repr(text) + mark), Text("".join(cells)), Text(peak))
    return shown
