"""`editlab generate`: what a model says, with or without an edit pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli import options
from editlab.cli.console import Output


def register(app: typer.Typer) -> None:
    @app.command()
    def generate(
        prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue; repeatable.")],
        model: options.Model = None,
        edits: Annotated[Path | None, typer.Option("--edits", help="Run or pack whose edits are in force.")] = None,
        max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=4096, help="Longest answer.")] = 20,
        dtype: options.Dtype = "float32",
        device: options.Device = "cpu",
        threads: options.Threads = None,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """Continue texts greedily."""
        from editlab.lm import LM

        with Output(as_json=as_json, quiet=quiet) as out:
            lm = LM.from_pretrained(model, dtype=dtype, device=device, on_step=out.on_step)
            if edits is not None:
                lm.load_edits(edits)
            answers = lm.generate(prompt, max_new_tokens)
            rows = [{"prompt": p, "answer": a} for p, a in zip(prompt, answers, strict=True)]
            text = "\n\n".join(p + a for p, a in zip(prompt, answers, strict=True))
            out.result({"model": lm.name, "edits": len(lm.ledger.active), "answers": rows}, text)
