"""`editlab validate`: everything wrong with a facts file or a settings file, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output


def register(app: typer.Typer) -> None:
    @app.command()
    def validate(
        file: Annotated[Path, typer.Argument(help="Facts (.jsonl, .json), settings (.yaml), or a run or pack folder.")],
        method: Annotated[str, typer.Option("--method", help="Whose settings a .yaml file holds.")] = "rome",
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Check a file and list all its problems; exit code 2 if there is one."""
        with Output(as_json=as_json, quiet=quiet) as out:
            if file.is_dir():
                from editlab.state.packs import read_pack

                pack = read_pack(file)
                out.result(
                    {"file": str(file), "kind": "pack", "edits": len(pack)},
                    f"{file}: an edit pack with {len(pack)} edits for {pack.base_name}.",
                )
            elif file.suffix in (".yaml", ".yml"):
                from editlab import registry
                from editlab.config import build, load_yaml

                build(registry.get(method).Config, load_yaml(file), f"method '{method}'")
                out.result({"file": str(file), "kind": "settings"}, f"{file}: settings of {method} are valid.")
            else:
                from editlab.facts import load_facts

                facts = load_facts(file)
                out.result(
                    {"file": str(file), "kind": "facts", "facts": len(facts)}, f"{file}: {len(facts)} facts are valid."
                )
