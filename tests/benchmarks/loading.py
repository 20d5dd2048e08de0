"""What it costs to load the extension, and to trace for the first time, in fresh interpreters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory

from .table import Table, milliseconds
from .turns import How, Spread

_PROGRAM = """
import json, time
import torch
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
now, found = getattr(time, CLOCK), []
traced = "%%gradtrace -q -o report\\nimport torch\\ntorch.ones(2, requires_grad=True).sum();"
for cell in ("%load_ext gradmagic", traced, "text = str(report)", "page = report.to_html()"):
    start = now()
    shell.run_cell(cell).raise_error()
    found.append(now() - start)
print(json.dumps(found))
"""
_STEPS = ("`%load_ext gradmagic`", "then the first traced cell", "then the first text", "then the first HTML")


def loading(how: How) -> Table:
    """Seconds beyond those of PyTorch and IPython, which are there before.

    Python reads compiled modules, as it does from an installed package; the first run compiles them, and does not
    count.
    """
    table = Table("Loading, with PyTorch and IPython loaded", ("step", "first time in a process"))
    clock = "process_time" if how.clock == "cpu" else "perf_counter"
    program = _PROGRAM.replace("CLOCK", repr(clock))
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        runs = [_run(program, environment) for _ in range(how.rounds + 1)][1:]
    for step, found in zip(_STEPS, zip(*runs, strict=True), strict=True):
        table.rows.append([step, milliseconds(Spread.of(found))])
        table.data.append({"step": step, "seconds": found})
    return table


def _run(program: str, environment: Mapping[str, str]) -> list[float]:
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return found
