"""`editlab apply` and `editlab export`: edits as files that other programs use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, new_folder, spread
from editlab.errors import ConfigError

Pack = Annotated[Path, typer.Argument(help="Run or pack folder.")]
Folder = Annotated[Path, new_folder("New folder to write.")]


def apply(out: Output, checkpoint: Checkpoint, pack: Pack, folder: Folder) -> None:
    """Write the edited model as a plain Hugging Face folder."""
    _export(out, checkpoint, pack, "hf", folder)


def export(
    out: Output,
    checkpoint: Checkpoint,
    pack: Pack,
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="hf (whole model), delta (edit pack) or lora (PEFT adapter).")] = "hf",
) -> None:
    """Write a run's or pack's edits as a model, a pack, or a LoRA adapter."""
    _export(out, checkpoint, pack, to, folder)


def register(app: typer.Typer) -> None:
    app.command()(spread(apply))
    app.command()(spread(export))


def _export(out: Output, checkpoint: Checkpoint, pack: Path, to: str, folder: Path) -> None:
    if to not in ("hf", "delta", "lora"):
        raise ConfigError(f"--to {to} is not known.", "Use hf, delta or lora.")
    from editlab.models.quiet import quiet_transformers
    from editlab.state.lora import save_lora
    from editlab.state.packs import read_pack

    opened = read_pack(pack)
    lm = checkpoint.open(out.on_step, opened.base_name)
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
