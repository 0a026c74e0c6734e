"""`editlab generate`: what a model says, with or without an edit pack."""

from __future__ import annotations

from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import EditedCheckpoint, spread


def generate(
    out: Output,
    checkpoint: EditedCheckpoint,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue; repeatable.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=4096, help="Longest answer.")] = 20,
) -> None:
    """Continue texts greedily."""
    lm = checkpoint.open(out.on_step)
    answers = lm.generate(prompt, max_new_tokens)
    rows = [{"prompt": p, "answer": a} for p, a in zip(prompt, answers, strict=True)]
    text = "\n\n".join(p + a for p, a in zip(prompt, answers, strict=True))
    out.result({"model": lm.name, "edits": len(lm.ledger.active), "answers": rows}, text)


def register(app: typer.Typer) -> None:
    app.command()(spread(generate))
