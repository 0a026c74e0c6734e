"""`editlab tune`: find the settings of a method that suit a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from editlab.cli import options
from editlab.cli.console import Output, read_facts, table
from editlab.errors import ConfigError


def register(app: typer.Typer) -> None:
    @app.command()
    def tune(
        grid: Annotated[
            list[str] | None,
            typer.Argument(metavar="[SETTING=[A,B,...]]...", help="Values to try; layers by default."),
        ] = None,
        method: Annotated[str, typer.Option("--method", help="See 'editlab ls methods'.")] = "rome",
        file: Annotated[
            Path | None, typer.Option("--file", help="Facts to tune on; default capitals that the model knows.")
        ] = None,
        limit: Annotated[int, typer.Option("--limit", min=1, help="How many facts.")] = 20,
        batch: Annotated[
            bool, typer.Option("--batch", help="Write all facts in one edit, not each in its own.")
        ] = False,
        model: options.Model = None,
        dtype: options.Dtype = "float32",
        device: options.Device = "cpu",
        threads: options.Threads = None,
        run: Annotated[
            Path | None, typer.Option("--out", "-o", help="Run folder; default runs/TIME-tune-HASH.")
        ] = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Try settings of a method on a model, and print which ones fire, carry over and spare neighbours."""
        from editlab import registry
        from editlab.config import parse_overrides

        with Output(as_json=as_json, quiet=quiet) as out:
            config_class = registry.get(method).Config
            values: dict[str, Any] = parse_overrides(grid or [])
            for name, tried in values.items():
                if not isinstance(tried, list) or not tried:
                    raise ConfigError(f"'{name}' has no list of values to try.", f"Write {name}=[1,2].")
                if name not in config_class.model_fields:
                    raise ConfigError(
                        f"Method '{method}' has no setting '{name}'.", f"See editlab ls methods {method}."
                    )
            facts = read_facts(out, file, False)[:limit] if file is not None else []
            from editlab.runs import check_free, run_folder, write_table

            if run is not None:
                check_free(run)
            from editlab.data.relations import relation
            from editlab.evaluation.known import known
            from editlab.lm import LM
            from editlab.runs.tune import METRICS
            from editlab.runs.tune import tune as sweep

            lm = LM.from_pretrained(model, dtype=dtype, device=device, on_step=out.on_step)
            if not facts:
                facts = list(known(lm, relation("capital")).facts()[:limit])
            found = sweep(lm, facts, method, values or None, out.on_step, batch=batch)
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
            out.show(table([*names, "fires", "paraphrases", "neighbours kept", "score", "failed"], cells))
            best = {name: rows[0][name] for name in names}
            folder = run or run_folder("tune", lm.base_hash)
            shown = found.astype(dict.fromkeys(names, str))
            config = {"method": method, "batch": batch, "facts": len(facts)}
            write_table(folder, lm, "tune", config, shown, {"best": best})
            out.result(
                {
                    "run": str(folder),
                    "method": method,
                    "n": len(facts),
                    "best": best,
                    "points": [
                        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows
                    ],
                },
                f"Best of {len(rows)} points on {len(facts)} facts: "
                f"{' '.join(f'{k}={v}'.replace(' ', '') for k, v in best.items())}\nRun: {folder}",
            )
