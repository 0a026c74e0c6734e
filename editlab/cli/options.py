"""Options that mean the same in every command, and groups of them that arrive as one object.

@app.command()
@spread
def generate(out: Output, checkpoint: EditedCheckpoint, seed: Seed = 0) -> None:
    lm = checkpoint.open(out.on_step)

A parameter whose type is a dataclass stands for its fields, which are options like any other: `Output` brings --json
and --quiet, `Checkpoint` --model, --revision, --dtype, --device, --device-map and --threads, `EditedCheckpoint` --edits
too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from editlab.progress import OnStep

if TYPE_CHECKING:
    from editlab.lm import LM


def _use_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


def _known_prefix(given: str | None) -> str | None:
    from editlab.joining import check_prefix

    return None if given is None else check_prefix(given)


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME_OR_PATH",
        envvar="EDITLAB_MODEL",
        help="A registered checkpoint, a model folder, or a hub id. The default checkpoint if left out.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub model; the hub's own weights."),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="DTYPE", help="float32, float16, bfloat16, float64, or auto (as saved)."),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N, or auto.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="MAP",
        help="Instead of --device, for models that fit on none: auto spreads them over GPUs, memory and disk.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        callback=_use_threads,
        help="CPU threads; torch's choice if left out.",
    ),
]
Edits = Annotated[Path | None, typer.Option("--edits", help="Run or pack whose edits are in force.")]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Where random choices start from.")]
SkipMalformed = Annotated[
    bool, typer.Option("--skip-malformed", help="With --file: report malformed rows and go on without them.")
]
TargetPrefix = Annotated[
    str | None,
    typer.Option(
        "--target-prefix",
        metavar="PREFIX",
        callback=_known_prefix,
        help="Between prompt and answer: auto (by the script and signs; the default), space, none, or as-written.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]


def new_folder(help: str, *, may_resume: bool = False) -> Any:
    """The option --out, for a folder that must not hold anything yet; that is found out before any work is done.

    Args:
        may_resume: the folder of a run that was begun is accepted.
    """

    def check(folder: Path | None) -> Path | None:
        if folder is not None and Path(folder).exists():
            from editlab.runs import check_free
            from editlab.runs.journal import NAME as JOURNAL

            if not (may_resume and (Path(folder) / JOURNAL).exists()):
                check_free(Path(folder))
        return folder

    return typer.Option("--out", "-o", callback=check, help=help)


@dataclass(frozen=True)
class Checkpoint:
    """Which model to open, and how."""

    model: Model = None
    revision: Revision = None
    dtype: Dtype = "float32"
    device: Device = "cpu"
    device_map: DeviceMap = None
    threads: Threads = None

    def open(self, on_step: OnStep, default: str | None = None) -> LM:
        """The model; `default` is the one that is meant where --model is left out."""
        from editlab.lm import LM

        return LM.from_pretrained(
            self.model or default,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            on_step=on_step,
        )


@dataclass(frozen=True)
class EditedCheckpoint(Checkpoint):
    """Which model to open, and with which edits."""

    edits: Edits = None

    def open(self, on_step: OnStep, default: str | None = None) -> LM:
        """The model with its edits."""
        lm = super().open(on_step, default)
        if self.edits is not None:
            lm.load_edits(self.edits)
        return lm


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command that typer can read, of one with dataclasses among its parameters: each gives its fields as options.

    In the help they come behind the command's own options. One that is a context manager is entered for the call.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups: dict[str, type] = {name: hints[name] for name in own if is_dataclass(hints[name])}
    shown = [(name, own[name].default) for name in own if name not in groups]
    of_group: dict[str, list[str]] = {}
    for name, group in reversed(groups.items()):
        options = [f for f in fields(group) if f.init]
        of_group[name] = [f.name for f in options]
        shown += [(f.name, inspect.Parameter.empty if f.default is MISSING else f.default) for f in options]
        hints |= get_type_hints(group, include_extras=True)

    @wraps(command)
    def call(**given: Any) -> None:
        with ExitStack() as entered:
            made = {name: groups[name](**{f: given.pop(f) for f in names}) for name, names in of_group.items()}
            for group in made.values():
                if isinstance(group, AbstractContextManager):
                    entered.enter_context(group)
            command(**given, **made)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, default=d, annotation=hints[name]) for name, d in shown]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {name: hints[name] for name, _ in shown}
    return call
