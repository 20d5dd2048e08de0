"""Where and how something was measured."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

import gradmagic

_CPU = Path("/proc/cpuinfo")


def machine(device: str) -> dict[str, str]:
    """Machine, versions, date and command."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, gradmagic {gradmagic.__version__}"
    used = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device != "cpu":
        used += f", {torch.cuda.get_device_name()}"
    command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]])
    return {
        "machine": f"{used}, {platform.system()}",
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
    }


def _processor() -> str:
    lines = _CPU.read_text(encoding="utf-8").splitlines() if _CPU.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
