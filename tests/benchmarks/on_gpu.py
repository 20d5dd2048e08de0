"""What tracing costs on a GPU: ratios of traced to plain time, in one interleaved run.

    python tests/benchmarks/on_gpu.py [rounds]

Each round times ten steps of training plain and traced, one after the other, each until the device is done: the cell
alone, and with the report. The medians of the ratios within the rounds are printed, and the ratio of the memory used.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from gradmagic.tracing import trace

MLP = """
nn = torch.nn
model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).cuda()
x, y = torch.randn(256, 1024, device="cuda"), torch.randn(256, 1024, device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
for step in range(steps):
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

RESNET = """
import torchvision
model = torchvision.models.resnet18().cuda()
x, y = torch.randn(64, 3, 224, 224, device="cuda"), torch.randint(1000, (64,), device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for step in range(steps):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

ENCODER = """
nn = torch.nn
layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).cuda()
x = torch.randn(64, 128, 256, device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
for step in range(steps):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x).float().pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

LOOPS = {
    "MLP 3 x Linear(1024), batch 256, AdamW": MLP,
    "ResNet-18, batch 64, bf16, SGD": RESNET,
    "TransformerEncoder 6 x d256, batch 64 x 128, bf16, AdamW": ENCODER,
}


def measured(source: str, traced: bool, steps: int) -> tuple[float, float, int]:
    """Seconds of the cell, seconds with the report, and the peak of memory."""
    namespace = {"torch": torch, "steps": steps}
    code = compile(source, "<loop>", "exec")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    if traced:
        with trace(namespace=namespace):
            exec(code, namespace)
            torch.cuda.synchronize()
            cell = time.perf_counter() - start
    else:
        exec(code, namespace)
        torch.cuda.synchronize()
        cell = time.perf_counter() - start
    torch.cuda.synchronize()
    return cell, time.perf_counter() - start, torch.cuda.max_memory_allocated()


def main(rounds: int) -> None:
    """Print a line for each loop."""
    for name, source in LOOPS.items():
        for traced in (False, True):
            measured(source, traced, 2)
        found = [
            [measured(source, traced, steps) for traced in (False, True) for steps in (0, 10)] for _ in range(rounds)
        ]
        plain = statistics.median(one[1][0] - one[0][0] for one in found) / 10
        cell = statistics.median((one[3][0] - one[2][0]) / (one[1][0] - one[0][0]) for one in found)
        report = statistics.median((one[3][1] - one[3][0]) for one in found)
        memory = max(one[3][2] for one in found) / max(one[1][2] for one in found)
        print(
            f"{name}: {plain * 1e3:.2f} ms a step; traced / plain {cell:.2f}, report {report * 1e3:.0f} ms, "
            f"memory at the peak {memory:.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
