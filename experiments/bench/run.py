"""Every benchmark, one after the other, and the table of what they wrote.

    python experiments/bench/run.py FACTS.json            # about half an hour on 2 cores
    python experiments/bench/run.py FACTS.json --only capture trace
    python experiments/bench/run.py --table               # print the table alone, from runs/bench-*.json
    python experiments/bench/run.py --table --update-results   # and put it into the READMEs

FACTS is a CounterFact file. Each script is a process of its own, so that memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Row

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, read_facts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Script and what it is given; FACTS stands for the file.
SCRIPTS: dict[str, list[str]] = {
    "capture": [],
    "loading": [],
    "rome": [],
    "values": ["FACTS", "--facts", "64", "--plain", "6"],
    "key_statistics": [],
    "trace": ["--plain", "6"],
    "evaluation": ["FACTS", "--records", "40"],
    "conflicts": ["--naive", "2"],
    "channels": [],
    "wise": [],
    "app": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    add_option(parser, "the tables in the READMEs")
    options = parser.parse_args()
    if not options.table and any("FACTS" in SCRIPTS[name] for name in options.only):
        if options.facts is None:
            parser.error("name a CounterFact file")
        read_facts(parser, [Path(options.facts)])  # whether it can be read is known before minutes of work
    failed = []
    for name in [] if options.table else options.only:
        given = [options.facts if word == "FACTS" else word for word in SCRIPTS[name]]
        for option in ("model", "device", "threads"):
            if getattr(options, option) is not None:
                given += [f"--{option}", str(getattr(options, option))]
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *given]).returncode:
            failed.append(name)
    records = {path.stem.removeprefix("bench-"): json.loads(path.read_text()) for path in Path("runs").glob("bench-*")}
    found = [
        (records[name], Row(**row)) for name in SCRIPTS if name in records for row in records[name].get("rows", [])
    ]
    if found:
        print(full(found))
    if found and options.update_results:
        put(HERE / "README.md", full(found))
        put(ROOT / "README.md", short(found))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def full(found: list[tuple[dict[str, Any], Row]]) -> str:
    """Every row with all that was measured."""
    lines = [
        "| what | beside | editlab | the other | times as long (quartiles) | floor | memory | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in found:
        spread = f" ({row.spread[0]:.3g} to {row.spread[1]:.3g})" if row.spread else ""
        why = f"; {row.why}" if row.why and row.ratio < 1 else ""
        other = _seconds(row.other) + (f", from {row.of}" if row.of else "")
        cells = [
            row.what,
            row.beside,
            _seconds(row.seconds),
            other,
            f"**{row.ratio:.3g}**{spread}{why}",
            "" if row.floor is None else f"{_seconds(row.floor)}, {row.floor / row.seconds:.0%}",
            "" if row.memory is None else f"{row.memory / 1e6:.0f} MB",
            row.agrees,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", conditions(found)])


def short(found: list[tuple[dict[str, Any], Row]]) -> str:
    """What and beside what, and the ratio."""
    lines = ["| what | beside | times as long as editlab |", "|---|---|---|"]
    for _, row in found:
        why = f" ({row.why})" if row.why and row.ratio < 1.05 else ""
        lines.append(f"| {row.what} | {row.beside} | {row.ratio:.3g}{why} |")
    return "\n".join([*lines, "", conditions(found)])


def conditions(found: list[tuple[dict[str, Any], Row]]) -> str:
    """What the numbers depend on."""
    said = sorted(
        {
            f"{r['machine']}, {r['device']}, {r['threads']} threads, torch {r['torch']}, Python {r['python']}"
            for r, _ in found
        }
    )
    rates = sorted(r["gemm_flops"] / 1e9 for r, _ in found)
    return f"Measured on {'; '.join(said)}. A large product of matrices ran at {rates[len(rates) // 2]:.0f} GFLOP/s."


def put(page: Path, table: str) -> None:
    """The table in place of the one between the marks."""
    marked = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    assert marked.search(text), f"{page} has no place for the table"
    page.write_text(marked.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text), encoding="utf-8")
    print(f"Written to {page}")


def _seconds(x: float) -> str:
    return f"{1e3 * x:.3g} ms" if x < 1 else f"{x:.3g} s" if x < 1000 else f"{x:.0f} s"


if __name__ == "__main__":
    main()
