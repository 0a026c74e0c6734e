"""results.md from finished studies: headline, remarks and table of each.

python experiments/memory/report.py [--root runs/memory] [--update-results]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from editlab.config import build
from editlab.runs.memory.verbs import VERBS
from editlab.runs.records import list_runs

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, results_folder


def main() -> None:
    """Write results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/memory"))
    add_option(parser)
    options = parser.parse_args()
    root = options.root
    parts = ["# Results\n\nWritten by `report.py`; intervals are 95 %, seeds and items resampled.\n"]
    for run in list_runs(root):
        if run.kind != "memory" or run.state != "complete":
            continue
        verb = VERBS[run.manifest["verb"]]
        settings = build(verb.settings, run.manifest["config"], run.name)
        result = verb.result(pd.read_parquet(run.folder / "results.parquet"), settings, str(run.model), ())
        changed = {k: v for k, v in settings.model_dump().items() if v != verb.settings().model_dump()[k]}
        said = ", ".join(f"{k}={v}" for k, v in changed.items())
        # Of the manifest: only the run knows which courses ended early.
        remarks = "\n".join(f"- {remark}" for remark in run.manifest["remarks"])
        parts.append(
            f"## {run.model}: {verb.name}\n\n{result.headline}\n\n{remarks}\n- Settings: {said}\n\n"
            f"```\n{result.table()}\n```\n"
        )
    (results_folder(__file__, options.update_results) / "results.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
