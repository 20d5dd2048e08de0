"""What tracing costs: prints the tables of README.

    python -m tests.benchmarks                      everything: some minutes on two cores that nobody else uses
    python -m tests.benchmarks cells --loads W1 W2  one section, some of the loads
    python -m tests.benchmarks --device cuda        W2 to W4 at training size in bfloat16

Contenders run in processes of their own and take turns, so that noise hits all of them; each is compared with the
plain cell. On a machine that others use too, ``OMP_NUM_THREADS=1 python -m tests.benchmarks --clock cpu`` counts the
time on a processor in place of the time on the wall.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .growth import extremes, operations, rendering, reports, straight
from .loading import loading
from .loads import LOADS, Load
from .machine import machine
from .table import Table
from .turns import How
from .whole_cells import numbers_alone, untraced, whole_cells


def sections(loads: Sequence[Load], tiny: bool = False) -> Mapping[str, Callable[[How], Table]]:
    """What can be measured; `tiny` is for a test of the benchmark itself."""
    few, rows = (1, 3) if tiny else (1000, 200)
    rnn = LOADS[0].with_sizes(LOADS[0].tiny if tiny else {})
    return {
        "cells": partial(whole_cells, loads),
        "numbers": partial(numbers_alone, loads),
        "untraced": partial(untraced, rnn),
        "operations": partial(operations, (10, 10 * few, 100 * few)),
        "reports": partial(reports, ((10, 1), (10, few), (few, 1), (few, 10))),
        "extremes": partial(extremes, 50 * few, 10 * few),
        "rendering": partial(rendering, (straight(rows), straight(rows, rows // 2), straight(2, 10 * few), rnn)),
        "loading": loading,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each section."""
    given = _parser().parse_args(arguments)
    loads = [load for load in LOADS if load.key in given.loads]
    if given.device != "cpu":
        loads = [load.on(given.device) for load in loads if load.gpu is not None]
    if given.tiny:
        loads = [load.with_sizes(load.tiny) for load in loads]
    known = sections(loads, given.tiny)
    wanted = given.sections or (["cells"] if given.device != "cpu" else list(known))
    unknown = set(wanted) - known.keys()
    if unknown:
        _parser().error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    _measure({name: known[name] for name in wanted}, How(given.rounds, given.clock), given.device, given.json)


def _measure(wanted: Mapping[str, Callable[[How], Table]], how: How, device: str, file: Path | None) -> None:
    where = machine(device)
    found: dict[str, Any] = {**where, "clock": how.clock, "rounds": how.rounds}
    print("\n".join(f"{what}: {value}  " for what, value in where.items()), flush=True)
    for name, measure in wanted.items():
        table = measure(how)
        found[name] = table.data
        print(f"\n{table.markdown()}", flush=True)
        if file is not None:  # after each section: an interrupt loses only what is not done
            file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    keys = [load.key for load in LOADS]
    parser.add_argument("sections", nargs="*", help=f"what to measure: {', '.join(sections(LOADS))}")
    parser.add_argument("--loads", nargs="+", choices=keys, default=keys, help="of the cells, only these")
    parser.add_argument("--rounds", type=int, default=5, help="so many turns each, after one that does not count")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--tiny", action="store_true", help="in a size that measures nothing, to try the benchmark")
    return parser


if __name__ == "__main__":
    main()
