"""`editlab doctor`: does this model work here? Load it, compare it with Hugging Face, edit, undo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, spread
from editlab.display import text_table

if TYPE_CHECKING:
    from editlab.lm import LM


def doctor(out: Output, checkpoint: Checkpoint) -> None:
    """Load a model, check its structure and logits, make one tiny edit, undo it, and time each step."""
    import torch

    from editlab.probes.parity import PROMPTS, parity
    from editlab.state.edit import Delta, Edit

    checks: list[dict[str, object]] = []

    def check(what: str, began: float, finding: str, ok: bool = True) -> None:
        seconds = round(time.perf_counter() - began, 3)
        checks.append({"check": what, "ok": ok, "finding": finding, "seconds": seconds})

    began = time.perf_counter()
    lm = checkpoint.open(out.on_step)
    a = lm.adapter
    check("load", began, f"{a.family}, {a.n_layers} layers, d_model {a.d_model}, d_mlp {a.d_mlp}")
    check("structure", time.perf_counter(), f"residual identity to {a.residual_error:.1e}")
    began = time.perf_counter()
    finding, ok = _special_tokens(lm)
    check("special tokens", began, finding, ok)
    began = time.perf_counter()
    difference = parity(lm)
    check("logits with hooks", began, f"largest difference {difference:.1e} to transformers", difference == 0.0)
    began = time.perf_counter()
    batch = lm.encode(list(PROMPTS))
    before = lm.forward(batch)
    check("forward", began, f"{int(batch.mask.sum())} tokens")
    began = time.perf_counter()
    ref = a.down(lm.model, a.n_layers // 6)
    rows, cols = lm.model.get_parameter(ref.name).shape
    delta = Delta(left=torch.full((rows, 1), 1e-2), right=torch.full((1, cols), 1e-2))
    entry = lm.ledger.apply(Edit("doctor", {}, [], {ref.name: delta}))
    moved = float((lm.forward(batch) - before).abs().max())
    check("tiny edit", began, f"{entry.id} moves a logit by {moved:.1e}", moved > 0)
    began = time.perf_counter()
    lm.undo()
    back = lm.state_hash == lm.base_hash and torch.equal(lm.forward(batch), before)
    check("undo", began, "weights and logits bit-identical" if back else "NOT restored", back)
    rows_shown = [["ok" if c["ok"] else "FAILED", c["check"], c["finding"], f"{c['seconds']} s"] for c in checks]
    failed = [str(c["check"]) for c in checks if not c["ok"]]
    if failed:
        out.warn(f"failed: {', '.join(failed)}.")
    out.result({"model": lm.name, "checks": checks}, text_table(["", "check", "finding", "time"], rows_shown))
    if failed:
        # Said in the result already, which is the one object of --json.
        raise typer.Exit(1)


def _special_tokens(lm: LM) -> tuple[str, bool]:
    """What is put in front of texts, and which tokens of the tokenizer the model has no embedding of."""
    tok = lm.tokenizer
    parts = []
    for ids, what in ((lm.affixes[0], "in front of every text"), (lm.sink_ids, "as sink")):
        said = " ".join(tok.convert_ids_to_tokens(list(ids)))
        parts.append(f"{said or 'nothing'} {what}")
    beyond = sorted((i, token) for token, i in tok.get_vocab().items() if i >= lm.n_embedded)
    if beyond:
        names = ", ".join(token for _, token in beyond[:3]) + (", ..." if len(beyond) > 3 else "")
        parts.append(f"{len(beyond)} of the tokenizer are not in the embedding: {names}")
    is_ok = bool(lm.sink_ids) and all(i < lm.n_embedded for i in lm.sink_ids)
    return "; ".join(parts), is_ok


def register(app: typer.Typer) -> None:
    app.command()(spread(doctor))
