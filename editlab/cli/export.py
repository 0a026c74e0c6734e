"""`editlab apply` and `editlab export`: edits as files that other programs use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output
from editlab.errors import ConfigError

Folder = Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="New folder to write.")]


def register(app: typer.Typer) -> None:
    @app.command()
    def apply(
        pack: Annotated[Path, typer.Argument(help="Run or pack folder.")],
        out_folder: Folder,
        model: options.Model = None,
        dtype: options.Dtype = "float32",
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Write the edited model as a plain Hugging Face folder."""
        _export(pack, "hf", out_folder, model, dtype, Output(as_json=as_json, quiet=quiet))

    @app.command()
    def export(
        pack: Annotated[Path, typer.Argument(help="Run or pack folder.")],
        out_folder: Folder,
        to: Annotated[
            str, typer.Option("--to", help="hf (whole model), delta (edit pack) or lora (PEFT adapter).")
        ] = "hf",
        model: options.Model = None,
        dtype: options.Dtype = "float32",
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Write a run's or pack's edits as a model, a pack, or a LoRA adapter."""
        _export(pack, to, out_folder, model, dtype, Output(as_json=as_json, quiet=quiet))


def _export(pack: Path, to: str, folder: Path, model: str | None, dtype: str, output: Output) -> None:
    if to not in ("hf", "delta", "lora"):
        raise ConfigError(f"--to {to} is not known.", "Use hf, delta or lora.")
    from editlab.lm import LM
    from editlab.models.quiet import quiet_transformers
    from editlab.runs import check_free
    from editlab.state.lora import save_lora
    from editlab.state.packs import read_pack

    with output as out:
        check_free(folder)
        opened = read_pack(pack)
        lm = LM.from_pretrained(model or opened.base_name, dtype=dtype, on_step=out.on_step)
        lm.load_edits(pack)
        if to == "hf":
            with quiet_transformers():
                lm.save_pretrained(folder)
        elif to == "delta":
            lm.save_edits(folder)
        else:
            save_lora(folder, lm.ledger, lm.model, lm.name)
        n = len(lm.ledger.active)
        data = {"folder": str(folder), "to": to, "edits": n, "state_hash": lm.state_hash}
        out.result(data, f"{n} active edit{'s' if n != 1 else ''} of {pack} written to {folder} ({to}).")
