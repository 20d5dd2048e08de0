"""Contenders in processes of their own, which take turns: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from .loads import Load


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some numbers."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """That of these numbers."""
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True)
class How:
    """How often to measure, and by which clock: ``wall``, or ``cpu`` (see `__main__`)."""

    rounds: int = 5
    clock: str = "wall"


def seconds(load: Load, names: Sequence[str], how: How) -> dict[str, list[float]]:
    """Time each contender once a round, in an order that moves on; after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(load, name, how.clock)) for name in names}
        for turn in range(how.rounds + 1):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                workers[name].send(True)
                found[name].append(workers[name].recv())
    return {name: times[1:] for name, times in found.items()}


def ratio(times: dict[str, list[float]], name: str, to: str = "plain") -> Spread:
    """Ratio of the medians; least and largest ratio within a round."""
    within = [one / other for one, other in zip(times[name], times[to], strict=True)]
    return Spread(statistics.median(times[name]) / statistics.median(times[to]), min(within), max(within))


@contextmanager
def _worker(load: Load, name: str, clock: str) -> Iterator[Connection]:
    """A process that runs a contender whenever it is sent True, and answers with seconds."""
    context = get_context("spawn")  # a fork would share the coordinator's memory and threads
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, load, name, clock))
    process.start()
    there.close()  # or the end of the process would not end the connection
    try:
        yield here
        here.send(False)
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, load: Load, name: str, clock: str) -> None:
    from .contenders import RUNS, make_ready  # PyTorch, which the coordinator does without
    from .prepared import Prepared

    now = time.process_time if clock == "cpu" else time.perf_counter
    make_ready(name)
    while connection.recv():
        prepared = Prepared(load)
        gc.collect()
        connection.send(RUNS[name](prepared, now))
        del prepared
