"""What the benchmarks share: options, interleaved timing, so that a busy machine hits both sides alike, the record.

Every script writes `runs/bench-NAME.json`: what it measured, and under "rows" what goes into the table of `run.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Row:
    """A line of the table: what editlab takes beside something else.

    Attributes:
        seconds, other: editlab's and the other's, of the clock or of the processor, but both of one kind.
        of: what the other's seconds were scaled up from, where it was not run to the end.
        spread: quartiles of the ratio over rounds, items, facts or whatever was timed several times.
        floor: seconds that the floating-point operations of editlab's way take at the rate of a large matrix product.
        memory: bytes on top of the loaded model, highest.
        agrees: how far both results are from each other, in words.
        why: where editlab is not ahead, the reason.
    """

    what: str
    beside: str
    seconds: float
    other: float
    of: str = ""
    spread: tuple[float, float] | None = None
    floor: float | None = None
    memory: float | None = None
    agrees: str = ""
    why: str = ""

    @property
    def ratio(self) -> float:
        return self.other / self.seconds


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for; the number of threads is set."""
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def now() -> float:
    """Seconds of the clock, everything that was asked of a GPU being done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(work: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each piece of work in every round; the pieces take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in range(warm_up + rounds):
        for name, run in work.items():
            began = now()
            run()
            if i >= warm_up:
                seconds[name].append(now() - began)
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> tuple[float, float, float]:
    """Median of the per-round ratios, and their quartiles."""
    low, middle, high = quartiles([a / b for a, b in zip(seconds[of], seconds[to], strict=True)])
    return middle, low, high


def beside(what: str, seconds: dict[str, list[float]], ours: str, theirs: str, **more: object) -> Row:
    """A row of rounds in which both took their turn; the ratio is the median one."""
    middle, low, high = ratio(seconds, theirs, ours)
    own = statistics.median(seconds[ours])
    return Row(what, theirs, own, own * middle, spread=(low, high), **more)  # type: ignore[arg-type]


def report(seconds: dict[str, list[float]], to: str) -> dict[str, object]:
    """Print and return each piece of work's median time, and its ratio to the piece called `to`."""
    found: dict[str, object] = {}
    for name, values in seconds.items():
        middle, low, high = ratio(seconds, name, to)
        found[name] = {"median_s": statistics.median(values), f"over_{to}": middle, "quartiles": [low, high]}
        shown = f"{statistics.median(values) * 1e3:8.1f} ms"
        print(f"{name:17} {shown}   {middle:.3f} x {to}  (quartiles {low:.3f}, {high:.3f})")
    return found


@cache
def gemm_rate(device: str = "cpu", size: int = 2048) -> float:
    """Floating-point operations a second of a float32 matrix product: the best of five rounds."""
    a = torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(5):
        began = now()
        a @ a
        best = min(best, now() - began)
    return 2 * size**3 / best


def counted(work: Callable[[], object]) -> float:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def floor(flops: float, device: str = "cpu") -> float:
    """Seconds that so many operations take at that rate."""
    return flops / gemm_rate(device)


def write(name: str, found: dict[str, object], rows: Iterable[Row] = ()) -> None:
    """Keep the numbers with what they depend on."""
    record = {
        **found,
        "rows": [asdict(row) for row in rows],
        "threads": torch.get_num_threads(),
        "gemm_flops": gemm_rate(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    path = Path("runs") / f"bench-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Written to {path}")
