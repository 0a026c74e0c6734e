"""`editlab undo`: take an edit of a run or pack back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, spread


def undo(
    out: Output,
    checkpoint: Checkpoint,
    pack: Annotated[Path, typer.Argument(help="Run or pack folder.")],
    id: Annotated[str | None, typer.Argument(help="Edit to take back; the latest active one if left out.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Solve later edits again without it.")] = False,
) -> None:
    """Take one edit back. Without edits left, the weights are the base's, bit for bit."""
    from editlab.runs import note_undone
    from editlab.state.packs import read_pack

    opened = read_pack(pack)
    lm = checkpoint.open(out.on_step, opened.base_name)
    lm.load_edits(pack)
    removed = lm.undo(id, replay=replay, on_step=out.on_step)
    lm.save_edits(pack)
    note_undone(pack, lm)
    is_base = lm.state_hash == lm.base_hash
    left = len(lm.ledger.active)
    still = "1 edit is still active" if left == 1 else f"{left} edits are still active"
    state = "the weights are bit-identical to the base's" if is_base else still
    data = {
        "pack": str(pack),
        "removed": removed.id,
        "active": [e.id for e in lm.ledger.active],
        "is_base": is_base,
        "state_hash": lm.state_hash,
    }
    out.result(data, f"Edit {removed.id} is undone; {state}.")


def register(app: typer.Typer) -> None:
    app.command()(spread(undo))
