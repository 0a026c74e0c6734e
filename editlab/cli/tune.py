"""`editlab tune`: find the settings of a method that suit a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output, read_facts, settle_prefixes
from editlab.cli.options import Checkpoint, TargetPrefix, new_folder, spread
from editlab.display import text_table
from editlab.errors import ConfigError


def tune(
    out: Output,
    checkpoint: Checkpoint,
    grid: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTING=[A,B,...]]...", help="Values to try; layers by default."),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="See 'editlab ls methods'; rome.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Facts to tune on; default capitals that the model knows.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="How many facts; 20.")] = None,
    target_prefix: TargetPrefix = None,
    batch: Annotated[
        bool | None, typer.Option("--batch", help="Write all facts in one edit, not each in its own.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="YAML: method, grid, file, limit, batch (a run's config.yaml is one)."),
    ] = None,
    run: Annotated[Path | None, new_folder("Run folder; default runs/TIME-tune-HASH.")] = None,
) -> None:
    """Try settings of a method on a model, and print which ones fire, carry over and spare neighbours."""
    from editlab import registry
    from editlab.config import build, load_yaml, parse_overrides
    from editlab.runs.tune import METRICS, Sweep, default_grid, has_locality
    from editlab.runs.tune import tune as run_sweep

    given = load_yaml(config_file) if config_file else {}
    options_given = {"method": method, "file": file, "limit": limit, "batch": batch, "model": checkpoint.model}
    given |= {name: value for name, value in options_given.items() if value is not None}
    if grid:
        given["grid"] = parse_overrides(grid)
    asked = build(Sweep, given, "the sweep")
    method, values = asked.method, dict(asked.grid or {})
    config_class = registry.get(method).Config
    for name, tried in values.items():
        if not isinstance(tried, list) or not tried:
            raise ConfigError(f"'{name}' has no list of values to try.", f"Write {name}=[1,2].")
        if name not in config_class.model_fields:
            raise ConfigError(f"Method '{method}' has no setting '{name}'.", f"See editlab ls methods {method}.")
    facts = read_facts(out, asked.file, False, target_prefix)[: asked.limit] if asked.file is not None else []
    from editlab.data.relations import relation
    from editlab.evaluation.known import known
    from editlab.runs import run_folder, write_table

    lm = checkpoint.open(out.on_step, asked.model)
    if asked.file is not None:
        facts = settle_prefixes(out, lm, facts, asked.file)
    if not facts:
        facts = list(known(lm, relation("capital")).facts(limit=asked.limit))
    by_locality = has_locality(facts, batch=asked.batch)
    if not by_locality:
        out.warn(
            "No fact has a neighbour that is not edited itself: settings are ranked by efficacy and paraphrases alone, "
            "whatever damage they do."
        )
    found = run_sweep(lm, facts, method, values or None, out.on_step, batch=asked.batch)
    names = [c for c in found.columns if c not in (*METRICS, "score", "n", "failed")]
    rows = found.to_dict("records")
    cells = [
        [
            *(r[n] for n in names),
            *("-" if math.isnan(r[m]) else f"{r[m]:.0%}" for m in (*METRICS, "score")),
            r["failed"],
        ]
        for r in rows
    ]
    out.show(text_table([*names, "fires", "paraphrases", "neighbours kept", "score", "failed"], cells))
    best = {name: rows[0][name] for name in names}
    folder = run or run_folder("tune", lm.base_hash)
    shown = found.astype(dict.fromkeys(names, str))
    config = asked.model_dump(mode="json", exclude_none=True) | {"grid": values or default_grid(lm, method)}
    write_table(folder, lm, "tune", config, shown, {"best": best, "facts": len(facts)})
    out.result(
        {
            "run": str(folder),
            "method": method,
            "n": len(facts),
            "best": best,
            "ranked_by_locality": by_locality,
            "points": [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows],
        },
        f"Best of {len(rows)} points on {len(facts)} facts: "
        f"{' '.join(f'{k}={v}'.replace(' ', '') for k, v in best.items())}\nRun: {folder}",
    )


def register(app: typer.Typer) -> None:
    app.command()(spread(tune))
