"""`editlab memory`: what a model keeps of what it saw a few times, or was edited to believe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli import options
from editlab.cli.console import Output, table
from editlab.cli.edit import interruptible
from editlab.errors import ConfigError

if TYPE_CHECKING:
    from editlab.lm import LM

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SETTING=VALUE]...", help="Settings over the preset's; 'editlab memory settings VERB'."),
]
Preset = Annotated[str, typer.Option("--preset", help="quick, standard, full or paper.")]
Kind = Annotated[
    list[str] | None, typer.Option("--kind", help="Kind of pairs; repeat for several. See editlab/data/stimuli.")
]
File = Annotated[Path | None, typer.Option("--file", help="Texts of your own: a text a line, or columns text, foil.")]
Edits = Annotated[Path | None, typer.Option("--edits", help="Run or pack whose edits are in force.")]
Run = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/TIME-memory-HASH.")]
Estimate = Annotated[bool, typer.Option("--estimate", help="Say what it will take, and stop.")]


def register(app: typer.Typer) -> None:
    memory = typer.Typer(
        help="Recognition, recall and retention after a few exposures or edits; trains a private copy.",
        no_args_is_help=True,
    )
    app.add_typer(memory, name="memory")
    _register_studies(memory)
    _register_acquire(memory)
    _register_unlearn(memory)
    _register_survive(memory)
    _register_calibrate(memory)
    _register_settings(memory)


def _register_studies(memory: typer.Typer) -> None:
    @memory.command()
    def recognize(
        overrides: Overrides = None, preset: Preset = "standard", kind: Kind = None, file: File = None,
        seed: options.Seed = 0, model: options.Model = None, edits: Edits = None, device: options.Device = "cpu",
        threads: options.Threads = None, run: Run = None, estimate: Estimate = False, as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """Does the model tell what it studied from what it did not? Two-alternative choice, after each exposure."""
        values = _study_values(overrides, preset, kind, file, seed)
        study("recognize", values, model, edits, device, run, estimate, as_json, quiet)

    @memory.command()
    def recall(
        overrides: Overrides = None, preset: Preset = "standard", kind: Kind = None, file: File = None,
        seed: options.Seed = 0, model: options.Model = None, edits: Edits = None, device: options.Device = "cpu",
        threads: options.Threads = None, run: Run = None, estimate: Estimate = False, as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """Given the first half of a studied text, does the model say the second? Exact, by token, and by ROUGE."""
        values = {"rouge": True} | _study_values(overrides, preset, kind, file, seed)
        study("recall", values, model, edits, device, run, estimate, as_json, quiet)

    @memory.command()
    def retain(
        overrides: Overrides = None, preset: Preset = "standard", kind: Kind = None, file: File = None,
        updates: Annotated[
            int | None, typer.Option("--updates", min=1, help="Updates of further training on other text.")
        ] = None,
        seed: options.Seed = 0, model: options.Model = None, edits: Edits = None, device: options.Device = "cpu",
        threads: options.Threads = None, run: Run = None, estimate: Estimate = False, as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """How long do recognition and recall last while training goes on with other text?"""
        from editlab.runs.memory.settings import spread

        values = _study_values(overrides, preset, kind, file, seed, retain=True)
        if updates is not None:
            values["times"] = spread(updates)
        study("retain", values, model, edits, device, run, estimate, as_json, quiet)


def _study_values(
    overrides: list[str] | None, preset: str, kind: list[str] | None, file: Path | None, seed: int, *,
    retain: bool = False,
) -> dict[str, Any]:  # fmt: skip
    from editlab.config import parse_overrides
    from editlab.runs.memory.settings import preset as preset_of

    if kind and file is not None:
        raise ConfigError("--kind and --file exclude each other.", "A file brings its own foils.")
    values = preset_of(preset, retain=retain) | {"seed": seed} | parse_overrides(overrides or [])
    if kind:
        values["kinds"] = tuple(kind)
    if file is not None:
        values["file"] = str(file)
    return values


def study(
    name: str, values: dict[str, Any], model: str | None, edits: Path | None, device: str, run: Path | None,
    estimate: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Carry out a verb of the harness, and show what it found."""
    from editlab.config import build

    with Output(as_json=as_json, quiet=quiet) as out:
        from editlab.runs.memory.verbs import VERBS

        settings = build(VERBS[name].settings, values, f"memory {name}")
        if run is not None and not (run / "journal.jsonl").exists():
            from editlab.runs import check_free

            check_free(run)
        lm = load(out, model, edits, device)
        carry_out(out, lm, name, settings, run, estimate)


def load(out: Output, model: str | None, edits: Path | None, device: str) -> LM:
    """The model with the edits of a pack."""
    from editlab.lm import LM

    lm = LM.from_pretrained(model, device=device, on_step=out.on_step)
    if edits is not None:
        lm.load_edits(edits)
    return lm


def carry_out(
    out: Output, lm: LM, name: str, settings: Any, run: Path | None, estimate: bool = False, force: bool = False
) -> None:
    """Run a verb, or say what it will take."""
    from editlab.runs import run_folder
    from editlab.runs.memory.estimate import cost
    from editlab.runs.memory.run import run_memory
    from editlab.runs.memory.verbs import VERBS

    verb = VERBS[name]
    if estimate:
        found = cost(lm, settings, verb.courses(lm, settings, out.on_step), verb.probed(settings))
        out.result({"verb": name, **found.to_record()}, found.text)
        return
    folder = run or run_folder("memory", lm.base_hash)
    with interruptible(folder):
        result = run_memory(lm, verb, settings, folder, out.on_step, force=force, on_cost=lambda text: out.say(text))
    show(out, result, folder)


def show(out: Output, result: Any, folder: Path) -> None:
    """A result's table, remarks and headline."""
    rows = result.to_pandas()
    out.show(result.table())
    plain = rows.astype(object).where(rows.notna(), None).to_dict("records")
    remarks = result.remarks()
    out.result(
        {"run": str(folder), "headline": result.headline, "remarks": remarks, "rows": plain},
        "\n".join([result.headline, *remarks, f"Run: {folder}"]),
    )


def _register_acquire(memory: typer.Typer) -> None:
    @memory.command()
    def acquire(
        overrides: Overrides = None,
        file: Annotated[
            Path | None, typer.Option("--file", help="Passages in the layout 'fictional'; default invented ones.")
        ] = None,
        seed: options.Seed = 0, model: options.Model = None, edits: Edits = None, device: options.Device = "cpu",
        threads: options.Threads = None, run: Run = None, estimate: Estimate = False, as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """What does each injection of a passage teach, how deep, and how fast is it lost?"""
        from editlab.config import parse_overrides

        values = {"seed": seed} | parse_overrides(overrides or [])
        values |= {"file": str(file)} if file is not None else {}
        study("acquire", values, model, edits, device, run, estimate, as_json, quiet)


def _register_unlearn(memory: typer.Typer) -> None:
    @memory.command()
    def unlearn(
        overrides: Overrides = None, seed: options.Seed = 0, model: options.Model = None, edits: Edits = None,
        device: options.Device = "cpu", threads: options.Threads = None, run: Run = None, estimate: Estimate = False,
        as_json: options.Json = False, quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """Study texts, then forget half of them by dampening weights: what goes, what stays, where to stop."""
        from editlab.config import parse_overrides

        values = {"seed": seed} | parse_overrides(overrides or [])
        study("unlearn", values, model, edits, device, run, estimate, as_json, quiet)


def _register_survive(memory: typer.Typer) -> None:
    @memory.command()
    def survive(
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
        updates: Annotated[
            int | None, typer.Option("--updates", min=1, help="Updates of further training on other text.")
        ] = None,
        seed: options.Seed = 0, model: options.Model = None, device: options.Device = "cpu",
        threads: options.Threads = None, run: Run = None, estimate: Estimate = False, as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """How long would this edit last under further fine-tuning? And would training have lasted longer?"""
        from editlab.config import parse_overrides
        from editlab.runs.memory.settings import spread

        values: dict[str, Any] = {"seed": seed} | parse_overrides(setting or [])
        values |= {"engines": tuple(engine)} if engine else {}
        values |= {"file": str(file)} if file is not None else {}
        values |= {"times": spread(updates)} if updates is not None else {}
        if pack is not None and file is not None:
            raise ConfigError("A pack brings its own facts.", "Leave --file out.")
        if pack is not None:
            values.setdefault("engines", ("loaded edits",))
        study("survive", values, model, pack, device, run, estimate, as_json, quiet)


def _register_calibrate(memory: typer.Typer) -> None:
    @memory.command()
    def calibrate(
        overrides: Overrides = None, preset: Preset = "standard", kind: Kind = None, file: File = None,
        lr: Annotated[
            list[float] | None, typer.Option("--lr", help="A rate to try; repeat. Default 1e-5 to 1e-3.")
        ] = None,
        aim: Annotated[float, typer.Option("--aim", min=0.01, max=1, help="Exact recall that is enough.")] = 0.9,
        seed: options.Seed = 0, model: options.Model = None, edits: Edits = None, device: options.Device = "cpu",
        threads: options.Threads = None, as_json: options.Json = False, quiet: options.Quiet = False,
    ) -> None:  # fmt: skip
        """The smallest learning rate at which texts are recalled, on texts that no study reports."""
        from editlab.config import build

        values = _study_values(overrides, preset, kind, file, seed)
        with Output(as_json=as_json, quiet=quiet) as out:
            from editlab.runs.memory.calibrate import GRID
            from editlab.runs.memory.calibrate import calibrate as sweep
            from editlab.runs.memory.settings import StudySettings

            settings = build(StudySettings, values, "memory calibrate")
            lm = load(out, model, edits, device)
            found = sweep(lm, settings, tuple(lr) if lr else GRID, aim, out.on_step)
            cells = [
                [f"{r['lr']:g}", f"{r['recognition']:.0%}", f"{r['recall']:.0%}", f"{r['drift']:+.2f}"]
                for r in found.table.to_dict("records")
            ]
            out.show(table(["lr", "recognised after one", "recalled at the end", "drift (nats)"], cells))
            data = {"chosen": found.chosen, "aim": aim, "n": found.items, "points": found.table.to_dict("records")}
            out.result(data, found.headline)


def _register_settings(memory: typer.Typer) -> None:
    @memory.command()
    def settings(
        verb: Annotated[str, typer.Argument(help="recognize, recall, retain, ...")] = "retain",
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        """The settings of a verb, with default, range and meaning."""
        from editlab.config import settings_of
        from editlab.errors import UnknownName, did_you_mean

        with Output(as_json=as_json, quiet=quiet) as out:
            from editlab.runs.memory.verbs import VERBS

            if verb not in VERBS:
                raise UnknownName(f"There is no verb '{verb}'.", did_you_mean(verb, list(VERBS)))
            rows = settings_of(VERBS[verb].settings)
            cells = [
                [r["name"], "" if r["default"] is None else r["default"], r["range"], r["description"]] for r in rows
            ]
            out.show(table(["setting", "default", "range", "meaning"], cells))
            out.result({"verb": verb, "settings": rows})
