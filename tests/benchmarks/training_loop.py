"""What tracing costs a training loop: ratios of traced to plain time, in one interleaved run.

    python tests/benchmarks/training_loop.py [rounds]

Each round times every loop plain, traced, and traced with a function that looks on (``--live``), one after the other;
the medians of the ratios within the rounds are printed. Absolute times say little: machines are noisy.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from gradmagic.report import Report
from gradmagic.tracing import trace

STEPS = 100

MLP = """
nn = torch.nn
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters())
x, y = torch.randn(128, 64), torch.randn(128, 1)
for step in range(steps):
    loss = torch.nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
"""

RNN = """
W, U = torch.randn(32, 32, requires_grad=True), torch.eye(32).requires_grad_()
optimizer = torch.optim.SGD([W, U], lr=0.01)
x = torch.randn(20, 16, 32)
for step in range(steps // 10):
    h = torch.zeros(16, 32)
    for t in range(20):
        h = torch.tanh(x[t] @ W + h @ U)
    loss = h.pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def look(report: Report) -> None:
    """What a display does with a report while the cell runs."""
    str(report)


def seconds(source: str, way: str) -> float:
    """Time of one loop, run in one of three ways."""
    namespace = {"torch": torch, "steps": STEPS}
    code = compile(source, "<loop>", "exec")
    start = time.perf_counter()
    if way == "plain":
        exec(code, namespace)
    else:
        with trace(namespace=namespace, live=look if way == "live" else None):
            exec(code, namespace)
    return time.perf_counter() - start


def main(rounds: int) -> None:
    """Print a line for each loop."""
    torch.set_num_threads(1)
    for name, source in (("MLP with Adam and clipping", MLP), ("unrolled RNN with SGD", RNN)):
        for way in ("plain", "traced", "live"):
            seconds(source, way)
        found = [{way: seconds(source, way) for way in ("plain", "traced", "live")} for _ in range(rounds)]
        traced = statistics.median(times["traced"] / times["plain"] for times in found)
        live = statistics.median(times["live"] / times["traced"] for times in found)
        print(f"{name}: traced / plain {traced:.1f}, live / traced {live:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
