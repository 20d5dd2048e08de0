"""The cells that are measured: what an earlier cell has made ready, and forward, loss and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Load:
    """A cell and the one before it.

    Attributes:
        key: what it is called in tables and on the command line.
        title: what it does.
        setup: the cell before it, which nobody traces.
        cell: forward, loss and backward.
        sizes: variables of both cells.
        tiny: other values for them, for a test of the benchmark itself.
        gpu: other values for them, on a GPU; None for a load that measures nothing there.
        device: where its tensors are.
        dtype: what they are made of.
    """

    key: str
    title: str
    setup: str
    cell: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    tiny: Mapping[str, int] = field(default_factory=dict)
    gpu: Mapping[str, int] | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def with_sizes(self, sizes: Mapping[str, int]) -> Load:
        """The same with other sizes."""
        return replace(self, sizes={**self.sizes, **sizes})

    def on(self, device: str) -> Load:
        """The same on another device: at training size, in bfloat16."""
        return replace(self.with_sizes(self.gpu or {}), device=device, dtype="bfloat16")


LOADS = (
    Load(
        "W1",
        "hand-written RNN, 2,000 steps, hidden 64, batch 16 (10,000 tiny operations)",
        """
x = torch.randn(steps, batch, hidden, device=device, dtype=dtype)
W = (torch.randn(hidden, hidden, device=device, dtype=dtype) / hidden**0.5).requires_grad_()
U = (torch.randn(hidden, hidden, device=device, dtype=dtype) / hidden**0.5).requires_grad_()
h = torch.zeros(batch, hidden, device=device, dtype=dtype)
""",
        """
for t in range(steps):
    h = torch.tanh(x[t] @ W + h @ U)
loss = h.pow(2).mean()
loss.backward()
""",
        {"steps": 2000, "batch": 16, "hidden": 64},
        {"steps": 5, "batch": 2, "hidden": 4},
    ),
    Load(
        "W2",
        "MLP, 3 x Linear(1024), batch 256",
        """
model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
model.to(device, dtype)
x = torch.randn(batch, width, device=device, dtype=dtype)
y = torch.randn(batch, width, device=device, dtype=dtype)
""",
        """
loss = F.mse_loss(model(x), y)
loss.backward()
""",
        {"width": 1024, "batch": 256},
        {"width": 8, "batch": 4},
        {"batch": 64},
    ),
    Load(
        "W3",
        "ResNet-18, batch 8, 3x128x128",
        """
model = ResNet18().to(device, dtype)
x = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
y = torch.randint(1000, (batch,), device=device)
""",
        """
loss = F.cross_entropy(model(x), y)
loss.backward()
""",
        {"batch": 8, "side": 128},
        {"batch": 2, "side": 32},
        {"batch": 64},
    ),
    Load(
        "W4",
        "TransformerEncoder, 6 layers, d_model 256, 8 heads, 128 tokens, batch 8, batch first, train, dropout 0",
        """
layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
model = nn.TransformerEncoder(layer, layers).to(device, dtype)
x = torch.randn(batch, tokens, width, device=device, dtype=dtype)
y = torch.randn(batch, tokens, width, device=device, dtype=dtype)
""",
        """
loss = F.mse_loss(model(x), y)
loss.backward()
""",
        {"layers": 6, "width": 256, "tokens": 128, "batch": 8},
        {"layers": 1, "width": 16, "tokens": 4, "batch": 2},
        {"batch": 64},
    ),
    Load(
        "W5",
        "200 elementwise operations in a chain on 4 M floats",
        """
x = torch.randn(numbers, device=device, dtype=dtype).requires_grad_()
h = x
""",
        """
for _ in range(pairs):
    h = torch.sin(h * 1.01)
loss = h.mean()
loss.backward()
""",
        {"pairs": 100, "numbers": 4_000_000},
        {"pairs": 3, "numbers": 50},
    ),
)
