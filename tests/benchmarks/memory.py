"""How much memory a cell takes at its peak, beyond what its process had before."""

from __future__ import annotations

import gc
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

from .loads import Load

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(load: Load, name: str) -> float | None:
    """Bytes that a contender's cell adds at its peak, in a process of its own that has run it once in a tiny size.

    The kernel's own high-water mark of resident memory (``VmHWM``), set back just before the cell: it misses no peak,
    as samples do, and knows nothing of the process that started this one, as ``ru_maxrss`` does (it survives
    ``exec``). A fresh process, since memory that an earlier round has freed would hide what this one takes.

    Returns:
        None where there is no such mark: elsewhere than on Linux. On a GPU it is what PyTorch's allocator says.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(there, load, name))
    process.start()
    there.close()
    found: float | None = here.recv()
    process.join()
    return found


def _report_peak(connection: Connection, load: Load, name: str) -> None:
    from .contenders import RUNS, make_ready  # PyTorch, which the coordinator does without
    from .prepared import Prepared

    make_ready(name)
    RUNS[name](Prepared(load.with_sizes(load.tiny)), perf_counter)
    prepared = Prepared(load)
    gc.collect()
    before = _begin(load.device)
    RUNS[name](prepared, perf_counter)
    connection.send(_end(load.device) - before if before is not None else None)


def _begin(device: str) -> float | None:
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    if not _CLEAR.exists():
        return None
    _CLEAR.write_text("5", encoding="ascii")  # proc(5): sets the high-water mark to what is resident now
    return _kilobytes("VmRSS") * 1024


def _end(device: str) -> float:
    if device != "cpu":
        import torch

        return float(torch.cuda.max_memory_allocated())
    return _kilobytes("VmHWM") * 1024


def _kilobytes(key: str) -> float:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
