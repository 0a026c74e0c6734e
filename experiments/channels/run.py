"""Channels of the default model, from weights to verdicts; writes as it goes and goes on where it stopped.

    python experiments/channels/run.py --out runs/channels            # a step at a time: --only scan roles ...

Steps: scan, roles, inhibition, induction, lists, steer. Each leaves a table and a line in `said.json` in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from editlab import LM
from editlab.probes.channels import find, roles, tasks
from editlab.probes.channels.lists import score_lists
from editlab.probes.channels.parts import Part
from editlab.probes.channels.scan import Scan, scan
from editlab.probes.channels.steering import steering
from editlab.state.files import write_text

STEPS = ("scan", "roles", "inhibition", "induction", "lists", "steer")


class Study:
    """One model; what several steps need is made once."""

    def __init__(self, model: str | None, out: Path) -> None:
        self.lm, self.out = LM.from_pretrained(model), out
        self._made: dict[str, Any] = {}

    def scanned(self) -> Scan:
        if "scan" not in self._made:
            self._made["scan"] = scan(self.lm)
        found: Scan = self._made["scan"]
        return found

    def heads(self) -> roles.HeadRoles:
        if "roles" not in self._made:
            self._made["roles"] = roles.head_roles(self.lm)
        found: roles.HeadRoles = self._made["roles"]
        return found

    def run(self, step: str) -> tuple[str, pd.DataFrame]:
        """A headline and a table."""
        lm = self.lm
        if step == "scan":
            return self.scanned().headline, self.scanned().to_pandas(limit=200)
        if step == "roles":
            return self.heads().headline, self.heads().to_pandas(limit=20)
        if step in find.READERS:
            found = find.find(lm, step, self.scanned(), self.heads())
            rows = [{"channel": str(c), "effect": e} for c, e in found.screened]
            pd.DataFrame(rows).to_csv(self.out / f"{step}-screened.csv", index=False)
            return found.headline, found.tests.to_pandas()
        if step == "lists":
            scores = [score_lists(lm, tasks.laundry(lm, n, max(4, 48 // n))) for n in (2, 3, 4, 6, 8, 10)]
            table = pd.concat([s.to_pandas(("length", "pos")) for s in scores])
            by_length = pd.concat([s.to_pandas() for s in scores])
            said = ", ".join(f"{r.length} {r.accuracy:.0%}" for r in by_length.itertuples())
            return f"Accuracy by length of the list: {said} (chance 1 over length).", table
        parts = self.inhibitors()
        steered = steering(lm, parts, factors=self.scanned().factors)
        return steered.headline, steered.to_pandas()

    def inhibitors(self) -> list[Part]:
        """Up to three components whose channels were verified, strongest first; 20.0.0 where that step was not run."""
        path = self.out / "inhibition.csv"
        if not path.is_file():
            return [Part(20, 0, 0)]
        table = pd.read_csv(path, dtype={"source": str, "target": str})
        table = table[table["status"] == "verified"].sort_values("edge", ascending=False)
        return [Part.parse(source) for source in table["source"].unique()[:3]] or [Part(20, 0, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=Path("runs/channels"))
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    done = options.out / "said.json"
    said: dict[str, str] = json.loads(done.read_text()) if done.is_file() else {}
    study = Study(options.model, options.out)
    for step in options.only:
        if step in said:
            print(f"{step}: done before")
            continue
        began, cpu = time.perf_counter(), time.process_time()
        headline, table = study.run(step)
        table.to_csv(options.out / f"{step}.csv", index=False)
        said[step] = headline
        write_text(done, json.dumps(said, indent=1))
        took = f"{time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of processor"
        print(f"{step} ({took}): {headline}")
        print(table.head(12).to_string(), flush=True)


if __name__ == "__main__":
    main()
