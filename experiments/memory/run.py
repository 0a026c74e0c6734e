"""Studies of memory on the default model and on a fact world, each into a run folder that survives a kill.

    python experiments/memory/run.py                 # all studies of both models; finished ones are kept
    python experiments/memory/run.py retain survive --model factworld-llama

The figure that compares training with editing methods is `figures/survival.json` (and .html) of the study `survive`.
`report.py` puts the numbers of all finished studies into results.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from editlab import LM
from editlab.errors import EditlabError
from editlab.runs.memory.run import read_planned, run_memory
from editlab.runs.memory.settings import preset
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import read_record
from editlab.viz.files import load_figures

MODELS = ("smollm2-135m", "factworld-llama")
METHODS = ("rome", "memit", "emmet", "alphaedit", "wise")
# The fact world is small: it takes larger steps, and more of them, to learn and to forget.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "smollm2-135m": {
        "retain": preset("standard", retain=True),
        "survive": {"engines": ("train", "train, matched", *METHODS), "items": 12, "lr": 1e-4, "filler_lr": 3e-4},
        "acquire": {"seeds": 1},
        "order": {"seeds": 1},
    },
    "factworld-llama": {
        "retain": preset("standard", retain=True) | {"lr": 1e-3, "exposures": 10, "items": 32},
        "survive": {
            "engines": ("train", "train, matched", *METHODS), "items": 24, "lr": 1e-3, "filler_lr": 3e-3,
            "times": (1, 2, 5, 10, 20, 35, 50),
        },
        "acquire": {"seeds": 2, "lr": 1e-3},
        "unlearn": {"kinds": ("letters", "sentence"), "exposures": 8, "lr": 1e-3},
    },
}  # fmt: skip


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["retain", "survive", "acquire"])
    parser.add_argument("--model", action="append", help="default both")
    parser.add_argument("--root", type=Path, default=Path("runs/memory"))
    args = parser.parse_args()
    for name in args.model or MODELS:
        lm = LM.from_pretrained(name)
        for study in (s for s in args.studies if s in STUDIES[name]):
            carry_out(lm, name, study, args.root / f"{name}-{study}")


def carry_out(lm: LM, name: str, study: str, folder: Path) -> None:
    """One study, begun or gone on with; a finished one is left alone."""
    if folder.is_dir() and read_record(folder).state == "complete":
        print(f"{folder}: {read_record(folder).headline}")
        return
    began = time.perf_counter()
    planned = read_planned(folder, VERBS)
    verb = VERBS[study]
    settings = planned.settings if planned else verb.settings(**STUDIES[name][study])
    try:
        result = run_memory(lm, verb, settings, folder)
    except EditlabError as error:
        print(f"{folder}: {error}")
        return
    for title, figure in load_figures(folder).items():
        figure.write_html(folder / "figures" / f"{title}.html", include_plotlyjs=True)
    seconds = time.perf_counter() - began
    print("\n".join([f"{folder} ({seconds:.0f} s)", result.headline, *result.remarks(), result.table()]), flush=True)


if __name__ == "__main__":
    main()
