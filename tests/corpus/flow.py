"""Cells whose gradients do not flow: cut, unused, shadowed, rebound, and the errors of backward."""

from __future__ import annotations

from corpus.cases import Case

FLOW = (
    Case(
        situation="codes of a quantiser picked with argmax between encoder and decoder",
        cell="""\
import torch
from torch import nn

torch.manual_seed(0)
encoder = nn.Linear(4, 8)
codebook = nn.Embedding(8, 3)
points = torch.randn(5, 4)
distances = encoder(points)
codes = distances.argmax(dim=-1)
decoded = codebook(codes)
loss = decoded.pow(2).mean()
""",
        kind="cut_upstream",
        line=10,
        rows={"encoder.weight": "cut_upstream", "encoder.bias": "cut_upstream", "codes": "not_differentiable"},
        culprits={"encoder.weight": 10, "encoder.bias": 10},
        mentions=("encoder", "argmax", "codes"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(0)
encoder = nn.Linear(4, 8)
codebook = nn.Embedding(8, 3)
points = torch.randn(5, 4)
distances = encoder(points)
codes = distances.softmax(dim=-1)
decoded = codes @ codebook.weight
loss = decoded.pow(2).mean()
""",
        cured="encoder.weight.grad is not None and bool(encoder.weight.grad.abs().sum() > 0) and codebook.weight.grad is not None and bool(codebook.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="argmax inside the forward of a module",
        cell="""\
import torch
from torch import nn


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.randn(3, 6))

    def forward(self, tokens):
        choice = self.gate(tokens).argmax(-1)
        return tokens * self.experts[choice]


torch.manual_seed(1)
router = Router()
tokens = torch.randn(4, 6)
loss = router(tokens).square().sum()
""",
        kind="cut_upstream",
        line=13,
        rows={"router.gate.weight": "cut_upstream", "router.gate.bias": "cut_upstream"},
        culprits={"router.gate.weight": 13, "router.gate.bias": 13},
        mentions=("router.gate", "argmax"),
        paste="manual",
        cure="""\
import torch
from torch import nn


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.randn(3, 6))

    def forward(self, tokens):
        choice = self.gate(tokens).softmax(-1)
        return tokens * (choice @ self.experts)


torch.manual_seed(1)
router = Router()
tokens = torch.randn(4, 6)
loss = router(tokens).square().sum()
""",
        cured="router.gate.weight.grad is not None and bool(router.gate.weight.grad.abs().sum() > 0) and router.experts.grad is not None and bool(router.experts.grad.abs().sum() > 0)",
    ),
    Case(
        situation="features detached although the encoder should learn",
        cell="""\
import torch
from torch import nn

torch.manual_seed(2)
encoder = nn.Linear(5, 4)
head = nn.Linear(4, 1)
images = torch.randn(3, 5)
features = encoder(images).detach()
loss = head(features).pow(2).mean()
""",
        kind="",
        line=9,
        rows={"encoder.weight": "cut_upstream", "encoder.bias": "cut_upstream", "features": "detached"},
        culprits={"encoder.weight": 9, "encoder.bias": 9, "features": 9},
        mentions=("encoder", "detach"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(2)
encoder = nn.Linear(5, 4)
head = nn.Linear(4, 1)
images = torch.randn(3, 5)
features = encoder(images)
loss = head(features).pow(2).mean()
""",
        cured="encoder.weight.grad is not None and bool(encoder.weight.grad.abs().sum() > 0) and head.weight.grad is not None and bool(head.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a gain read through .data",
        cell="""\
import torch

gain = torch.tensor([1.5, 0.5], requires_grad=True)
offset = torch.tensor([0.1, 0.2], requires_grad=True)
signal = torch.tensor([2.0, 3.0])
amplified = gain.data * signal
loss = (amplified + offset).pow(2).sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"gain": "cut_upstream"},
        culprits={"gain": 7},
        mentions=("gain", ".data"),
        paste="replace",
        cure="""\
import torch

gain = torch.tensor([1.5, 0.5], requires_grad=True)
offset = torch.tensor([0.1, 0.2], requires_grad=True)
signal = torch.tensor([2.0, 3.0])
amplified = gain * signal
loss = (amplified + offset).pow(2).sum()
""",
        cured="gain.grad is not None and bool(gain.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a penalty computed in Python numbers with .item()",
        cell="""\
import torch

coef = torch.tensor(0.7, requires_grad=True)
slope = torch.tensor(2.0, requires_grad=True)
xs = torch.linspace(0, 1, 5)
fit = (slope * xs - 1).pow(2).mean()
penalty = 0.1 * coef.item() ** 2
loss = fit + penalty
""",
        kind="cut_upstream",
        line=8,
        rows={"coef": "cut_upstream"},
        culprits={"coef": 8},
        mentions=("coef", "item"),
        paste="replace",
        cure="""\
import torch

coef = torch.tensor(0.7, requires_grad=True)
slope = torch.tensor(2.0, requires_grad=True)
xs = torch.linspace(0, 1, 5)
fit = (slope * xs - 1).pow(2).mean()
penalty = 0.1 * coef ** 2
loss = fit + penalty
""",
        cured="coef.grad is not None and bool(coef.grad.abs().sum() > 0) and slope.grad is not None and bool(slope.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a helper function that returns a Python number",
        cell="""\
import torch


def mixing_weight(logit):
    share = torch.sigmoid(logit)
    return share.item()


logit = torch.tensor(0.3, requires_grad=True)
left = torch.tensor([1.0, 2.0], requires_grad=True)
right = torch.tensor([3.0, 5.0])
share = mixing_weight(logit)
blend = share * left + (1 - share) * right
loss = blend.pow(2).sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"logit": "cut_upstream"},
        culprits={"logit": 7},
        mentions=("logit", "item"),
        paste="replace",
        cure="""\
import torch


def mixing_weight(logit):
    share = torch.sigmoid(logit)
    return share


logit = torch.tensor(0.3, requires_grad=True)
left = torch.tensor([1.0, 2.0], requires_grad=True)
right = torch.tensor([3.0, 5.0])
share = mixing_weight(logit)
blend = share * left + (1 - share) * right
loss = blend.pow(2).sum()
""",
        cured="logit.grad is not None and bool(logit.grad.abs().sum() > 0) and left.grad is not None and bool(left.grad.abs().sum() > 0)",
    ),
    Case(
        situation="losses collected as numbers and made a tensor with requires_grad=True again",
        cell="""\
import torch
from torch import nn

torch.manual_seed(3)
model = nn.Linear(3, 1)
batches = torch.randn(2, 4, 3)
losses = []
for batch in batches:
    error = model(batch).pow(2).mean()
    losses.append(error.item())
loss = torch.tensor(losses, requires_grad=True).mean()
loss.backward()
""",
        kind="cut_upstream",
        line=11,
        rows={"model.weight": "cut_upstream", "model.bias": "cut_upstream"},
        culprits={"model.weight": 11, "model.bias": 11},
        mentions=("model", "item"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(3)
model = nn.Linear(3, 1)
batches = torch.randn(2, 4, 3)
losses = []
for batch in batches:
    error = model(batch).pow(2).mean()
    losses.append(error)
loss = torch.stack(losses).mean()
loss.backward()
""",
        cured="model.weight.grad is not None and bool(model.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a rate turned into a Python float",
        cell="""\
import torch

log_rate = torch.tensor(-1.0, requires_grad=True)
start = torch.tensor(4.0, requires_grad=True)
times = torch.arange(4.0)
rate = float(log_rate.exp())
curve = start * torch.exp(-rate * times)
loss = curve.sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"log_rate": "cut_upstream"},
        culprits={"log_rate": 7},
        mentions=("log_rate", "float"),
        paste="replace",
        cure="""\
import torch

log_rate = torch.tensor(-1.0, requires_grad=True)
start = torch.tensor(4.0, requires_grad=True)
times = torch.arange(4.0)
rate = log_rate.exp()
curve = start * torch.exp(-rate * times)
loss = curve.sum()
""",
        cured="log_rate.grad is not None and bool(log_rate.grad.abs().sum() > 0) and start.grad is not None and bool(start.grad.abs().sum() > 0)",
    ),
    Case(
        situation="weights taken out with tolist and summed in Python",
        cell="""\
import torch

prices = torch.tensor([3.0, 4.0, 5.0], requires_grad=True)
discount = torch.tensor(0.9, requires_grad=True)
amounts = [2, 1, 4]
total = sum(p * a for p, a in zip(prices.tolist(), amounts))
loss = (total * discount - 30) ** 2
""",
        kind="cut_upstream",
        line=7,
        rows={"prices": "cut_upstream"},
        culprits={"prices": 7},
        mentions=("prices", "tolist"),
        paste="manual",
        cure="""\
import torch

prices = torch.tensor([3.0, 4.0, 5.0], requires_grad=True)
discount = torch.tensor(0.9, requires_grad=True)
amounts = [2, 1, 4]
total = sum(p * a for p, a in zip(prices, amounts))
loss = (total * discount - 30) ** 2
""",
        cured="prices.grad is not None and bool(prices.grad.abs().sum() > 0) and discount.grad is not None and bool(discount.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a NumPy function in the middle of the network",
        cell="""\
import numpy as np
import torch
from torch import nn

torch.manual_seed(4)
lower = nn.Linear(3, 4)
upper = nn.Linear(4, 1)
inputs = torch.randn(6, 3)
hidden = lower(inputs)
squashed = np.tanh(hidden.detach().numpy())
loss = upper(torch.from_numpy(squashed)).pow(2).mean()
""",
        kind="cut_upstream",
        line=11,
        rows={"lower.weight": "cut_upstream", "lower.bias": "cut_upstream"},
        culprits={"lower.weight": 11, "lower.bias": 11},
        mentions=("lower",),
        paste="manual",
        cure="""\
import numpy as np
import torch
from torch import nn

torch.manual_seed(4)
lower = nn.Linear(3, 4)
upper = nn.Linear(4, 1)
inputs = torch.randn(6, 3)
hidden = lower(inputs)
squashed = torch.tanh(hidden)
loss = upper(squashed).pow(2).mean()
""",
        cured="lower.weight.grad is not None and bool(lower.weight.grad.abs().sum() > 0) and upper.weight.grad is not None and bool(upper.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="np.asarray of a leaf's data, back by as_tensor",
        cell="""\
import numpy as np
import torch

spread = torch.tensor([4.0, 9.0], requires_grad=True)
centre = torch.tensor([0.5, 0.5], requires_grad=True)
table = np.asarray(spread.data)
roots = torch.as_tensor(np.sqrt(table))
loss = (roots - centre).pow(2).sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"spread": "cut_upstream"},
        culprits={"spread": 7},
        mentions=("spread",),
        paste="manual",
        cure="""\
import numpy as np
import torch

spread = torch.tensor([4.0, 9.0], requires_grad=True)
centre = torch.tensor([0.5, 0.5], requires_grad=True)
roots = torch.sqrt(spread)
loss = (roots - centre).pow(2).sum()
""",
        cured="spread.grad is not None and bool(spread.grad.abs().sum() > 0) and centre.grad is not None and bool(centre.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a tensor wrapped in torch.tensor",
        cell="""\
import torch

angle = torch.tensor(0.4, requires_grad=True)
radius = torch.tensor(2.0, requires_grad=True)
turn = torch.tensor(angle * 2)
loss = (radius * torch.cos(turn) - 1).square()
""",
        kind="cut_upstream",
        line=6,
        rows={"angle": "cut_upstream"},
        culprits={"angle": 6},
        mentions=("angle", "torch.tensor"),
        paste="replace",
        cure="""\
import torch

angle = torch.tensor(0.4, requires_grad=True)
radius = torch.tensor(2.0, requires_grad=True)
turn = angle * 2
loss = (radius * torch.cos(turn) - 1).square()
""",
        cured="angle.grad is not None and bool(angle.grad.abs().sum() > 0) and radius.grad is not None and bool(radius.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a vector put together with torch.tensor([a, b])",
        cell="""\
import torch

alpha = torch.tensor(0.5, requires_grad=True)
beta = torch.tensor(1.5, requires_grad=True)
scale = torch.tensor(3.0, requires_grad=True)
pair = torch.tensor([alpha, beta])
loss = (pair * scale).pow(2).sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"alpha": "cut_upstream", "beta": "cut_upstream"},
        culprits={"alpha": 7, "beta": 7},
        mentions=("alpha", "beta"),
        paste="replace",
        cure="""\
import torch

alpha = torch.tensor(0.5, requires_grad=True)
beta = torch.tensor(1.5, requires_grad=True)
scale = torch.tensor(3.0, requires_grad=True)
pair = torch.stack([alpha, beta])
loss = (pair * scale).pow(2).sum()
""",
        cured="alpha.grad is not None and bool(alpha.grad.abs().sum() > 0) and beta.grad is not None and bool(beta.grad.abs().sum() > 0) and scale.grad is not None and bool(scale.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a matrix put together with torch.tensor of nested lists",
        cell="""\
import torch

theta = torch.tensor(0.3, requires_grad=True)
shift = torch.tensor([0.1, -0.1], requires_grad=True)
corner = torch.tensor([1.0, 2.0])
rotation = torch.tensor([[theta.cos(), -theta.sin()], [theta.sin(), theta.cos()]])
loss = (rotation @ corner + shift - 1).pow(2).sum()
""",
        kind="cut_upstream",
        line=7,
        rows={"theta": "cut_upstream"},
        culprits={"theta": 7},
        mentions=("theta",),
        paste="replace",
        cure="""\
import torch

theta = torch.tensor(0.3, requires_grad=True)
shift = torch.tensor([0.1, -0.1], requires_grad=True)
corner = torch.tensor([1.0, 2.0])
rotation = torch.stack([torch.stack([theta.cos(), -theta.sin()]), torch.stack([theta.sin(), theta.cos()])])
loss = (rotation @ corner + shift - 1).pow(2).sum()
""",
        cured="theta.grad is not None and bool(theta.grad.abs().sum() > 0) and shift.grad is not None and bool(shift.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a position cast to an index with .to(torch.int64)",
        cell="""\
import torch

position = torch.tensor([0.3, 2.6], requires_grad=True)
table = torch.tensor([1.0, 4.0, 9.0, 16.0], requires_grad=True)
slot = position.to(torch.int64)
looked_up = table[slot]
loss = (looked_up - 5).pow(2).mean()
""",
        kind="cut_upstream",
        line=6,
        rows={"position": "cut_upstream"},
        culprits={"position": 6},
        mentions=("position",),
        paste="manual",
        cure="""\
import torch

position = torch.tensor([0.3, 2.6], requires_grad=True)
table = torch.tensor([1.0, 4.0, 9.0, 16.0], requires_grad=True)
slot = position.detach().to(torch.int64)
part = position - slot
looked_up = (1 - part) * table[slot] + part * table[slot + 1]
loss = (looked_up - 5).pow(2).mean()
""",
        cured="position.grad is not None and bool(position.grad.abs().sum() > 0) and table.grad is not None and bool(table.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a prediction cast with .long() before the distance",
        cell="""\
import torch
from torch import nn

torch.manual_seed(5)
regressor = nn.Linear(2, 1)
calibration = torch.tensor(1.0, requires_grad=True)
rooms = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
stars = torch.tensor([[2], [4]])
predicted = (regressor(rooms) * 3).long()
loss = (predicted * calibration - stars).abs().mean()
""",
        kind="cut_upstream",
        line=10,
        rows={"regressor.weight": "cut_upstream", "regressor.bias": "cut_upstream"},
        culprits={"regressor.weight": 10, "regressor.bias": 10},
        mentions=("regressor",),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(5)
regressor = nn.Linear(2, 1)
calibration = torch.tensor(1.0, requires_grad=True)
rooms = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
stars = torch.tensor([[2], [4]])
predicted = regressor(rooms) * 3
loss = (predicted * calibration - stars).abs().mean()
""",
        cured="regressor.weight.grad is not None and bool(regressor.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a threshold mask turned into floats",
        cell="""\
import torch

scores = torch.tensor([0.2, 0.7, 0.9], requires_grad=True)
values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
keep = (scores > 0.5).float()
loss = (keep * values).sum() ** 2
""",
        kind="cut_upstream",
        line=6,
        rows={"scores": "cut_upstream", "keep": "not_differentiable"},
        culprits={"scores": 6},
        mentions=("scores", "keep"),
        paste="manual",
        cure="""\
import torch

scores = torch.tensor([0.2, 0.7, 0.9], requires_grad=True)
values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
keep = torch.sigmoid(10 * (scores - 0.5))
loss = (keep * values).sum() ** 2
""",
        cured="scores.grad is not None and bool(scores.grad.abs().sum() > 0) and values.grad is not None and bool(values.grad.abs().sum() > 0)",
    ),
    Case(
        situation="the encoder run in a no_grad block",
        cell="""\
import torch
from torch import nn

torch.manual_seed(6)
encoder = nn.Linear(4, 3)
classifier = nn.Linear(3, 2)
samples = torch.randn(5, 4)
labels = torch.tensor([0, 1, 1, 0, 1])
with torch.no_grad():
    latent = torch.tanh(encoder(samples))
logits = classifier(latent)
loss = nn.functional.cross_entropy(logits, labels)
""",
        kind="",
        line=11,
        rows={
            "encoder.weight": "cut_upstream",
            "encoder.bias": "cut_upstream",
            "latent": "no_grad",
            "labels": "integer_dtype",
        },
        culprits={"encoder.weight": 11, "encoder.bias": 11},
        mentions=("encoder", "no_grad"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(6)
encoder = nn.Linear(4, 3)
classifier = nn.Linear(3, 2)
samples = torch.randn(5, 4)
labels = torch.tensor([0, 1, 1, 0, 1])
latent = torch.tanh(encoder(samples))
logits = classifier(latent)
loss = nn.functional.cross_entropy(logits, labels)
""",
        cured="encoder.weight.grad is not None and bool(encoder.weight.grad.abs().sum() > 0) and classifier.weight.grad is not None and bool(classifier.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a preprocessing function decorated with no_grad",
        cell="""\
import torch


@torch.no_grad()
def whiten(batch, mean):
    return batch - mean


mean = torch.tensor([1.0, 2.0], requires_grad=True)
weight = torch.tensor([0.5, -0.5], requires_grad=True)
batch = torch.tensor([[1.5, 1.0], [3.0, 2.5]])
loss = (whiten(batch, mean) * weight).sum().pow(2)
""",
        kind="cut_upstream",
        line=7,
        rows={"mean": "cut_upstream"},
        culprits={"mean": 7},
        mentions=("mean", "no_grad"),
        paste="manual",
        cure="""\
import torch


def whiten(batch, mean):
    return batch - mean


mean = torch.tensor([1.0, 2.0], requires_grad=True)
weight = torch.tensor([0.5, -0.5], requires_grad=True)
batch = torch.tensor([[1.5, 1.0], [3.0, 2.5]])
loss = (whiten(batch, mean) * weight).sum().pow(2)
""",
        cured="mean.grad is not None and bool(mean.grad.abs().sum() > 0) and weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="an inference_mode block before the trained bias",
        cell="""\
import torch

kernel = torch.tensor([0.2, 0.8], requires_grad=True)
bias = torch.tensor(0.1, requires_grad=True)
window = torch.tensor([3.0, 1.0])
with torch.inference_mode():
    response = kernel * window
loss = (response + bias).sum()
""",
        kind="cut_upstream",
        line=8,
        rows={"kernel": "cut_upstream", "response": "inference_mode"},
        culprits={"kernel": 8},
        mentions=("kernel", "inference_mode"),
        paste="manual",
        cure="""\
import torch

kernel = torch.tensor([0.2, 0.8], requires_grad=True)
bias = torch.tensor(0.1, requires_grad=True)
window = torch.tensor([3.0, 1.0])
response = kernel * window
loss = (response + bias).sum()
""",
        cured="kernel.grad is not None and bool(kernel.grad.abs().sum() > 0) and bias.grad is not None and bool(bias.grad.abs().sum() > 0)",
    ),
    Case(
        situation="generated weights wrapped in nn.Parameter",
        cell="""\
import torch
from torch import nn

torch.manual_seed(7)
hypernet = nn.Linear(2, 6)
task = torch.tensor([0.5, -1.0])
generated = hypernet(task).view(2, 3)
main_weight = nn.Parameter(generated)
observations = torch.randn(4, 3)
loss = (observations @ main_weight.t()).pow(2).mean()
""",
        kind="cut_upstream",
        line=9,
        rows={"hypernet.weight": "cut_upstream", "hypernet.bias": "cut_upstream"},
        culprits={"hypernet.weight": 9, "hypernet.bias": 9},
        mentions=("hypernet", "Parameter"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(7)
hypernet = nn.Linear(2, 6)
task = torch.tensor([0.5, -1.0])
generated = hypernet(task).view(2, 3)
main_weight = generated
observations = torch.randn(4, 3)
loss = (observations @ main_weight.t()).pow(2).mean()
""",
        cured="hypernet.weight.grad is not None and bool(hypernet.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a detached tensor that asks for a gradient of its own",
        cell="""\
import torch
from torch import nn

torch.manual_seed(8)
stem = nn.Linear(3, 3)
tower = nn.Linear(3, 1)
pixels = torch.randn(2, 3)
middle = stem(pixels).detach().requires_grad_()
loss = tower(middle).pow(2).sum()
loss.backward()
""",
        kind="cut_upstream",
        line=9,
        rows={"stem.weight": "cut_upstream", "stem.bias": "cut_upstream"},
        culprits={"stem.weight": 9, "stem.bias": 9},
        mentions=("stem", "detach"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(8)
stem = nn.Linear(3, 3)
tower = nn.Linear(3, 1)
pixels = torch.randn(2, 3)
middle = stem(pixels)
loss = tower(middle).pow(2).sum()
loss.backward()
""",
        cured="stem.weight.grad is not None and bool(stem.weight.grad.abs().sum() > 0) and tower.weight.grad is not None and bool(tower.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a gradient penalty without create_graph",
        cell="""\
import torch
from torch import nn

torch.manual_seed(9)
critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
level = torch.tensor(1.0, requires_grad=True)
points = torch.randn(5, 2, requires_grad=True)
slopes = torch.autograd.grad(critic(points).sum(), points)[0]
loss = (slopes.norm(dim=1) - level).pow(2).mean()
""",
        kind="cut_upstream",
        line=9,
        rows={"critic.0.weight": "cut_upstream", "critic.0.bias": "cut_upstream", "critic.2.weight": "cut_upstream"},
        culprits={"critic.0.weight": 9, "critic.0.bias": 9, "critic.2.weight": 9},
        mentions=("critic", "create_graph"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(9)
critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
level = torch.tensor(1.0, requires_grad=True)
points = torch.randn(5, 2, requires_grad=True)
slopes = torch.autograd.grad(critic(points).sum(), points, create_graph=True)[0]
loss = (slopes.norm(dim=1) - level).pow(2).mean()
""",
        cured="critic[0].weight.grad is not None and bool(critic[0].weight.grad.abs().sum() > 0) and critic[2].weight.grad is not None and bool(critic[2].weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="sampled actions used as if the reward could flow back through them",
        cell="""\
import torch
from torch import nn

torch.manual_seed(10)
policy = nn.Linear(3, 4)
payoff = torch.tensor([0.1, 0.9, 0.3, 0.5], requires_grad=True)
states = torch.randn(6, 3)
actions = torch.multinomial(policy(states).softmax(-1), 1).squeeze(1)
loss = -payoff[actions].mean()
""",
        kind="cut_upstream",
        line=9,
        rows={"policy.weight": "cut_upstream", "policy.bias": "cut_upstream"},
        culprits={"policy.weight": 9, "policy.bias": 9},
        mentions=("policy", "multinomial"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(10)
policy = nn.Linear(3, 4)
payoff = torch.tensor([0.1, 0.9, 0.3, 0.5], requires_grad=True)
states = torch.randn(6, 3)
log_probs = policy(states).log_softmax(-1)
actions = torch.multinomial(log_probs.detach().exp(), 1)
loss = -(log_probs.gather(1, actions).squeeze(1) * payoff[actions.squeeze(1)]).mean()
""",
        cured="policy.weight.grad is not None and bool(policy.weight.grad.abs().sum() > 0) and payoff.grad is not None and bool(payoff.grad.abs().sum() > 0)",
    ),
    Case(
        situation="weights quantised with round",
        cell="""\
import torch

weight = torch.tensor([0.34, -1.27, 2.6], requires_grad=True)
inputs = torch.tensor([1.0, 2.0, 3.0])
quantised = torch.round(weight)
loss = (quantised * inputs).sum().pow(2)
""",
        kind="zero_gradient",
        line=6,
        mentions=("weight", "round"),
        paste="replace",
        cure="""\
import torch

weight = torch.tensor([0.34, -1.27, 2.6], requires_grad=True)
inputs = torch.tensor([1.0, 2.0, 3.0])
quantised = weight + (torch.round(weight) - weight).detach()
loss = (quantised * inputs).sum().pow(2)
""",
        cured="weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="binary weights made with sign",
        cell="""\
import torch
from torch import nn

torch.manual_seed(11)
layer = nn.Linear(4, 2, bias=False)
clips = torch.randn(3, 4)
binary = layer.weight.sign()
loss = (clips @ binary.t()).pow(2).mean()
""",
        kind="zero_gradient",
        line=8,
        mentions=("layer.weight", "sign"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(11)
layer = nn.Linear(4, 2, bias=False)
clips = torch.randn(3, 4)
binary = layer.weight + (layer.weight.sign() - layer.weight).detach()
loss = (clips @ binary.t()).pow(2).mean()
""",
        cured="layer.weight.grad is not None and bool(layer.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a bin number taken with floor",
        cell="""\
import torch

height = torch.tensor([1.72, 1.85], requires_grad=True)
step = torch.floor(height * 10)
loss = (step - 20).pow(2).mean()
""",
        kind="zero_gradient",
        line=5,
        mentions=("height", "floor"),
        paste="replace",
        cure="""\
import torch

height = torch.tensor([1.72, 1.85], requires_grad=True)
step = height * 10 + (torch.floor(height * 10) - height * 10).detach()
loss = (step - 20).pow(2).mean()
""",
        cured="height.grad is not None and bool(height.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a bias that nobody added",
        cell="""\
import torch

weight = torch.tensor([1.0, -2.0], requires_grad=True)
bias = torch.zeros(1, requires_grad=True)
features = torch.tensor([0.5, 0.25])
prediction = weight @ features
loss = (prediction - 1).pow(2)
""",
        kind="unused",
        rows={"bias": "unused"},
        mentions=("bias",),
        paste="manual",
        cure="""\
import torch

weight = torch.tensor([1.0, -2.0], requires_grad=True)
bias = torch.zeros(1, requires_grad=True)
features = torch.tensor([0.5, 0.25])
prediction = weight @ features + bias
loss = (prediction - 1).pow(2)
""",
        cured="bias.grad is not None and bool(bias.grad.abs().sum() > 0) and weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="an auxiliary loss that was never added to the loss",
        cell="""\
import torch
from torch import nn

torch.manual_seed(12)
trunk = nn.Linear(3, 4)
main_head = nn.Linear(4, 1)
aux_head = nn.Linear(4, 2)
frames = torch.randn(5, 3)
hidden = trunk(frames).relu()
aux_loss = aux_head(hidden).pow(2).mean()
loss = main_head(hidden).pow(2).mean()
loss.backward()
""",
        kind="unused",
        rows={"aux_head.weight": "unused", "aux_head.bias": "unused"},
        mentions=("aux_head", "loss"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(12)
trunk = nn.Linear(3, 4)
main_head = nn.Linear(4, 1)
aux_head = nn.Linear(4, 2)
frames = torch.randn(5, 3)
hidden = trunk(frames).relu()
aux_loss = aux_head(hidden).pow(2).mean()
loss = main_head(hidden).pow(2).mean() + 0.3 * aux_loss
loss.backward()
""",
        cured="aux_head.weight.grad is not None and bool(aux_head.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a layer of the model that forward never calls",
        cell="""\
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, words):
        return self.out(self.embed(words))


torch.manual_seed(13)
tagger = Tagger()
words = torch.tensor([[1, 2, 3]])
loss = tagger(words).pow(2).mean()
""",
        kind="unused",
        rows={"tagger.mix.weight": "unused", "tagger.mix.bias": "unused", "words": "integer_dtype"},
        mentions=("tagger.mix",),
        paste="manual",
        cure="""\
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, words):
        return self.out(self.mix(self.embed(words)))


torch.manual_seed(13)
tagger = Tagger()
words = torch.tensor([[1, 2, 3]])
loss = tagger(words).pow(2).mean()
""",
        cured="tagger.mix.weight.grad is not None and bool(tagger.mix.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="the second layer fed with the input instead of the hidden state",
        cell="""\
import torch
from torch import nn

torch.manual_seed(14)
first = nn.Linear(3, 3)
second = nn.Linear(3, 1)
rows = torch.randn(4, 3)
hidden = first(rows).relu()
loss = second(rows).pow(2).mean()
""",
        kind="unused",
        rows={"first.weight": "unused", "first.bias": "unused", "hidden": "unused"},
        mentions=("first",),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(14)
first = nn.Linear(3, 3)
second = nn.Linear(3, 1)
rows = torch.randn(4, 3)
hidden = first(rows).relu()
loss = second(hidden).pow(2).mean()
""",
        cured="first.weight.grad is not None and bool(first.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="small initial weights scaled on the line that made the leaf",
        cell="""\
import torch

torch.manual_seed(15)
w = torch.randn(3, requires_grad=True) * 0.01
x = torch.tensor([1.0, 2.0, 3.0])
loss = (w * x).sum().exp()
loss.backward()
""",
        kind="shadowed_leaf",
        line=5,
        mentions=("w",),
        paste="replace",
        cure="""\
import torch

torch.manual_seed(15)
w = (torch.randn(3) * 0.01).requires_grad_()
x = torch.tensor([1.0, 2.0, 3.0])
loss = (w * x).sum().exp()
loss.backward()
""",
        cured="w.grad is not None and bool(w.grad.abs().sum() > 0) and w.is_leaf",
    ),
    Case(
        situation="a leaf moved to another dtype on the line that made it",
        cell="""\
import torch

coefficients = torch.tensor([1, 2, 3], dtype=torch.float32, requires_grad=True).to(torch.float64)
powers = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
loss = (coefficients @ powers).pow(2)
loss.backward()
""",
        kind="shadowed_leaf",
        line=4,
        mentions=("coefficients",),
        paste="replace",
        cure="""\
import torch

coefficients = torch.tensor([1, 2, 3], dtype=torch.float32).to(torch.float64).requires_grad_()
powers = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
loss = (coefficients @ powers).pow(2)
loss.backward()
""",
        cured="coefficients.grad is not None and bool(coefficients.grad.abs().sum() > 0) and coefficients.dtype == torch.float64",
    ),
    Case(
        situation="nn.Parameter turned into double afterwards",
        cell="""\
import torch
from torch import nn

scale = nn.Parameter(torch.ones(2)).double()
readings = torch.tensor([0.5, 2.0], dtype=torch.float64)
loss = (scale * readings - 1).pow(2).sum()
loss.backward()
""",
        kind="shadowed_leaf",
        line=5,
        mentions=("scale",),
        paste="replace",
        cure="""\
import torch
from torch import nn

scale = nn.Parameter(torch.ones(2).double())
readings = torch.tensor([0.5, 2.0], dtype=torch.float64)
loss = (scale * readings - 1).pow(2).sum()
loss.backward()
""",
        cured="scale.grad is not None and bool(scale.grad.abs().sum() > 0) and isinstance(scale, nn.Parameter)",
    ),
    Case(
        situation="a leaf reshaped on the line that made it",
        cell="""\
import torch

filters = torch.arange(4.0, requires_grad=True).reshape(2, 2)
patch = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
loss = (filters * patch).sum().pow(2)
loss.backward()
""",
        kind="shadowed_leaf",
        line=4,
        mentions=("filters",),
        paste="replace",
        cure="""\
import torch

filters = torch.arange(4.0).reshape(2, 2).requires_grad_()
patch = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
loss = (filters * patch).sum().pow(2)
loss.backward()
""",
        cured="filters.grad is not None and bool(filters.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a training image normalised under its own name",
        cell="""\
import torch

torch.manual_seed(16)
image = torch.rand(4, requires_grad=True)
image = image / 0.5 - 1
loss = image.pow(3).sum()
loss.backward()
""",
        kind="rebound_leaf",
        line=6,
        mentions=("image",),
        paste="replace",
        cure="""\
import torch

torch.manual_seed(16)
image = torch.rand(4, requires_grad=True)
image = (image / 0.5 - 1).detach().requires_grad_()
loss = image.pow(3).sum()
loss.backward()
""",
        cured="image.grad is not None and bool(image.grad.abs().sum() > 0) and image.is_leaf",
    ),
    Case(
        situation="gradient descent that rebinds the weight and then clears its grad",
        cell="""\
import torch

w = torch.tensor([1.0, -1.0], requires_grad=True)
x = torch.tensor([2.0, 3.0])
loss = (w * x).sum().pow(2)
loss.backward()
w = w - 0.1 * w.grad
w.grad.zero_()
""",
        kind="rebound_leaf",
        line=8,
        mentions=("w",),
        paste="manual",
        cure="""\
import torch

w = torch.tensor([1.0, -1.0], requires_grad=True)
x = torch.tensor([2.0, 3.0])
loss = (w * x).sum().pow(2)
loss.backward()
with torch.no_grad():
    w -= 0.1 * w.grad
w.grad.zero_()
""",
        cured="w.is_leaf and w.requires_grad and w.grad is not None and not torch.equal(w, torch.tensor([1.0, -1.0]))",
        raises="AttributeError",
    ),
    Case(
        situation="gradient descent in a loop that rebinds the weight",
        cell="""\
import torch

theta = torch.tensor([0.5, 1.5], requires_grad=True)
goal = torch.tensor([1.0, 1.0])
for step in range(3):
    loss = (theta - goal).pow(2).sum()
    loss.backward()
    theta = theta - 0.1 * theta.grad
""",
        kind="rebound_leaf",
        line=9,
        mentions=("theta",),
        paste="replace",
        cure="""\
import torch

theta = torch.tensor([0.5, 1.5], requires_grad=True)
goal = torch.tensor([1.0, 1.0])
for step in range(3):
    loss = (theta - goal).pow(2).sum()
    loss.backward()
    theta = (theta - 0.1 * theta.grad).detach().requires_grad_()
""",
        cured="theta.is_leaf and theta.requires_grad and bool((theta - goal).abs().sum() < 0.6)",
        raises="",
    ),
    Case(
        situation="gradient descent in a loop that rebinds the weight under no_grad",
        cell="""\
import torch

slope = torch.tensor(0.0, requires_grad=True)
hours = torch.tensor([1.0, 2.0, 3.0])
marks = 2 * hours
for epoch in range(3):
    loss = (slope * hours - marks).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        slope = slope - 0.05 * slope.grad
    slope.grad = None
""",
        kind="rebound_leaf",
        line=11,
        mentions=("slope",),
        paste="replace",
        cure="""\
import torch

slope = torch.tensor(0.0, requires_grad=True)
hours = torch.tensor([1.0, 2.0, 3.0])
marks = 2 * hours
for epoch in range(3):
    loss = (slope * hours - marks).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        slope -= 0.05 * slope.grad
    slope.grad = None
""",
        cured="slope.requires_grad and bool(abs(slope - 2) < 0.5)",
        raises="RuntimeError",
    ),
    Case(
        situation="one update step under no_grad leaves a weight without requires_grad",
        cell="""\
import torch

torch.manual_seed(17)
weights = torch.randn(3, requires_grad=True)
sample = torch.tensor([1.0, 0.5, -0.5])
loss = (weights @ sample - 2).pow(2)
loss.backward()
with torch.no_grad():
    weights = weights - 0.1 * weights.grad
""",
        kind="rebound_leaf",
        line=10,
        mentions=("weights",),
        paste="replace",
        cure="""\
import torch

torch.manual_seed(17)
weights = torch.randn(3, requires_grad=True)
sample = torch.tensor([1.0, 0.5, -0.5])
loss = (weights @ sample - 2).pow(2)
loss.backward()
with torch.no_grad():
    weights -= 0.1 * weights.grad
""",
        cured="weights.requires_grad and weights.is_leaf",
    ),
    Case(
        situation="requires_grad_ called after the forward",
        cell="""\
import torch

weight = torch.tensor([1.0, 2.0])
bias = torch.tensor(0.5, requires_grad=True)
output = weight * 3 + bias
weight.requires_grad_()
loss = output.pow(2).sum()
""",
        kind="requires_grad_too_late",
        line=6,
        rows={"weight": "requires_grad_too_late"},
        culprits={"weight": 6},
        mentions=("weight",),
        paste="above",
        cure="""\
import torch

weight = torch.tensor([1.0, 2.0])
bias = torch.tensor(0.5, requires_grad=True)
weight.requires_grad_()
output = weight * 3 + bias
weight.requires_grad_()
loss = output.pow(2).sum()
""",
        cured="weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a saliency map of an input switched on after the model ran",
        cell="""\
import torch
from torch import nn

torch.manual_seed(18)
net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
picture = torch.rand(1, 4)
logits = net(picture)
picture.requires_grad = True
loss = logits[0, 1]
loss.backward()
""",
        kind="requires_grad_too_late",
        line=8,
        rows={"picture": "requires_grad_too_late"},
        culprits={"picture": 8},
        mentions=("picture",),
        paste="above",
        cure="""\
import torch
from torch import nn

torch.manual_seed(18)
net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
picture = torch.rand(1, 4)
picture.requires_grad_()
logits = net(picture)
picture.requires_grad = True
loss = logits[0, 1]
loss.backward()
""",
        cured="picture.grad is not None and bool(picture.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a frozen backbone under a trained head",
        cell="""\
import torch
from torch import nn

torch.manual_seed(19)
backbone = nn.Linear(4, 3)
for parameter in backbone.parameters():
    parameter.requires_grad_(False)
head = nn.Linear(3, 1)
photos = torch.randn(2, 4)
loss = head(backbone(photos).relu()).pow(2).mean()
""",
        kind="",
        rows={"backbone.weight": "frozen", "backbone.bias": "frozen", "photos": "requires_grad_false"},
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(19)
backbone = nn.Linear(4, 3)
head = nn.Linear(3, 1)
photos = torch.randn(2, 4)
loss = head(backbone(photos).relu()).pow(2).mean()
""",
        cured="backbone.weight.grad is not None and bool(backbone.weight.grad.abs().sum() > 0)",
    ),
    Case(
        situation="inputs and class labels that need no gradient",
        cell="""\
import torch
from torch import nn

torch.manual_seed(20)
classifier = nn.Linear(3, 2)
inputs = torch.randn(4, 3)
targets = torch.tensor([0, 1, 0, 1])
loss = nn.functional.cross_entropy(classifier(inputs), targets)
""",
        kind="",
        rows={"inputs": "requires_grad_false", "targets": "integer_dtype"},
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(20)
classifier = nn.Linear(3, 2)
inputs = torch.randn(4, 3, requires_grad=True)
targets = torch.tensor([0, 1, 0, 1])
loss = nn.functional.cross_entropy(classifier(inputs), targets)
""",
        cured="inputs.grad is not None and bool(inputs.grad.abs().sum() > 0)",
    ),
    Case(
        situation="backward told to fill only one of two leaves",
        cell="""\
import torch

shape = torch.tensor(2.0, requires_grad=True)
rate = torch.tensor(3.0, requires_grad=True)
loss = shape.pow(2) * rate
loss.backward(inputs=[shape])
""",
        kind="",
        rows={"rate": "backward_inputs"},
        paste="manual",
        cure="""\
import torch

shape = torch.tensor(2.0, requires_grad=True)
rate = torch.tensor(3.0, requires_grad=True)
loss = shape.pow(2) * rate
loss.backward(inputs=[shape, rate])
""",
        cured="shape.grad is not None and bool(shape.grad.abs().sum() > 0) and rate.grad is not None and bool(rate.grad.abs().sum() > 0)",
    ),
    Case(
        situation="a regulariser added to the loss after backward",
        cell="""\
import torch

weight = torch.tensor([1.0, 2.0], requires_grad=True)
log_lambda = torch.tensor(-2.0, requires_grad=True)
loss = weight.pow(2).sum()
loss.backward()
penalty = log_lambda.exp() * 4
loss = loss.detach() + penalty
""",
        kind="after_backward",
        line=8,
        rows={"log_lambda": "after_backward", "penalty": "after_backward"},
        mentions=("log_lambda",),
        paste="manual",
        cure="""\
import torch

weight = torch.tensor([1.0, 2.0], requires_grad=True)
log_lambda = torch.tensor(-2.0, requires_grad=True)
penalty = log_lambda.exp() * 4
loss = weight.pow(2).sum() + penalty
loss.backward()
""",
        cured="log_lambda.grad is not None and bool(log_lambda.grad.abs().sum() > 0)",
    ),
    Case(
        situation="plus-equals on the result of exp",
        cell="""\
import torch

a = torch.tensor([0.1, 0.2], requires_grad=True)
y = a.exp()
y += 1
loss = y.sum()
loss.backward()
""",
        kind="changed_in_place",
        line=6,
        mentions=("y", "exp", "line 5", "y += 1"),
        paste="replace",
        cure="""\
import torch

a = torch.tensor([0.1, 0.2], requires_grad=True)
y = a.exp()
y = y + 1
loss = y.sum()
loss.backward()
""",
        cured="a.grad is not None and bool(a.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="one element set to zero after the tensor was squared",
        cell="""\
import torch

a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
y = a * 2
energy = y * y
y[0] = 0
loss = energy.sum() + y.sum()
loss.backward()
""",
        kind="changed_in_place",
        line=7,
        mentions=("y", "energy", "line 6"),
        paste="above",
        cure="""\
import torch

a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
y = a * 2
energy = y * y
y = y.clone()
y[0] = 0
loss = energy.sum() + y.sum()
loss.backward()
""",
        cured="a.grad is not None and bool(a.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a view of a sigmoid's result multiplied in place",
        cell="""\
import torch

torch.manual_seed(21)
raw = torch.randn(2, 3, requires_grad=True)
gates = torch.sigmoid(raw)
first = gates[:, 0]
first.mul_(2)
loss = first.sum() + gates.sum()
loss.backward()
""",
        kind="changed_in_place",
        line=8,
        mentions=("gates", "sigmoid"),
        paste="replace",
        cure="""\
import torch

torch.manual_seed(21)
raw = torch.randn(2, 3, requires_grad=True)
gates = torch.sigmoid(raw)
first = gates[:, 0]
first = first * 2
loss = first.sum() + gates.sum()
loss.backward()
""",
        cured="raw.grad is not None and bool(raw.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="relu_ on the result of tanh",
        cell="""\
import torch
from torch import nn

torch.manual_seed(22)
layer = nn.Linear(3, 3)
hidden = torch.tanh(layer(torch.randn(2, 3)))
torch.relu_(hidden)
loss = hidden.sum()
loss.backward()
""",
        kind="changed_in_place",
        line=8,
        mentions=("hidden", "tanh"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(22)
layer = nn.Linear(3, 3)
hidden = torch.tanh(layer(torch.randn(2, 3)))
hidden = torch.relu(hidden)
loss = hidden.sum()
loss.backward()
""",
        cured="layer.weight.grad is not None and bool(layer.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="an in-place ReLU module after a sigmoid",
        cell="""\
import torch
from torch import nn

torch.manual_seed(23)
dense = nn.Linear(4, 2)
clip = nn.ReLU(inplace=True)
probs = dense(torch.randn(3, 4)).sigmoid()
rectified = clip(probs)
loss = rectified.pow(2).sum()
loss.backward()
""",
        kind="changed_in_place",
        line=9,
        mentions=("probs", "inplace=True"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(23)
dense = nn.Linear(4, 2)
clip = nn.ReLU()
probs = dense(torch.randn(3, 4)).sigmoid()
rectified = clip(probs)
loss = rectified.pow(2).sum()
loss.backward()
""",
        cured="dense.weight.grad is not None and bool(dense.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="an in-place LeakyReLU right after Tanh in a Sequential",
        cell="""\
import torch
from torch import nn

torch.manual_seed(24)
stack = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 1))
out = stack(torch.randn(5, 3))
loss = out.pow(2).mean()
loss.backward()
""",
        kind="changed_in_place",
        line=7,
        mentions=("stack.2", "inplace=True"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(24)
stack = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LeakyReLU(0.1), nn.Linear(4, 1))
out = stack(torch.randn(5, 3))
loss = out.pow(2).mean()
loss.backward()
""",
        cured="stack[0].weight.grad is not None and bool(stack[0].weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a scratch tensor overwritten through out=",
        cell="""\
import torch

weight = torch.tensor([1.0, 2.0], requires_grad=True)
signal = torch.tensor([3.0, 4.0])
scratch = signal * 2
scaled = weight * scratch
torch.add(signal, 1, out=scratch)
loss = (scaled * scratch).sum()
loss.backward()
""",
        kind="changed_in_place",
        line=8,
        mentions=("scratch", "scaled", "line 7"),
        paste="replace",
        cure="""\
import torch

weight = torch.tensor([1.0, 2.0], requires_grad=True)
signal = torch.tensor([3.0, 4.0])
scratch = signal * 2
scaled = weight * scratch
scratch = torch.add(signal, 1)
loss = (scaled * scratch).sum()
loss.backward()
""",
        cured="weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="an optimizer step between two backwards of one forward",
        cell="""\
import torch
from torch import nn

torch.manual_seed(25)
generator = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
fake = generator(torch.randn(4, 2))
loss_shape = fake.pow(2).mean()
loss_mean = fake.mean().pow(2)
loss_shape.backward(retain_graph=True)
optimizer.step()
loss_mean.backward()
""",
        kind="changed_in_place",
        line=12,
        mentions=("generator.2.weight", "optimizer.step()"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(25)
generator = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
fake = generator(torch.randn(4, 2))
loss_shape = fake.pow(2).mean()
loss_mean = fake.mean().pow(2)
loss_shape.backward(retain_graph=True)
loss_mean.backward()
optimizer.step()
""",
        cured="torch.allclose(generator[2].bias.grad, 4 * fake.mean())",
        raises="RuntimeError",
    ),
    Case(
        situation="a weight clamped between forward and backward",
        cell="""\
import torch
from torch import nn

torch.manual_seed(26)
lower = nn.Linear(3, 3)
upper = nn.Linear(3, 1)
score = upper(lower(torch.randn(2, 3)).relu()).mean()
with torch.no_grad():
    upper.weight.clamp_(-0.1, 0.1)
score.backward()
""",
        kind="changed_in_place",
        line=10,
        mentions=("upper.weight", "clamp_"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(26)
lower = nn.Linear(3, 3)
upper = nn.Linear(3, 1)
score = upper(lower(torch.randn(2, 3)).relu()).mean()
score.backward()
with torch.no_grad():
    upper.weight.clamp_(-0.1, 0.1)
""",
        cured="lower.weight.grad is not None and bool(lower.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a buffer filled step by step in a loop",
        cell="""\
import torch

torch.manual_seed(27)
decay = torch.tensor([0.9, 0.8], requires_grad=True)
levels = torch.ones(4, 2)
for t in range(1, 4):
    levels[t] = levels[t - 1] * decay
loss = levels[-1].sum()
loss.backward()
""",
        kind="changed_in_place",
        line=8,
        mentions=("levels",),
        paste="manual",
        cure="""\
import torch

torch.manual_seed(27)
decay = torch.tensor([0.9, 0.8], requires_grad=True)
steps = [torch.ones(2)]
for t in range(1, 4):
    steps.append(steps[-1] * decay)
levels = torch.stack(steps)
loss = levels[-1].sum()
loss.backward()
""",
        cured="decay.grad is not None and bool(decay.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a vector divided by its own norm in place",
        cell="""\
import torch

latent = torch.tensor([3.0, 4.0], requires_grad=True)
direction = latent * 1.5
direction /= direction.norm()
loss = direction[0]
loss.backward()
""",
        kind="changed_in_place",
        line=6,
        mentions=("direction", "norm"),
        paste="replace",
        cure="""\
import torch

latent = torch.tensor([3.0, 4.0], requires_grad=True)
direction = latent * 1.5
direction = direction / direction.norm()
loss = direction[0]
loss.backward()
""",
        cured="latent.grad is not None and bool(latent.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="the drive added in place to the state of a loop",
        cell="""\
import torch

leak = torch.tensor(0.8, requires_grad=True)
drive = torch.tensor([0.1, 0.2])
state = torch.zeros(2)
for tick in range(3):
    state = torch.tanh(state * leak)
    state += drive
loss = state.sum()
loss.backward()
""",
        kind="changed_in_place",
        line=9,
        mentions=("state", "tanh"),
        paste="replace",
        cure="""\
import torch

leak = torch.tensor(0.8, requires_grad=True)
drive = torch.tensor([0.1, 0.2])
state = torch.zeros(2)
for tick in range(3):
    state = torch.tanh(state * leak)
    state = state + drive
loss = state.sum()
loss.backward()
""",
        cured="leak.grad is not None and bool(leak.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="gates clamped through .data after the sigmoid",
        cell="""\
import torch

raw = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
gate = torch.sigmoid(raw)
gate.data.clamp_(0.4, 0.6)
loss = gate.sum()
loss.backward()
""",
        kind="changed_through_data",
        line=6,
        mentions=("gate", "line 5"),
        paste="replace",
        cure="""\
import torch

raw = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
gate = torch.sigmoid(raw)
gate = gate.clamp(0.4, 0.6)
loss = gate.sum()
loss.backward()
""",
        cured="torch.allclose(raw.grad, torch.tensor([0.0, 0.25, 0.0]))",
    ),
    Case(
        situation="a weight rescaled through .data before backward",
        cell="""\
import torch

weight = torch.tensor([2.0, 4.0], requires_grad=True)
loss = weight.pow(2).sum()
weight.data *= 0.5
loss.backward()
""",
        kind="changed_through_data",
        line=6,
        mentions=("weight", "loss"),
        paste="manual",
        cure="""\
import torch

weight = torch.tensor([2.0, 4.0], requires_grad=True)
loss = weight.pow(2).sum()
loss.backward()
weight.data *= 0.5
""",
        cured="torch.equal(weight.grad, torch.tensor([4.0, 8.0]))",
    ),
    Case(
        situation="backward called twice on one loss",
        cell="""\
import torch

w = torch.tensor([1.0, 2.0], requires_grad=True)
loss = w.pow(2).sum()
loss.backward()
loss.backward()
""",
        kind="second_backward",
        line=7,
        mentions=("loss", "line 5"),
        paste="manual",
        cure="""\
import torch

w = torch.tensor([1.0, 2.0], requires_grad=True)
loss = w.pow(2).sum()
loss.backward(retain_graph=True)
loss.backward()
""",
        cured="torch.equal(w.grad, torch.tensor([4.0, 8.0]))",
        raises="RuntimeError",
    ),
    Case(
        situation="two losses that share the hidden layer",
        cell="""\
import torch
from torch import nn

torch.manual_seed(28)
shared = nn.Linear(3, 4)
hidden = shared(torch.randn(2, 3)).tanh()
colour_loss = hidden[:, :2].pow(2).mean()
size_loss = hidden[:, 2:].abs().mean()
colour_loss.backward()
size_loss.backward()
""",
        kind="second_backward",
        line=11,
        mentions=("hidden", "line 7", "size_loss"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(28)
shared = nn.Linear(3, 4)
hidden = shared(torch.randn(2, 3)).tanh()
colour_loss = hidden[:, :2].pow(2).mean()
size_loss = hidden[:, 2:].abs().mean()
(colour_loss + size_loss).backward()
""",
        cured="bool(shared.weight.grad[2:].abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a tensor made before the training loop",
        cell="""\
import torch

log_scale = torch.tensor(0.2, requires_grad=True)
data = torch.tensor([1.0, 2.0, 4.0])
scale = log_scale.exp()
for epoch in range(3):
    loss = (data / scale - 1).pow(2).mean()
    loss.backward()
""",
        kind="second_backward",
        line=9,
        mentions=("scale", "line 6"),
        paste="manual",
        cure="""\
import torch

log_scale = torch.tensor(0.2, requires_grad=True)
data = torch.tensor([1.0, 2.0, 4.0])
for epoch in range(3):
    scale = log_scale.exp()
    loss = (data / scale - 1).pow(2).mean()
    loss.backward()
""",
        cured="epoch == 2 and log_scale.grad is not None and bool(log_scale.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="the hidden state of an RNN carried over to the next batch",
        cell="""\
import torch
from torch import nn

torch.manual_seed(29)
cell = nn.GRUCell(2, 3)
state = torch.zeros(1, 3)
for chunk in torch.randn(3, 1, 2):
    state = cell(chunk, state)
    loss = state.pow(2).sum()
    loss.backward()
""",
        kind="second_backward",
        line=11,
        mentions=("state", "line 9", "detach"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(29)
cell = nn.GRUCell(2, 3)
state = torch.zeros(1, 3)
chunks_done = 0
for chunk in torch.randn(3, 1, 2):
    state = cell(chunk, state.detach())
    loss = state.pow(2).sum()
    loss.backward()
    chunks_done += 1
""",
        cured="chunks_done == 3 and cell.weight_ih.grad is not None and bool(cell.weight_ih.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="features of an earlier cell whose graph is already freed",
        cell="""\
decoder = nn.Linear(4, 3)
rebuilt = decoder(features)
loss = (rebuilt - measurements).pow(2).mean()
loss.backward()
""",
        kind="second_backward",
        line=5,
        mentions=("features",),
        before=(
            """\
import torch
from torch import nn

torch.manual_seed(30)
encoder = nn.Linear(3, 4)
measurements = torch.randn(5, 3)
features = encoder(measurements).tanh()
sparsity = features.abs().mean()
sparsity.backward()
""",
        ),
        paste="manual",
        cure="""\
decoder = nn.Linear(4, 3)
features = encoder(measurements).tanh()
rebuilt = decoder(features)
loss = (rebuilt - measurements).pow(2).mean()
loss.backward()
""",
        cured="not torch.allclose(encoder.weight.grad, torch.autograd.grad(encoder(measurements).tanh().abs().mean(), encoder.weight)[0])",
        raises="RuntimeError",
    ),
    Case(
        situation="accuracy used as the loss",
        cell="""\
import torch
from torch import nn

torch.manual_seed(31)
classifier = nn.Linear(4, 3)
examples = torch.randn(6, 4)
answers = torch.tensor([0, 1, 2, 0, 1, 2])
logits = classifier(examples)
guesses = logits.argmax(dim=1)
loss = (guesses != answers).float().mean()
loss.backward()
""",
        kind="root_without_graph",
        line=10,
        mentions=("logits", "argmax", "loss"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(31)
classifier = nn.Linear(4, 3)
examples = torch.randn(6, 4)
answers = torch.tensor([0, 1, 2, 0, 1, 2])
logits = classifier(examples)
loss = nn.functional.cross_entropy(logits, answers)
loss.backward()
""",
        cured="classifier.weight.grad is not None and bool(classifier.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="the sum of losses collected as Python numbers",
        cell="""\
import torch

knob = torch.tensor(0.5, requires_grad=True)
parts = []
for target in (1.0, 2.0):
    part = (knob - target) ** 2
    parts.append(part.item())
loss = torch.tensor(parts).sum()
loss.backward()
""",
        kind="root_without_graph",
        line=8,
        mentions=("part", "item"),
        paste="manual",
        cure="""\
import torch

knob = torch.tensor(0.5, requires_grad=True)
parts = []
for target in (1.0, 2.0):
    part = (knob - target) ** 2
    parts.append(part)
loss = torch.stack(parts).sum()
loss.backward()
""",
        cured="knob.grad is not None and bool(knob.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="every parameter of the model is frozen",
        cell="""\
import torch
from torch import nn

torch.manual_seed(32)
pretrained = nn.Linear(3, 1)
for weight in pretrained.parameters():
    weight.requires_grad = False
loss = pretrained(torch.randn(2, 3)).pow(2).mean()
loss.backward()
""",
        kind="root_without_graph",
        line=10,
        rows={"pretrained.weight": "frozen", "pretrained.bias": "frozen"},
        mentions=("pretrained", "loss"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(32)
pretrained = nn.Linear(3, 1)
for weight in pretrained.parameters():
    weight.requires_grad = True
loss = pretrained(torch.randn(2, 3)).pow(2).mean()
loss.backward()
""",
        cured="pretrained.weight.grad is not None and bool(pretrained.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="the whole forward inside no_grad",
        cell="""\
import torch
from torch import nn

torch.manual_seed(33)
model = nn.Linear(2, 1)
with torch.no_grad():
    output = model(torch.randn(3, 2))
    loss = output.pow(2).mean()
loss.backward()
""",
        kind="root_without_graph",
        line=8,
        mentions=("loss", "no_grad"),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(33)
model = nn.Linear(2, 1)
output = model(torch.randn(3, 2))
loss = output.pow(2).mean()
loss.backward()
""",
        cured="model.weight.grad is not None and bool(model.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="gradients switched off in an earlier cell and never on again",
        cell="""\
weight = torch.tensor([0.5, 1.0], requires_grad=True)
scored = weight * torch.tensor([2.0, 3.0])
loss = scored.sum()
loss.backward()
""",
        kind="root_without_graph",
        line=3,
        mentions=("loss", "set_grad_enabled"),
        before=(
            """\
import torch

_ = torch.set_grad_enabled(False)
""",
        ),
        paste="above",
        cure="""\
weight = torch.tensor([0.5, 1.0], requires_grad=True)
torch.set_grad_enabled(True)
scored = weight * torch.tensor([2.0, 3.0])
loss = scored.sum()
loss.backward()
""",
        cured="weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a loss computed in NumPy",
        cell="""\
import numpy as np
import torch

estimate = torch.tensor([1.0, 2.0], requires_grad=True)
truth = np.array([1.5, 1.5], dtype=np.float32)
difference = estimate.detach().numpy() - truth
loss = torch.as_tensor((difference ** 2).mean())
loss.backward()
""",
        kind="root_without_graph",
        line=7,
        mentions=("estimate",),
        paste="manual",
        cure="""\
import numpy as np
import torch

estimate = torch.tensor([1.0, 2.0], requires_grad=True)
truth = np.array([1.5, 1.5], dtype=np.float32)
difference = estimate - torch.from_numpy(truth)
loss = torch.as_tensor((difference ** 2).mean())
loss.backward()
""",
        cured="estimate.grad is not None and bool(estimate.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="backward from a vector",
        cell="""\
import torch

weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
squares = weight ** 2
squares.backward()
""",
        kind="root_not_scalar",
        line=6,
        mentions=("squares", "3"),
        paste="replace",
        cure="""\
import torch

weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
squares = weight ** 2
squares.sum().backward()
""",
        cured="weight.grad is not None and bool(weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a criterion that does not reduce",
        cell="""\
import torch
from torch import nn

torch.manual_seed(34)
model = nn.Linear(3, 1)
criterion = nn.MSELoss(reduction="none")
loss = criterion(model(torch.randn(4, 3)), torch.zeros(4, 1))
loss.backward()
""",
        kind="root_not_scalar",
        line=9,
        mentions=("loss",),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(34)
model = nn.Linear(3, 1)
criterion = nn.MSELoss(reduction="none")
loss = criterion(model(torch.randn(4, 3)), torch.zeros(4, 1))
loss.mean().backward()
""",
        cured="model.weight.grad is not None and bool(model.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="NumPy's doubles given to a float model",
        cell="""\
import numpy as np
import torch
from torch import nn

torch.manual_seed(35)
model = nn.Linear(2, 1)
measured = torch.from_numpy(np.array([[0.5, 1.0], [1.5, 2.0]]))
loss = model(measured).pow(2).mean()
""",
        kind="dtype_mismatch",
        line=9,
        mentions=("measured", "float64"),
        paste="replace",
        cure="""\
import numpy as np
import torch
from torch import nn

torch.manual_seed(35)
model = nn.Linear(2, 1)
measured = torch.from_numpy(np.array([[0.5, 1.0], [1.5, 2.0]]))
loss = model(measured.float()).pow(2).mean()
""",
        cured="model.weight.grad is not None and bool(model.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a double matrix times a float vector",
        cell="""\
import torch

torch.manual_seed(36)
weights = torch.randn(3, requires_grad=True)
design = torch.eye(3, dtype=torch.float64)
fitted = design @ weights
loss = fitted.pow(2).sum()
""",
        kind="dtype_mismatch",
        line=7,
        mentions=("design", "weights"),
        paste="manual",
        cure="""\
import torch

torch.manual_seed(36)
weights = torch.randn(3, requires_grad=True)
design = torch.eye(3, dtype=torch.float64)
fitted = design.float() @ weights
loss = fitted.pow(2).sum()
""",
        cured="weights.grad is not None and bool(weights.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="class labels given as floats",
        cell="""\
import torch
from torch import nn

torch.manual_seed(37)
logits = torch.randn(3, 4, requires_grad=True)
labels = torch.tensor([0.0, 2.0, 1.0])
loss = nn.functional.cross_entropy(logits, labels)
""",
        kind="dtype_mismatch",
        line=8,
        mentions=("labels",),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(37)
logits = torch.randn(3, 4, requires_grad=True)
labels = torch.tensor([0.0, 2.0, 1.0])
loss = nn.functional.cross_entropy(logits, labels.long())
""",
        cured="logits.grad is not None and bool(logits.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="token numbers given to an embedding as floats",
        cell="""\
import torch
from torch import nn

torch.manual_seed(38)
embedding = nn.Embedding(5, 2)
tokens = torch.tensor([1.0, 3.0])
vectors = embedding(tokens)
loss = vectors.sum()
""",
        kind="dtype_mismatch",
        line=8,
        mentions=("tokens",),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(38)
embedding = nn.Embedding(5, 2)
tokens = torch.tensor([1.0, 3.0])
vectors = embedding(tokens.long())
loss = vectors.sum()
""",
        cured="embedding.weight.grad is not None and bool(embedding.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="the input on another device than the weights",
        cell="""\
import torch

gain = torch.ones(3, requires_grad=True)
batch = torch.ones(3, device="meta")
product = gain * batch
loss = product.sum()
""",
        kind="device_mismatch",
        line=6,
        mentions=("gain", "batch", "meta"),
        paste="manual",
        cure="""\
import torch

gain = torch.ones(3, requires_grad=True)
batch = torch.ones(3)
product = gain * batch
loss = product.sum()
""",
        cured="gain.grad is not None and bool(gain.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a weight updated in place without no_grad",
        cell="""\
import torch

w = torch.tensor([1.0, 2.0], requires_grad=True)
loss = w.pow(2).sum()
loss.backward()
w -= 0.1 * w.grad
""",
        kind="leaf_changed_in_place",
        line=7,
        mentions=("w", "no_grad"),
        paste="manual",
        cure="""\
import torch

w = torch.tensor([1.0, 2.0], requires_grad=True)
loss = w.pow(2).sum()
loss.backward()
with torch.no_grad():
    w -= 0.1 * w.grad
""",
        cured="torch.allclose(w, torch.tensor([0.8, 1.6]))",
        raises="RuntimeError",
    ),
    Case(
        situation="one entry of a parameter overwritten",
        cell="""\
import torch
from torch import nn

torch.manual_seed(39)
layer = nn.Linear(2, 2)
layer.bias[0] = 1.0
loss = layer(torch.ones(1, 2)).pow(2).sum()
""",
        kind="leaf_changed_in_place",
        line=7,
        mentions=("layer.bias",),
        paste="manual",
        cure="""\
import torch
from torch import nn

torch.manual_seed(39)
layer = nn.Linear(2, 2)
with torch.no_grad():
    layer.bias[0] = 1.0
loss = layer(torch.ones(1, 2)).pow(2).sum()
""",
        cured="layer.bias[0].item() == 1.0 and layer.bias.grad is not None and bool(layer.bias.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a leaf made of whole numbers",
        cell="""\
import torch

counts = torch.tensor([1, 2, 3], requires_grad=True)
loss = counts.pow(2).sum()
""",
        kind="integer_requires_grad",
        line=4,
        mentions=("int64",),
        paste="manual",
        cure="""\
import torch

counts = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
loss = counts.pow(2).sum()
""",
        cured="counts.grad is not None and bool(counts.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a prediction converted to NumPy for a plot",
        cell="""\
import torch
from torch import nn

torch.manual_seed(40)
model = nn.Linear(1, 1)
curve = model(torch.linspace(0, 1, 4).unsqueeze(1))
loss = curve.pow(2).mean()
heights = curve.numpy()
""",
        kind="numpy_needs_detach",
        line=9,
        mentions=("curve",),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(40)
model = nn.Linear(1, 1)
curve = model(torch.linspace(0, 1, 4).unsqueeze(1))
loss = curve.pow(2).mean()
heights = curve.detach().numpy()
""",
        cured="heights.shape == (4, 1)",
        raises="RuntimeError",
    ),
    Case(
        situation="autograd.grad asked for a copy that the loss never saw",
        cell="""\
import torch

dose = torch.tensor([0.5, 1.5], requires_grad=True)
shifted = dose + 1
loss = dose.pow(2).sum()
slope = torch.autograd.grad(loss, shifted)[0]
""",
        kind="not_in_graph",
        line=7,
        mentions=("shifted", "loss"),
        paste="manual",
        cure="""\
import torch

dose = torch.tensor([0.5, 1.5], requires_grad=True)
shifted = dose + 1
loss = shifted.pow(2).sum()
slope = torch.autograd.grad(loss, shifted, retain_graph=True)[0]
""",
        cured="torch.equal(slope, torch.tensor([3.0, 5.0]))",
        raises="RuntimeError",
    ),
    Case(
        situation="a scaled random tensor given to the optimizer",
        cell="""\
import torch

torch.manual_seed(41)
latent = torch.randn(4, requires_grad=True) * 0.1
optimizer = torch.optim.Adam([latent], lr=0.01)
loss = latent.pow(2).sum()
""",
        kind="non_leaf_in_optimizer",
        line=5,
        mentions=("latent",),
        paste="replace",
        cure="""\
import torch

torch.manual_seed(41)
latent = (torch.randn(4) * 0.1).requires_grad_()
optimizer = torch.optim.Adam([latent], lr=0.01)
loss = latent.pow(2).sum()
""",
        cured="latent.grad is not None and bool(latent.grad.abs().sum() > 0)",
        raises="ValueError",
    ),
    Case(
        situation="requires_grad switched off on a computed tensor",
        cell="""\
import torch
from torch import nn

torch.manual_seed(42)
teacher = nn.Linear(2, 2)
student = nn.Linear(2, 2)
rows = torch.randn(3, 2)
soft = teacher(rows)
soft.requires_grad = False
loss = (student(rows) - soft).pow(2).mean()
""",
        kind="requires_grad_of_non_leaf",
        line=10,
        mentions=("soft", "detach"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(42)
teacher = nn.Linear(2, 2)
student = nn.Linear(2, 2)
rows = torch.randn(3, 2)
soft = teacher(rows)
soft = soft.detach()
loss = (student(rows) - soft).pow(2).mean()
""",
        cured="not soft.requires_grad and student.weight.grad is not None and bool(student.weight.grad.abs().sum() > 0)",
        raises="RuntimeError",
    ),
    Case(
        situation="a part of a leaf changed in place through a view",
        cell="""\
import torch
prices = torch.ones(4, requires_grad=True)
first = prices[:2]
first += 1
loss = prices.sum()
""",
        kind="leaf_changed_in_place",
        line=5,
        mentions=("first", "part of a leaf"),
        paste="replace",
        cured="prices.grad is not None",
        raises="RuntimeError",
    ),
)
