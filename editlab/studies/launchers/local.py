"""This machine: in this process with one worker, in a pool of processes with more."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from editlab.studies.launchers import Launch, Lost

T = TypeVar("T")
R = TypeVar("R")


class Config(Launch):
    """Nothing beyond what every launcher has."""


def launch(function: Callable[[T], R], tasks: Sequence[T], config: Config) -> Iterator[tuple[int, R | Lost]]:
    """Carry the tasks out here; a pool that lost a worker is made again for what was not done."""
    if config.workers == 1:
        for number, task in enumerate(tasks):
            yield number, function(task)
        return
    left = deque(range(len(tasks)))
    losses: Counter[int] = Counter()
    while left:
        under_way: dict[Future[R], int] = {}
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            min(config.workers, len(left)), multiprocessing.get_context("spawn"), _begin, (config.threads_each,)
        )
        try:
            while left or under_way:
                # No more than there are workers: when one is lost, it is known whose task it may have been.
                while left and len(under_way) < config.workers:
                    number = left.popleft()
                    under_way[pool.submit(function, tasks[number])] = number
                for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                    number = under_way.pop(ended)
                    try:
                        yield number, ended.result()
                    except BrokenProcessPool:
                        under_way[ended] = number
                        raise
        except BrokenProcessPool:
            for number in sorted(under_way.values(), reverse=True):
                losses[number] += 1
                if losses[number] <= config.retries:
                    left.appendleft(number)
                else:
                    yield number, Lost(f"its worker was lost {losses[number]} times")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
                worker.join()


def _begin(threads: int) -> None:
    """What a worker does first: it takes its threads, leaves Ctrl-C to its parent, and ends when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        wait_for([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
