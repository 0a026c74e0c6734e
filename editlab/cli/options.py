"""Options that mean the same in every command, as types to annotate parameters with.

def locate(prompt: str, model: options.Model = None, as_json: options.Json = False) -> None: ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _use_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


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
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="DTYPE", help="float32, float16, bfloat16, float64, or auto (as saved)."),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N, or auto.")]
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
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Where random choices start from.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="PATH", help="Where to write.")]
