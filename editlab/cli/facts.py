"""`editlab facts`: counterfactuals of a relation as a facts file, of those that a model knows if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editlab.cli.console import Output
from editlab.cli.options import Checkpoint, Seed, spread
from editlab.errors import ConfigError, RequestError


def facts(
    out: Output,
    checkpoint: Checkpoint,
    relation: Annotated[str, typer.Argument(help="See 'editlab ls relations'.")],
    file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="New .jsonl file to write.")],
    known: Annotated[bool, typer.Option("--known", help="Only facts that the model knows.")] = False,
    stem: Annotated[
        str | None, typer.Option("--stem", help="Prompt with {} for the subject; the relation's first if left out.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    seed: Seed = 0,
) -> None:
    """Write facts to edit: each a true answer and a counterfactual one, with paraphrases and neighbours."""
    from editlab.data.relations import relation as find
    from editlab.state.files import write_text

    found = find(relation)
    if file.exists():
        raise ConfigError(f"'{file}' exists already.", "Choose another --out.")
    made = found.facts(stem=stem, seed=seed, limit=limit)
    data: dict[str, object] = {"relation": found.name, "rows": len(found.rows)}
    text = f"{len(found.rows)} rows"
    if known:
        from editlab.evaluation.known import known as ask

        lm = checkpoint.open(out.on_step)
        asked = ask(lm, found, stem, on_step=out.on_step)
        made = asked.facts(seed=seed, limit=limit)
        data |= {"model": lm.name, "known": len(asked.rows), "not_said": asked.not_said, "guessed": asked.guessed}
        text += f"; {lm.name} knows {len(asked.rows)}, does not say {asked.not_said}, guesses {asked.guessed}"
    if not made:
        raise RequestError(f"{text}: there is nothing to write.", "Try another --stem or --model.")
    write_text(file, "".join(f"{fact.model_dump_json(exclude_defaults=True)}\n" for fact in made))
    out.result({**data, "file": str(file), "facts": len(made)}, f"{text}. {len(made)} facts in {file}.")


def register(app: typer.Typer) -> None:
    app.command()(spread(facts))
