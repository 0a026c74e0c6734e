"""What the benchmarks share: options, interleaved timing, so that a busy machine hits both sides alike, the record."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for; the number of threads is set."""
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def interleaved(work: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each piece of work in every round; the pieces take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in range(warm_up + rounds):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> tuple[float, float, float]:
    """Median of the per-round ratios, and their quartiles."""
    each = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
    return middle, low, high


def report(seconds: dict[str, list[float]], to: str) -> dict[str, object]:
    """Print and return each piece of work's median time, and its ratio to the piece called `to`."""
    found: dict[str, object] = {}
    for name, values in seconds.items():
        middle, low, high = ratio(seconds, name, to)
        found[name] = {"median_s": statistics.median(values), f"over_{to}": middle, "quartiles": [low, high]}
        shown = f"{statistics.median(values) * 1e3:8.1f} ms"
        print(f"{name:17} {shown}   {middle:.3f} x {to}  (quartiles {low:.3f}, {high:.3f})")
    return found


def write(name: str, found: dict[str, object]) -> None:
    """Keep the numbers with what they depend on."""
    record = {
        **found,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    path = Path("runs") / f"bench-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Written to {path}")
