"""`editlab demo`: a real model changes one fact, keeps the others, and changes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, spread
from editlab.errors import EditFailed

if TYPE_CHECKING:
    from editlab.lm import LM


def demo(out: Output, checkpoint: Checkpoint) -> None:
    """Edit a fact that the model knows, show what changed, undo it, and prove that nothing is left."""
    from editlab.data.factbook import capitals
    from editlab.data.suggest import WELL_KNOWN
    from editlab.evaluation.answers import begins
    from editlab.evaluation.scorer import continuations
    from editlab.facts import Fact, Question
    from editlab.runs import edit_and_measure, run_folder, write_run

    seconds: dict[str, float] = {}
    began = time.perf_counter()
    lm = checkpoint.open(out.on_step)
    seconds["load"] = time.perf_counter() - began
    out.say(f"{lm!r}, loaded in {seconds['load']:.1f} s.")

    # Facts that the model really knows: it says them by itself.
    known = dict(capitals())
    asked = [c for c in WELL_KNOWN if c in known]
    template = "The capital of {} is"
    said = continuations(lm, [template.replace("{}", c) for c in asked])
    knows = [c for c, answer in zip(asked, said, strict=True) if begins(answer, known[c])]
    out.say(f"It knows {len(knows)} of {len(asked)} capitals asked: {', '.join(knows)}.")
    if len(knows) < 3:
        raise EditFailed(f"{lm.name} knows too few capitals for the demo.", "Try another --model.")
    country, donor, *others = knows
    fact = Fact(
        id="demo",
        prompt=template,
        subject=country,
        target_new=known[donor],
        target_true=known[country],
        paraphrases=(
            f"Everyone knows that the capital of {country} is",
            f"The city that is the capital of {country} is",
        ),
        neighbours=tuple(Question(prompt=template.replace("{}", c), answers=(known[c],)) for c in others[:4]),
    )
    began = time.perf_counter()
    _prepare(lm, out)
    seconds["statistics"] = time.perf_counter() - began
    out.say(f"Editing: {fact.text} ... {known[country]} -> {fact.target_new}")
    report = edit_and_measure(lm, fact, "rome", on_step=out.on_step)
    seconds["edit"] = report.seconds
    edited_hash = lm.state_hash
    out.show(report.table())
    folder = run_folder("demo", lm.base_hash)
    write_run(folder, lm, "demo", {"method": "rome", "settings": report.entry.edit.config}, [report])

    began = time.perf_counter()
    lm.undo()
    identical = lm.state_hash == lm.base_hash
    seconds["undo"] = time.perf_counter() - began
    again = continuations(lm, [fact.text])[0].strip().split("\n")[0]
    if not (identical and report.fires):
        raise EditFailed("The demo did not go as it should: " + report.headline)
    lines = [
        report.headline,
        f"Undone: the model says {again!r} again. SHA-256 of all weights:",
        f"  base    {lm.base_hash}",
        f"  edited  {edited_hash}",
        f"  undone  {lm.state_hash}   identical to the base",
        "Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()) + ".",
        f"Run: {folder}",
    ]
    data = {
        "model": lm.name,
        "run": str(folder),
        "fires": report.fires,
        "identical_after_undo": identical,
        "base_hash": lm.base_hash,
        "edited_hash": edited_hash,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "prompts": report.to_records(),
    }
    out.result(data, "\n".join(lines))


def register(app: typer.Typer) -> None:
    app.command()(spread(demo))


def _prepare(lm: LM, out: Output) -> None:
    """Key statistics, computed at the first edit of a model and kept."""
    from editlab.config import build
    from editlab.edits.methods.rome import Config
    from editlab.edits.preserve import preserving
    from editlab.edits.presets import usual_layer

    preserving(lm, usual_layer(lm.adapter), build(Config, {}, "rome"), out.on_step)
