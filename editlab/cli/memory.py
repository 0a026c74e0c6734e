"""`editlab memory`: what a model keeps of what it saw a few times, or was edited to believe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output
from editlab.cli.edit import interruptible
from editlab.cli.options import Checkpoint, EditedCheckpoint, Seed, new_folder, spread
from editlab.display import text_table
from editlab.errors import ConfigError
from editlab.jsonable import records

if TYPE_CHECKING:
    from editlab.lm import LM

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SETTING=VALUE]...", help="Settings over the preset's; 'editlab memory settings VERB'."),
]
Updates = Annotated[int | None, typer.Option("--updates", min=1, help="Updates of further training on other text.")]


@dataclass(frozen=True)
class Texts:
    """What is studied, and how much of it."""

    preset: Annotated[str, typer.Option("--preset", help="quick, standard, full or paper.")] = "standard"
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Kind of pairs; repeat for several. See editlab/data/stimuli.")
    ] = None
    file: Annotated[
        Path | None, typer.Option("--file", help="Texts of your own: a text a line, or columns text, foil.")
    ] = None
    seed: Seed = 0

    def values(self, overrides: list[str] | None, *, retain: bool = False) -> dict[str, Any]:
        """Settings of a study."""
        from editlab.runs.memory.settings import preset

        if self.kind and self.file is not None:
            raise ConfigError("--kind and --file exclude each other.", "A file brings its own foils.")
        values = preset(self.preset, retain=retain) | _given(overrides, self.seed, self.file)
        if self.kind:
            values["kinds"] = tuple(self.kind)
        return values


def _given(overrides: list[str] | None, seed: int, file: Path | None = None) -> dict[str, Any]:
    """What the options say of a study's settings; --file over SETTING=VALUE, and that over --seed."""
    from editlab.config import parse_overrides

    values = {"seed": seed} | parse_overrides(overrides or [])
    return values | ({"file": str(file)} if file is not None else {})


@dataclass(frozen=True)
class Target:
    """Where a study goes, if it is carried out."""

    run: Annotated[Path | None, new_folder("Run folder; default runs/TIME-memory-HASH.", may_resume=True)] = None
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will take, and stop.")] = False


def recognize(
    out: Output, checkpoint: EditedCheckpoint, texts: Texts, target: Target, overrides: Overrides = None
) -> None:
    """Does the model tell what it studied from what it did not? Two-alternative choice, after each exposure."""
    study(out, checkpoint, "recognize", texts.values(overrides), target)


def recall(
    out: Output, checkpoint: EditedCheckpoint, texts: Texts, target: Target, overrides: Overrides = None
) -> None:
    """Given the first half of a studied text, does the model say the second? Exact, by token, and by ROUGE."""
    study(out, checkpoint, "recall", {"rouge": True} | texts.values(overrides), target)


def retain(
    out: Output,
    checkpoint: EditedCheckpoint,
    texts: Texts,
    target: Target,
    overrides: Overrides = None,
    updates: Updates = None,
) -> None:
    """How long do recognition and recall last while training goes on with other text?"""
    from editlab.runs.memory.settings import spread as spread_out

    values = texts.values(overrides, retain=True)
    if updates is not None:
        values["times"] = spread_out(updates)
    study(out, checkpoint, "retain", values, target)


def study(out: Output, checkpoint: Checkpoint, name: str, values: dict[str, Any], target: Target) -> None:
    """Carry out a verb of the harness, and show what it found."""
    from editlab.config import build
    from editlab.runs.memory.verbs import VERBS

    settings = build(VERBS[name].settings, values, f"memory {name}")
    carry_out(out, checkpoint.open(out.on_step), name, settings, target)


def carry_out(out: Output, lm: LM, name: str, settings: Any, target: Target, *, force: bool = False) -> None:
    """Run a verb, or say what it will take."""
    from editlab.runs import run_folder
    from editlab.runs.memory.estimate import cost
    from editlab.runs.memory.run import run_memory
    from editlab.runs.memory.verbs import VERBS

    verb = VERBS[name]
    if target.estimate:
        found = cost(lm, settings, verb.laid_out(lm, settings, out.on_step), verb.probed(settings))
        out.result({"verb": name, **found.to_record()}, found.text)
        return
    folder = target.run or run_folder("memory", lm.base_hash)
    with interruptible(folder):
        result = run_memory(lm, verb, settings, folder, out.on_step, force=force, on_cost=lambda text: out.say(text))
    show(out, result, folder)


def show(out: Output, result: Any, folder: Path) -> None:
    """A result's table, remarks and headline."""
    out.show(result.table())
    remarks = result.remarks()
    out.result(
        {"run": str(folder), "headline": result.headline, "remarks": remarks, "rows": records(result.to_pandas())},
        "\n".join([result.headline, *remarks, f"Run: {folder}"]),
    )


def acquire(
    out: Output,
    checkpoint: EditedCheckpoint,
    target: Target,
    overrides: Overrides = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Passages in the layout 'fictional'; default invented ones.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """What does each injection of a passage teach, how deep, and how fast is it lost?"""
    study(out, checkpoint, "acquire", _given(overrides, seed, file), target)


def order(
    out: Output,
    checkpoint: EditedCheckpoint,
    target: Target,
    overrides: Overrides = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Text that passages are from; default invented events.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Which of two passages came first? With the text in sight, without it, and after studying it (a control)."""
    study(out, checkpoint, "order", _given(overrides, seed, file), target)


def unlearn(
    out: Output, checkpoint: EditedCheckpoint, target: Target, overrides: Overrides = None, seed: Seed = 0
) -> None:
    """Study texts, then forget half of them by dampening weights: what goes, what stays, where to stop."""
    study(out, checkpoint, "unlearn", _given(overrides, seed), target)


def survive(
    out: Output,
    checkpoint: Checkpoint,
    target: Target,
    pack: Annotated[
        Path | None,
        typer.Argument(help="Run or pack whose edits are followed; without one, engines teach the same facts."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="A setting; repeat for several.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="train, 'train, matched', or a method; repeat. Default: all that can."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Facts to teach, in any layout.")] = None,
    updates: Updates = None,
    seed: Seed = 0,
) -> None:
    """How long would this edit last under further fine-tuning? And would training have lasted longer?"""
    from editlab.runs.memory.settings import spread as spread_out

    values = _given(setting, seed, file)
    values |= {"engines": tuple(engine)} if engine else {}
    values |= {"times": spread_out(updates)} if updates is not None else {}
    if pack is not None and file is not None:
        raise ConfigError("A pack brings its own facts.", "Leave --file out.")
    if pack is not None:
        from editlab.runs.memory.survive import LOADED

        values.setdefault("engines", (LOADED,))
    study(out, EditedCheckpoint(**vars(checkpoint), edits=pack), "survive", values, target)


def calibrate(
    out: Output,
    checkpoint: EditedCheckpoint,
    texts: Texts,
    overrides: Overrides = None,
    lr: Annotated[list[float] | None, typer.Option("--lr", help="A rate to try; repeat. Default 1e-5 to 1e-3.")] = None,
    aim: Annotated[float, typer.Option("--aim", min=0.01, max=1, help="Exact recall that is enough.")] = 0.9,
) -> None:
    """The smallest learning rate at which texts are recalled, on texts that no study reports."""
    from editlab.config import build
    from editlab.runs.memory.calibrate import GRID
    from editlab.runs.memory.calibrate import calibrate as sweep
    from editlab.runs.memory.settings import StudySettings

    settings = build(StudySettings, texts.values(overrides), "memory calibrate")
    lm = checkpoint.open(out.on_step)
    found = sweep(lm, settings, tuple(lr) if lr else GRID, aim, out.on_step)
    points = found.table.to_dict("records")
    cells = [[f"{r['lr']:g}", f"{r['recognition']:.0%}", f"{r['recall']:.0%}", f"{r['drift']:+.2f}"] for r in points]
    out.show(text_table(["lr", "recognised after one", "recalled at the end", "drift (nats)"], cells))
    data = {"chosen": found.chosen, "aim": aim, "n": found.items, "points": points}
    out.result(data, found.headline)


def settings(
    out: Output, verb: Annotated[str, typer.Argument(help="recognize, recall, retain, ...")] = "retain"
) -> None:
    """The settings of a verb, with default, range and meaning."""
    from editlab.config import settings_of
    from editlab.errors import UnknownName, did_you_mean
    from editlab.runs.memory.verbs import VERBS

    if verb not in VERBS:
        raise UnknownName(f"There is no verb '{verb}'.", did_you_mean(verb, list(VERBS)))
    rows = settings_of(VERBS[verb].settings)
    cells = [[r["name"], "" if r["default"] is None else r["default"], r["range"], r["description"]] for r in rows]
    out.show(text_table(["setting", "default", "range", "meaning"], cells))
    out.result({"verb": verb, "settings": rows})


def register(app: typer.Typer) -> None:
    memory = typer.Typer(
        help="Recognition, recall and retention after a few exposures or edits; trains a private copy.",
        no_args_is_help=True,
    )
    app.add_typer(memory, name="memory")
    for command in (recognize, recall, retain, acquire, order, unlearn, survive, calibrate, settings):
        memory.command()(spread(command))
