"""Sick gradients and the traps of a notebook's state; and healthy cells that look a little like them."""

from __future__ import annotations

from corpus.cases import Case, Healthy

NAN_GRADIENTS = (
    Case(
        situation="the square root of a squared distance that is zero for one of the points",
        cell="""\
import torch
stations = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
center = torch.zeros(2, requires_grad=True)
squared = ((stations - center) ** 2).sum(dim=1)
distance = squared.sqrt()
loss = distance.mean()
""",
        kind="nan_gradient",
        line=6,
        mentions=("squared.sqrt()",),
        paste="replace",
        cure="""\
import torch
stations = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
center = torch.zeros(2, requires_grad=True)
squared = ((stations - center) ** 2).sum(dim=1)
distance = (squared + 1e-12).sqrt()
loss = distance.mean()
""",
        cured="bool(torch.isfinite(center.grad).all())",
    ),
    Case(
        situation="torch.sqrt straight on a parameter that starts at zero: the gradient is infinite",
        cell="""\
import torch
variances = torch.zeros(4, requires_grad=True)
observed = torch.tensor([0.5, 1.0, 1.5, 2.0])
sigma = torch.sqrt(variances)
loss = ((sigma - observed) ** 2).sum()
loss.backward()
""",
        kind="nan_gradient",
        line=5,
        mentions=("variances",),
        paste="replace",
        cure="""\
import torch
variances = torch.zeros(4, requires_grad=True)
observed = torch.tensor([0.5, 1.0, 1.5, 2.0])
sigma = torch.sqrt(variances + 1e-12)
loss = ((sigma - observed) ** 2).sum()
loss.backward()
""",
        cured="bool(torch.isfinite(variances.grad).all())",
    ),
    Case(
        situation="gamma correction with a fractional power of pixels that are black",
        cell="""\
import torch
torch.manual_seed(0)
image = torch.rand(4, 4)
image[0] = 0.0
exposure = torch.tensor(1.2, requires_grad=True)
corrected = (image * exposure) ** 0.45
loss = (corrected - 0.5).abs().mean()
""",
        kind="nan_gradient",
        line=7,
        paste="replace",
        cure="""\
import torch
torch.manual_seed(0)
image = torch.rand(4, 4)
image[0] = 0.0
exposure = torch.tensor(1.2, requires_grad=True)
corrected = (image * exposure).clamp(min=1e-6) ** 0.45
loss = (corrected - 0.5).abs().mean()
""",
        cured="bool(torch.isfinite(exposure.grad))",
    ),
    Case(
        situation="the length of a vector by hand, (v * v).sum() ** 0.5, where the vector is zero",
        cell="""\
import torch
velocity = torch.zeros(3, requires_grad=True)
speed = (velocity * velocity).sum() ** 0.5
loss = (speed - 1.0) ** 2
""",
        kind="nan_gradient",
        line=4,
        mentions=("velocity",),
        paste="replace",
        cure="""\
import torch
velocity = torch.zeros(3, requires_grad=True)
speed = ((velocity * velocity).sum() + 1e-12) ** 0.5
loss = (speed - 1.0) ** 2
""",
        cured="bool(torch.isfinite(velocity.grad).all())",
    ),
    Case(
        situation="torch.where hides the square root of negative numbers, but its backward still meets them",
        cell="""\
import torch
depth = torch.tensor([-2.0, -0.5, 1.0, 4.0], requires_grad=True)
speed = torch.where(depth > 0, torch.sqrt(depth), torch.zeros_like(depth))
loss = speed.sum()
""",
        kind="nan_gradient",
        line=4,
        mentions=("depth",),
        paste="replace",
        cure="""\
import torch
depth = torch.tensor([-2.0, -0.5, 1.0, 4.0], requires_grad=True)
speed = torch.where(depth > 0, torch.sqrt(torch.where(depth > 0, depth, torch.ones_like(depth))), torch.zeros_like(depth))
loss = speed.sum()
""",
        cured="bool(torch.isfinite(depth.grad).all())",
    ),
    Case(
        situation="an entropy whose p * log(p) is put aside by where at p = 0",
        cell="""\
import torch
p = torch.tensor([0.0, 0.25, 0.75], requires_grad=True)
logs = torch.log(p)
terms = torch.where(p > 0, p * logs, torch.zeros_like(p))
loss = -terms.sum()
""",
        kind="nan_gradient",
        mentions=("p",),
        line=4,
        paste="manual",
        cure="""\
import torch
p = torch.tensor([0.0, 0.25, 0.75], requires_grad=True)
logs = torch.log(p.clamp(min=1e-12))
terms = torch.where(p > 0, p * logs, torch.zeros_like(p))
loss = -terms.sum()
""",
        cured="bool(torch.isfinite(p.grad).all())",
    ),
    Case(
        situation="a division by an empty group's weight, replaced by zero with torch.where",
        cell="""\
import torch
totals = torch.tensor([6.0, 0.0, 10.0])
weights = torch.tensor([2.0, 0.0, 5.0], requires_grad=True)
means = totals / weights
averages = torch.where(weights > 0, means, torch.zeros_like(means))
loss = averages.pow(2).sum()
""",
        kind="nan_gradient",
        line=5,
        mentions=("weights",),
        paste="replace",
        cure="""\
import torch
totals = torch.tensor([6.0, 0.0, 10.0])
weights = torch.tensor([2.0, 0.0, 5.0], requires_grad=True)
means = totals / torch.where(weights > 0, weights, torch.ones_like(weights))
averages = torch.where(weights > 0, means, torch.zeros_like(means))
loss = averages.pow(2).sum()
""",
        cured="bool(torch.isfinite(weights.grad).all())",
    ),
    Case(
        situation="the log of all rates, of which the padded ones (zero) are left out by a mask afterwards",
        cell="""\
import torch
rates = torch.tensor([0.2, 0.9, 0.0, 0.0], requires_grad=True)
valid = torch.tensor([True, True, False, False])
surprise = -torch.log(rates)
loss = surprise[valid].mean()
loss.backward()
""",
        kind="nan_gradient",
        line=5,
        mentions=("rates",),
        paste="replace",
        cure="""\
import torch
rates = torch.tensor([0.2, 0.9, 0.0, 0.0], requires_grad=True)
valid = torch.tensor([True, True, False, False])
surprise = -torch.log(rates.clamp(min=1e-12))
loss = surprise[valid].mean()
loss.backward()
""",
        cured="bool(torch.isfinite(rates.grad).all())",
    ),
    Case(
        situation="the inverse of a padded length, infinite, filled with zero afterwards: zero times infinity in backward",
        cell="""\
import torch
lengths = torch.tensor([4.0, 2.0, 0.0], requires_grad=True)
padding = torch.tensor([False, False, True])
inverse = lengths.reciprocal()
inverse = inverse.masked_fill(padding, 0.0)
loss = (3 * inverse).sum()
""",
        kind="nan_gradient",
        line=5,
        mentions=("lengths",),
        paste="manual",
        cure="""\
import torch
lengths = torch.tensor([4.0, 2.0, 0.0], requires_grad=True)
padding = torch.tensor([False, False, True])
inverse = lengths.masked_fill(padding, 1.0).reciprocal()
inverse = inverse.masked_fill(padding, 0.0)
loss = (3 * inverse).sum()
""",
        cured="bool(torch.isfinite(lengths.grad).all())",
    ),
    Case(
        situation="the angle between two equal directions: acos at 1",
        cell="""\
import torch
predicted = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
actual = torch.tensor([1.0, 0.0, 0.0])
cosine = (predicted * actual).sum() / (predicted.norm() * actual.norm())
angle = torch.acos(cosine.clamp(-1, 1))
loss = angle ** 2 + 0.1 * angle
""",
        kind="nan_gradient",
        line=6,
        mentions=("cosine",),
        paste="replace",
        cure="""\
import torch
predicted = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
actual = torch.tensor([1.0, 0.0, 0.0])
cosine = (predicted * actual).sum() / (predicted.norm() * actual.norm())
angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
loss = angle ** 2 + 0.1 * angle
""",
        cured="bool(torch.isfinite(predicted.grad).all())",
    ),
    Case(
        situation="the pitch from the vertical component of a gravity vector that points straight up: asin at 1",
        cell="""\
import torch
gravity = torch.tensor([0.6, 1.0, -0.2], requires_grad=True)
pitch = torch.asin(gravity)
loss = pitch.sum()
loss.backward()
""",
        kind="nan_gradient",
        line=4,
        mentions=("gravity",),
        paste="replace",
        cure="""\
import torch
gravity = torch.tensor([0.6, 1.0, -0.2], requires_grad=True)
pitch = torch.asin(gravity.clamp(-1 + 1e-6, 1 - 1e-6))
loss = pitch.sum()
loss.backward()
""",
        cured="bool(torch.isfinite(gravity.grad).all())",
    ),
    Case(
        situation="standardising a constant feature with var().sqrt(), the eps added outside of the root",
        cell="""\
import torch
import torch.nn as nn
torch.manual_seed(0)
batch = torch.randn(8, 3)
embed = nn.Linear(3, 4)
with torch.no_grad():
    embed.weight[2] = 0.0
features = embed(batch)
spread = features.var(dim=0).sqrt()
standardised = (features - features.mean(dim=0)) / (spread + 1e-5)
loss = standardised.pow(3).mean()
""",
        kind="nan_gradient",
        line=10,
        paste="replace",
        cure="""\
import torch
import torch.nn as nn
torch.manual_seed(0)
batch = torch.randn(8, 3)
embed = nn.Linear(3, 4)
with torch.no_grad():
    embed.weight[2] = 0.0
features = embed(batch)
spread = (features.var(dim=0) + 1e-12).sqrt()
standardised = (features - features.mean(dim=0)) / (spread + 1e-5)
loss = standardised.pow(3).mean()
""",
        cured="bool(torch.isfinite(embed.weight.grad).all())",
    ),
    Case(
        situation="unit vectors by hand, with the eps beside the root instead of under it",
        cell="""\
import torch
torch.manual_seed(1)
tokens = torch.randn(4, 6)
tokens[3] = 0.0
projection = torch.randn(6, 5, requires_grad=True)
vectors = tokens @ projection
length = vectors.square().sum(dim=-1, keepdim=True).sqrt()
unit = vectors / (length + 1e-8)
loss = (unit @ unit.T).sum()
""",
        kind="nan_gradient",
        line=8,
        paste="manual",
        cure="""\
import torch
torch.manual_seed(1)
tokens = torch.randn(4, 6)
tokens[3] = 0.0
projection = torch.randn(6, 5, requires_grad=True)
vectors = tokens @ projection
unit = torch.nn.functional.normalize(vectors, dim=-1)
loss = (unit @ unit.T).sum()
""",
        cured="bool(torch.isfinite(projection.grad).all())",
    ),
    Case(
        situation="all pairwise distances by hand inside a function: every point is at distance 0 from itself",
        cell="""\
import torch

def pairwise(points):
    difference = points[:, None] - points[None, :]
    return difference.pow(2).sum(dim=-1).sqrt()

torch.manual_seed(2)
positions = torch.randn(5, 2, requires_grad=True)
gaps = pairwise(positions)
loss = gaps.mean()
""",
        kind="nan_gradient",
        line=6,
        paste="replace",
        cure="""\
import torch

def pairwise(points):
    difference = points[:, None] - points[None, :]
    return (difference.pow(2).sum(dim=-1) + 1e-12).sqrt()

torch.manual_seed(2)
positions = torch.randn(5, 2, requires_grad=True)
gaps = pairwise(positions)
loss = gaps.mean()
""",
        cured="bool(torch.isfinite(positions.grad).all())",
    ),
    Case(
        situation="float16: the values are small, but two factors of 300 make a gradient that half precision cannot hold",
        cell="""\
import torch
gains = torch.full((4,), 1e-3, dtype=torch.float16, requires_grad=True)
amplified = gains * 300
signal = amplified * 300
loss = signal.sum()
""",
        kind="nan_gradient",
        line=4,
        mentions=("amplified",),
        paste="manual",
        cure="""\
import torch
gains = torch.full((4,), 1e-3, dtype=torch.float32, requires_grad=True)
amplified = gains * 300
signal = amplified * 300
loss = signal.sum()
""",
        cured="bool(torch.isfinite(gains.grad).all())",
    ),
    Case(
        situation="the eigenvectors of a covariance whose eigenvalues are all equal",
        cell="""\
import torch
torch.manual_seed(0)
covariance = torch.eye(3, requires_grad=True)
values, vectors = torch.linalg.eigh(covariance)
mixing = torch.randn(3, 3)
loss = (vectors * mixing).sum() * 0.5 + vectors.sum()
""",
        kind="nan_gradient",
        line=5,
        mentions=("covariance",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
covariance = torch.eye(3, requires_grad=True)
values, vectors = torch.linalg.eigh(covariance + torch.diag(torch.tensor([0.0, 0.1, 0.2])))
mixing = torch.randn(3, 3)
loss = (vectors * mixing).sum() * 0.5 + vectors.sum()
""",
        cured="bool(torch.isfinite(covariance.grad).all())",
    ),
)

NAN_VALUES = (
    Case(
        situation="cross entropy by hand: the log of a softmax that underflowed to zero",
        cell="""\
import torch
logits = torch.tensor([[200.0, 0.0, -5.0]], requires_grad=True)
target = torch.tensor([1])
probabilities = torch.softmax(logits, dim=1)
log_probabilities = torch.log(probabilities)
loss = -log_probabilities[0, target].mean()
""",
        kind="nan_value",
        line=6,
        mentions=("log_probabilities",),
        options="--values",
        paste="manual",
        cure="""\
import torch
logits = torch.tensor([[200.0, 0.0, -5.0]], requires_grad=True)
target = torch.tensor([1])
log_probabilities = torch.log_softmax(logits, dim=1)
loss = -log_probabilities[0, target].mean()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())",
    ),
    Case(
        situation="the log likelihood of a probability that is exactly zero, without --values",
        cell="""\
import torch
probability = torch.tensor([0.7, 0.3, 0.0], requires_grad=True)
log_likelihood = probability.log()
loss = -log_likelihood.sum()
loss.backward()
""",
        kind="nan_value",
        mentions=("loss",),
        paste="manual",
        cure="""\
import torch
probability = torch.tensor([0.7, 0.3, 0.0], requires_grad=True)
log_likelihood = probability.clamp(min=1e-12).log()
loss = -log_likelihood.sum()
loss.backward()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(probability.grad).all())",
    ),
    Case(
        situation="the log likelihood of a probability that is exactly zero, with --values",
        cell="""\
import torch
chance = torch.tensor([0.7, 0.3, 0.0], requires_grad=True)
log_chance = chance.log()
loss = -log_chance.sum()
""",
        kind="nan_value",
        line=4,
        mentions=("log_chance",),
        options="--values",
        paste="replace",
        cure="""\
import torch
chance = torch.tensor([0.7, 0.3, 0.0], requires_grad=True)
log_chance = chance.clamp(min=1e-12).log()
loss = -log_chance.sum()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(chance.grad).all())",
    ),
    Case(
        situation="shares of a group without members: 0 / 0",
        cell="""\
import torch
counts = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
importance = torch.ones(2, requires_grad=True)
weighted = counts * importance
shares = weighted / weighted.sum(dim=1, keepdim=True)
loss = shares.square().sum()
""",
        kind="nan_value",
        line=6,
        mentions=("shares",),
        options="--values",
        paste="replace",
        cure="""\
import torch
counts = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
importance = torch.ones(2, requires_grad=True)
weighted = counts * importance
shares = weighted / weighted.sum(dim=1, keepdim=True).clamp(min=1e-12)
loss = shares.square().sum()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(importance.grad).all())",
    ),
    Case(
        situation="softmax by hand: exp of a large score overflows, then inf / inf",
        cell="""\
import torch
scores = torch.tensor([120.0, 3.0, 1.0], requires_grad=True)
exponentials = torch.exp(scores)
attention = exponentials / exponentials.sum()
loss = (attention * torch.tensor([0.1, 0.2, 0.3])).sum()
""",
        kind="nan_value",
        line=4,
        mentions=("exponentials",),
        options="--values",
        paste="manual",
        cure="""\
import torch
scores = torch.tensor([120.0, 3.0, 1.0], requires_grad=True)
attention = torch.softmax(scores, dim=0)
loss = (attention * torch.tensor([0.1, 0.2, 0.3])).sum()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(scores.grad).all())",
    ),
    Case(
        situation="logsumexp by hand of energies beyond 88, without --values",
        cell="""\
import torch
energies = torch.tensor([95.0, 90.0, 20.0], requires_grad=True)
partition = torch.log(torch.exp(energies).sum())
loss = partition - energies[1]
""",
        kind="nan_value",
        mentions=("loss",),
        paste="manual",
        cure="""\
import torch
energies = torch.tensor([95.0, 90.0, 20.0], requires_grad=True)
partition = torch.logsumexp(energies, dim=0)
loss = partition - energies[1]
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(energies.grad).all())",
    ),
    Case(
        situation="logsumexp by hand of energies beyond 88, in one line, with --values",
        cell="""\
import torch
energies = torch.tensor([95.0, 90.0, 20.0], requires_grad=True)
partition = torch.log(torch.exp(energies).sum())
loss = partition - energies[1]
""",
        kind="nan_value",
        line=4,
        mentions=("torch.exp(energies)",),
        options="--values",
        paste="replace",
        cure="""\
import torch
energies = torch.tensor([95.0, 90.0, 20.0], requires_grad=True)
partition = torch.logsumexp(energies, dim=0)
loss = partition - energies[1]
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(energies.grad).all())",
    ),
    Case(
        situation="binary cross entropy by hand on a sigmoid that rounds to exactly one",
        cell="""\
import torch
margin = torch.tensor([40.0, -2.0, 1.0], requires_grad=True)
label = torch.tensor([0.0, 0.0, 1.0])
confidence = torch.sigmoid(margin)
loss = -(label * torch.log(confidence) + (1 - label) * torch.log(1 - confidence)).mean()
loss.backward()
""",
        kind="nan_value",
        line=6,
        options="--values",
        paste="manual",
        cure="""\
import torch
margin = torch.tensor([40.0, -2.0, 1.0], requires_grad=True)
label = torch.tensor([0.0, 0.0, 1.0])
loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, label)
loss.backward()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(margin.grad).all())",
    ),
    Case(
        situation="float16: the square of an activation of 400 is beyond 65504",
        cell="""\
import torch
scale = torch.tensor(1.0, dtype=torch.float16, requires_grad=True)
activations = torch.tensor([400.0, 2.0, -3.0], dtype=torch.float16)
energy = (activations * scale) ** 2
loss = energy.mean()
""",
        kind="nan_value",
        line=5,
        mentions=("energy",),
        options="--values",
        paste="manual",
        cure="""\
import torch
scale = torch.tensor(1.0, dtype=torch.float16, requires_grad=True)
activations = torch.tensor([400.0, 2.0, -3.0], dtype=torch.float16)
energy = (activations * scale).float() ** 2
loss = energy.mean() / 1000
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(scale.grad))",
    ),
    Case(
        situation="attention with one query that may look at nothing: a softmax over nothing but -inf",
        cell="""\
import torch
torch.manual_seed(0)
queries = torch.randn(3, 4, requires_grad=True)
keys = torch.randn(3, 4)
blocked = torch.ones(3, 3).triu().bool()
scores = (queries @ keys.T / 2).masked_fill(blocked, float("-inf"))
attention = torch.softmax(scores, dim=-1)
loss = (attention @ keys).sum()
""",
        kind="nan_value",
        line=8,
        mentions=("attention",),
        options="--values",
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
queries = torch.randn(3, 4, requires_grad=True)
keys = torch.randn(3, 4)
blocked = torch.ones(3, 3).triu().bool()
scores = (queries @ keys.T / 2).masked_fill(blocked, -1e9)
attention = torch.softmax(scores, dim=-1)
loss = (attention @ keys).sum()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(queries.grad).all())",
    ),
    Case(
        situation="advantages of an episode of one step are divided by their standard deviation",
        cell="""\
import torch
reward = torch.tensor([1.5])
value = torch.tensor([0.5], requires_grad=True)
advantage = reward - value
advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
loss = advantage.pow(2).mean()
""",
        kind="nan_value",
        line=6,
        mentions=("advantage.std()",),
        options="--values",
        paste="manual",
        cure="""\
import torch
reward = torch.tensor([1.5])
value = torch.tensor([0.5], requires_grad=True)
advantage = reward - value
if advantage.numel() > 1:
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
loss = advantage.pow(2).mean()
""",
        cured="bool(torch.isfinite(loss)) and bool(torch.isfinite(value.grad).all())",
    ),
)

TRENDS = (
    Case(
        situation="a hand-written RNN whose recurrent weights shrink the gradient to a tenth at each of 24 steps",
        cell="""\
import torch
torch.manual_seed(0)
sequence = torch.randn(24, 2, 5) * 0.1
recurrent = (0.1 * torch.eye(8)).requires_grad_()
inward = (0.1 * torch.randn(5, 8)).requires_grad_()
start = torch.zeros(2, 8, requires_grad=True)
state = start
for step in sequence:
    state = torch.tanh(state @ recurrent + step @ inward)
loss = state.pow(2).sum() * 1000
""",
        kind="vanishing",
        line=10,
        mentions=("state",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
sequence = torch.randn(24, 2, 5) * 0.1
recurrent = torch.eye(8).requires_grad_()
inward = (0.1 * torch.randn(5, 8)).requires_grad_()
start = torch.zeros(2, 8, requires_grad=True)
state = start
for step in sequence:
    state = torch.tanh(state @ recurrent + step @ inward)
loss = state.pow(2).sum() * 1000
""",
        cured="float(start.grad.norm()) > 1e-2",
    ),
    Case(
        situation="a linear recurrence that triples the state at each of 30 steps",
        cell="""\
import torch
torch.manual_seed(0)
inputs = torch.randn(30, 4)
transition = (3.0 * torch.eye(4)).requires_grad_()
initial = torch.zeros(4, requires_grad=True)
hidden = initial
for x_t in inputs:
    hidden = hidden @ transition + x_t
loss = hidden.sum()
loss.backward()
""",
        kind="exploding",
        line=9,
        mentions=("hidden",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
inputs = torch.randn(30, 4)
transition = (0.95 * torch.eye(4)).requires_grad_()
initial = torch.zeros(4, requires_grad=True)
hidden = initial
for x_t in inputs:
    hidden = hidden @ transition + x_t
loss = hidden.sum()
loss.backward()
""",
        cured="float(initial.grad.norm()) < 10",
    ),
    Case(
        situation="nn.Sequential of twenty linear layers with sigmoids between them",
        cell="""\
import torch
import torch.nn as nn
torch.manual_seed(0)
layers = []
for _ in range(20):
    layers += [nn.Linear(16, 16), nn.Sigmoid()]
model = nn.Sequential(*layers, nn.Linear(16, 1))
x, y = torch.randn(8, 16), torch.randn(8, 1)
prediction = model(x)
loss = nn.functional.mse_loss(prediction, y)
""",
        kind="vanishing",
        line=10,
        mentions=("model",),
        paste="manual",
        cure="""\
import torch
import torch.nn as nn
torch.manual_seed(0)
layers = []
for _ in range(20):
    layers += [nn.Linear(16, 16), nn.ReLU()]
model = nn.Sequential(*layers, nn.Linear(16, 1))
for layer in model:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
x, y = torch.randn(8, 16), torch.randn(8, 1)
prediction = model(x)
loss = nn.functional.mse_loss(prediction, y)
""",
        cured="float(model[0].weight.grad.norm()) > 1e-3",
    ),
    Case(
        situation="a loop over eighteen narrow layers, each followed by a sigmoid",
        cell="""\
import torch
from torch import nn
torch.manual_seed(3)
blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(18))
head = nn.Linear(8, 2)
signal = torch.randn(6, 8)
labels = torch.tensor([0, 1, 0, 1, 1, 0])
for block in blocks:
    signal = torch.sigmoid(block(signal))
loss = nn.functional.cross_entropy(head(signal), labels)
loss.backward()
""",
        kind="vanishing",
        line=10,
        mentions=("signal",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(3)
blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(18))
head = nn.Linear(8, 2)
signal = torch.randn(6, 8)
labels = torch.tensor([0, 1, 0, 1, 1, 0])
for block in blocks:
    signal = signal + torch.sigmoid(block(signal))
loss = nn.functional.cross_entropy(head(signal), labels)
loss.backward()
""",
        cured="float(blocks[0].weight.grad.norm()) > 1e-3",
    ),
    Case(
        situation="twenty linear layers with weights drawn from a standard normal distribution",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
tower = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(20)])
for layer in tower:
    nn.init.normal_(layer.weight, std=1.0)
batch = torch.randn(4, 32)
output = tower(batch)
loss = output.mean()
""",
        kind="exploding",
        line=9,
        mentions=("tower",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
tower = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(20)])
for layer in tower:
    nn.init.normal_(layer.weight, std=32 ** -0.5)
batch = torch.randn(4, 32)
output = tower(batch)
loss = output.mean()
""",
        cured="float(tower[0].weight.grad.norm()) < 10",
    ),
    Case(
        situation="biases so negative that no ReLU unit is ever on",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
hidden_layer = nn.Linear(6, 16)
nn.init.constant_(hidden_layer.bias, -50.0)
readout = nn.Linear(16, 1)
samples, targets = torch.randn(32, 6), torch.randn(32, 1)
activation = torch.relu(hidden_layer(samples))
loss = nn.functional.mse_loss(readout(activation), targets)
""",
        kind="dead_relu",
        line=9,
        mentions=("16",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
hidden_layer = nn.Linear(6, 16)
nn.init.zeros_(hidden_layer.bias)
readout = nn.Linear(16, 1)
samples, targets = torch.randn(32, 6), torch.randn(32, 1)
activation = torch.relu(hidden_layer(samples))
loss = nn.functional.mse_loss(readout(activation), targets)
""",
        cured="float(hidden_layer.weight.grad.abs().sum()) > 0",
    ),
    Case(
        situation="one enormous step in an earlier cell has killed all ReLU units of the model",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(1)
net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
with torch.no_grad():
    net[0].bias -= 1000.0
inputs, wanted = torch.randn(20, 4), torch.randn(20, 1)
""",
        ),
        cell="""\
optimizer.zero_grad()
estimate = net(inputs)
loss = nn.functional.mse_loss(estimate, wanted)
loss.backward()
optimizer.step()
""",
        kind="dead_relu",
        line=3,
        mentions=("12", "net.1"),
        paste="manual",
        cure="""\
net[0].reset_parameters()
optimizer.zero_grad()
estimate = net(inputs)
loss = nn.functional.mse_loss(estimate, wanted)
loss.backward()
optimizer.step()
""",
        cured="float(net[0].weight.grad.abs().sum()) > 0",
    ),
    Case(
        situation="a gain that starts outside the range it is clamped to",
        cell="""\
import torch
gain = torch.tensor([5.0, 7.0], requires_grad=True)
audio = torch.tensor([0.3, -0.4])
limited = gain.clamp(0.0, 1.0)
loss = ((audio * limited - 0.1) ** 2).sum()
""",
        kind="zero_gradient",
        line=5,
        mentions=("gain",),
        paste="manual",
        cure="""\
import torch
gain = torch.tensor([0.5, 0.7], requires_grad=True)
audio = torch.tensor([0.3, -0.4])
limited = gain.clamp(0.0, 1.0)
loss = ((audio * limited - 0.1) ** 2).sum()
""",
        cured="bool((gain.grad != 0).all())",
    ),
    Case(
        situation="values are rounded to levels: the gradient of round is zero everywhere",
        cell="""\
import torch
torch.manual_seed(0)
latent = torch.randn(3, 4, requires_grad=True)
levels = torch.round(latent * 4)
loss = (levels / 4 - 0.3).pow(2).mean()
""",
        kind="zero_gradient",
        line=5,
        mentions=("latent",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
latent = torch.randn(3, 4, requires_grad=True)
scaled = latent * 4
levels = scaled + (torch.round(scaled) - scaled).detach()
loss = (levels / 4 - 0.3).pow(2).mean()
""",
        cured="float(latent.grad.abs().sum()) > 0",
    ),
    Case(
        situation="weights made binary with sign",
        cell="""\
import torch
torch.manual_seed(0)
weight = torch.randn(3, 2, requires_grad=True)
offset = torch.zeros(2, requires_grad=True)
data = torch.randn(5, 3)
binary = weight.sign()
loss = (data @ binary + offset).pow(2).mean()
loss.backward()
""",
        kind="zero_gradient",
        line=7,
        mentions=("weight",),
        paste="replace",
        cure="""\
import torch
torch.manual_seed(0)
weight = torch.randn(3, 2, requires_grad=True)
offset = torch.zeros(2, requires_grad=True)
data = torch.randn(5, 3)
binary = weight + (weight.sign() - weight).detach()
loss = (data @ binary + offset).pow(2).mean()
loss.backward()
""",
        cured="float(weight.grad.abs().sum()) > 0",
    ),
    Case(
        situation="both layers of a tanh network start at zero, so that each blocks the other's gradient",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
first = nn.Linear(4, 8, bias=False)
second = nn.Linear(8, 1, bias=False)
for layer in (first, second):
    nn.init.zeros_(layer.weight)
table, price = torch.randn(10, 4), torch.randn(10, 1)
guess = second(torch.tanh(first(table)))
loss = (guess - price).pow(2).mean()
loss.backward()
""",
        kind="zero_gradient",
        mentions=("first.weight", "second.weight"),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
first = nn.Linear(4, 8, bias=False)
second = nn.Linear(8, 1, bias=False)
table, price = torch.randn(10, 4), torch.randn(10, 1)
guess = second(torch.tanh(first(table)))
loss = (guess - price).pow(2).mean()
loss.backward()
""",
        cured="float(first.weight.grad.abs().sum()) > 0 and float(second.weight.grad.abs().sum()) > 0",
    ),
    Case(
        situation="raw pixel values up to 255 go straight into a tanh layer",
        cell="""\
import torch
torch.manual_seed(0)
pixels = torch.randint(100, 256, (6, 20)).float()
filters = torch.where(torch.arange(5) % 2 == 0, 1.0, -1.0).repeat(20, 1).requires_grad_()
squashed = torch.tanh(pixels @ filters)
loss = (squashed - 0.2).pow(2).mean()
""",
        kind="saturated",
        line=6,
        mentions=("squashed",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
pixels = torch.randint(100, 256, (6, 20)).float()
filters = torch.where(torch.arange(5) % 2 == 0, 1.0, -1.0).repeat(20, 1).requires_grad_()
pixels = (pixels - pixels.mean()) / pixels.std()
squashed = torch.tanh(pixels @ filters / 20 ** 0.5)
loss = (squashed - 0.2).pow(2).mean()
""",
        cured="float(filters.grad.norm()) > 1e-3",
    ),
    Case(
        situation="a sigmoid gate with pre-activations of thirty and more",
        cell="""\
import torch
torch.manual_seed(0)
signs = torch.tensor([1.0, -1.0]).repeat(4)
gate_logit = (signs * (30 + 5 * torch.rand(8))).requires_grad_()
content = torch.randn(8)
gate = torch.sigmoid(gate_logit)
loss = (gate * content - 0.5).pow(2).mean()
loss.backward()
""",
        kind="saturated",
        line=7,
        mentions=("gate",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
signs = torch.tensor([1.0, -1.0]).repeat(4)
gate_logit = (signs * torch.rand(8)).requires_grad_()
content = torch.randn(8)
gate = torch.sigmoid(gate_logit)
loss = (gate * content - 0.5).pow(2).mean()
loss.backward()
""",
        cured="float(gate_logit.grad.norm()) > 1e-3",
    ),
    Case(
        situation="attention scores that were not divided by the root of the width: the softmax is one-hot",
        cell="""\
import torch
torch.manual_seed(0)
width = 256
query = (8 * torch.randn(4, width)).requires_grad_()
key = torch.randn(6, width) * 4
value = torch.randn(6, 3)
scores = query @ key.T
attention = torch.softmax(scores, dim=-1)
loss = (attention @ value).pow(2).mean()
""",
        kind="saturated",
        line=9,
        mentions=("attention",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
width = 256
query = torch.randn(4, width).requires_grad_()
key = torch.randn(6, width)
value = torch.randn(6, 3)
scores = query @ key.T / width ** 0.5
attention = torch.softmax(scores, dim=-1)
loss = (attention @ value).pow(2).mean()
""",
        cured="float(query.grad.norm()) > 1e-4",
    ),
    Case(
        situation="the mileage of cars, in metres, is not scaled: its coefficient gets all of the gradient",
        cell="""\
import torch
torch.manual_seed(0)
metres = 1e8 * (1 + torch.rand(16))
age = torch.rand(16)
price = torch.randn(16) + 2
per_metre = torch.tensor(0.0, requires_grad=True)
per_year = torch.tensor(0.1, requires_grad=True)
intercept = torch.tensor(0.0, requires_grad=True)
offer = per_metre * metres + per_year * age + intercept
loss = (offer - price).pow(2).mean()
""",
        kind="dominating_gradient",
        mentions=("per_metre",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
metres = 1e8 * (1 + torch.rand(16))
age = torch.rand(16)
price = torch.randn(16) + 2
per_metre = torch.tensor(0.0, requires_grad=True)
per_year = torch.tensor(0.1, requires_grad=True)
intercept = torch.tensor(0.0, requires_grad=True)
offer = per_metre * (metres / 1e8) + per_year * age + intercept
loss = (offer - price).pow(2).mean()
""",
        cured="float(per_metre.grad.abs()) < 20 * float(intercept.grad.abs())",
    ),
    Case(
        situation="a penalty weighted with ten million on one parameter of a small model",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
regressor = nn.Linear(3, 1)
temperature = nn.Parameter(torch.tensor(2.0))
rows, answers = torch.randn(12, 3), torch.randn(12, 1)
fit = nn.functional.mse_loss(regressor(rows) / temperature, answers)
loss = fit + 1e7 * (temperature - 1) ** 2
loss.backward()
""",
        kind="dominating_gradient",
        mentions=("temperature",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
regressor = nn.Linear(3, 1)
temperature = nn.Parameter(torch.tensor(2.0))
rows, answers = torch.randn(12, 3), torch.randn(12, 1)
fit = nn.functional.mse_loss(regressor(rows) / temperature, answers)
loss = fit + 1e-1 * (temperature - 1) ** 2
loss.backward()
""",
        cured="float(temperature.grad.abs()) < 20 * float(regressor.weight.grad.norm())",
    ),
    Case(
        situation="bfloat16 weights near one and steps of a millionth: the update rounds away",
        cell="""\
import torch
torch.manual_seed(0)
theta = torch.ones(6, dtype=torch.bfloat16, requires_grad=True)
optimizer = torch.optim.SGD([theta], lr=1e-4)
start = theta.detach().clone()
examples = torch.rand(4, 6, dtype=torch.bfloat16)
loss = (examples @ theta).mean() * 0.01
loss.backward()
optimizer.step()
""",
        kind="below_precision",
        mentions=("theta",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
theta = torch.ones(6, dtype=torch.float32, requires_grad=True)
optimizer = torch.optim.SGD([theta], lr=1e-4)
start = theta.detach().clone()
examples = torch.rand(4, 6, dtype=torch.bfloat16)
with torch.autocast("cpu", dtype=torch.bfloat16):
    loss = (examples @ theta).mean() * 0.01
loss.backward()
optimizer.step()
""",
        cured="not torch.equal(theta, start)",
    ),
    Case(
        situation="a float16 layer trained with plain SGD, whose steps are a thousandth of what its weights can resolve",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
half_layer = nn.Linear(4, 2, bias=False).half()
nn.init.constant_(half_layer.weight, 0.75)
optimizer = torch.optim.SGD(half_layer.parameters(), lr=1e-5)
start = half_layer.weight.detach().clone()
frames = torch.rand(3, 4).half()
loss = half_layer(frames).mean() * 0.1
loss.backward()
optimizer.step()
""",
        kind="below_precision",
        mentions=("half_layer.weight",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
half_layer = nn.Linear(4, 2, bias=False)
nn.init.constant_(half_layer.weight, 0.75)
optimizer = torch.optim.SGD(half_layer.parameters(), lr=1e-5)
start = half_layer.weight.detach().clone()
frames = torch.rand(3, 4)
loss = half_layer(frames).mean() * 0.1
loss.backward()
optimizer.step()
""",
        cured="not torch.equal(half_layer.weight, start)",
    ),
    Case(
        situation="float32, but the loss is divided by a huge constant: steps of SGD disappear beside the weights",
        cell="""\
import torch
coefficients = torch.tensor([3.0, -2.0, 5.0], requires_grad=True)
optimizer = torch.optim.SGD([coefficients], lr=0.01)
start = coefficients.detach().clone()
design = torch.tensor([[1.0, 0.5, 0.2], [0.3, 1.0, 0.1]])
loss = (design @ coefficients).square().mean() / 1e9
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
        kind="below_precision",
        mentions=("coefficients",),
        paste="manual",
        cure="""\
import torch
coefficients = torch.tensor([3.0, -2.0, 5.0], requires_grad=True)
optimizer = torch.optim.SGD([coefficients], lr=0.01)
start = coefficients.detach().clone()
design = torch.tensor([[1.0, 0.5, 0.2], [0.3, 1.0, 0.1]])
loss = (design @ coefficients).square().mean()
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
        cured="not torch.equal(coefficients, start)",
    ),
    Case(
        situation="the gradients of a loss scaled by GradScaler are looked at before they are unscaled",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
classifier = nn.Linear(5, 3)
optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
clips, classes = torch.randn(6, 5), torch.randint(3, (6,))
loss = nn.functional.cross_entropy(classifier(clips), classes)
scaler.scale(loss).backward()
""",
        kind="scaled_loss",
        line=10,
        mentions=("65536",),
        paste="manual",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
classifier = nn.Linear(5, 3)
optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
clips, classes = torch.randn(6, 5), torch.randint(3, (6,))
loss = nn.functional.cross_entropy(classifier(clips), classes)
scaler.scale(loss).backward()
scaler.unscale_(optimizer)
""",
        cured="float(classifier.weight.grad.norm()) < 10",
    ),
    Case(
        situation="a loss multiplied by 2 ** 16 by hand, as for half precision",
        cell="""\
import torch
torch.manual_seed(0)
slope = torch.tensor(0.5, requires_grad=True)
hours, marks = torch.rand(10), torch.rand(10)
plain_loss = (slope * hours - marks).pow(2).mean()
loss = plain_loss * 2.0 ** 16
loss.backward()
""",
        kind="scaled_loss",
        line=7,
        mentions=("65536",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
slope = torch.tensor(0.5, requires_grad=True)
hours, marks = torch.rand(10), torch.rand(10)
plain_loss = (slope * hours - marks).pow(2).mean()
loss = plain_loss * 2.0 ** 16
loss.backward()
slope.grad /= 2.0 ** 16
""",
        cured="float(slope.grad.abs()) < 10",
    ),
)

_SETUP = """\
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs, targets = torch.randn(8, 3), torch.randn(8, 1)
"""

TRAPS = (
    Case(
        situation="an earlier cell already ran backward, so this cell's gradient is added to that one",
        before=(
            """\
import torch
slope = torch.tensor(1.0, requires_grad=True)
hours = torch.tensor([1.0, 2.0, 3.0])
loss = (slope * hours).sum()
loss.backward()
""",
        ),
        cell="""\
loss = (slope * hours).sum()
loss.backward()
""",
        kind="accumulated",
        line=3,
        mentions=("slope",),
        paste="above",
        cure="""\
slope.grad = None
loss = (slope * hours).sum()
loss.backward()
""",
        cured="float(slope.grad) == 6.0",
    ),
    Case(
        situation="a training step is run again in a new cell without optimizer.zero_grad()",
        before=(
            _SETUP,
            """\
loss = nn.functional.mse_loss(model(inputs), targets)
loss.backward()
""",
        ),
        cell="""\
loss = nn.functional.mse_loss(model(inputs), targets)
loss.backward()
""",
        kind="accumulated",
        line=3,
        mentions=("model",),
        paste="above",
        cure="""\
loss = nn.functional.mse_loss(model(inputs), targets)
optimizer.zero_grad()
loss.backward()
""",
        cured="torch.allclose(model.weight.grad, torch.autograd.grad(nn.functional.mse_loss(model(inputs), targets), model.weight)[0])",
    ),
    Case(
        situation="a loop of backward and step that never clears the gradients",
        cell="""\
import torch
height = torch.nn.Parameter(torch.tensor(4.0))
optimizer = torch.optim.SGD([height], lr=0.1)
for step in range(5):
    loss = height ** 2
    loss.backward()
    optimizer.step()
""",
        kind="accumulated",
        line=7,
        mentions=("height",),
        paste="above",
        cure="""\
import torch
height = torch.nn.Parameter(torch.tensor(4.0))
optimizer = torch.optim.SGD([height], lr=0.1)
for step in range(5):
    loss = height ** 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
        cured="abs(float(height) - 4 * 0.8 ** 5) < 1e-5",
    ),
    Case(
        situation="a loop of manual updates under no_grad that never clears the gradient",
        cell="""\
import torch
level = torch.tensor(4.0, requires_grad=True)
lr = 0.1
for step in range(5):
    loss = (level - 1) ** 2
    loss.backward()
    with torch.no_grad():
        level -= lr * level.grad
""",
        kind="accumulated",
        line=7,
        mentions=("level",),
        paste="above",
        cure="""\
import torch
level = torch.tensor(4.0, requires_grad=True)
lr = 0.1
for step in range(5):
    loss = (level - 1) ** 2
    level.grad = None
    loss.backward()
    with torch.no_grad():
        level -= lr * level.grad
""",
        cured="abs(float(level) - (1 + 3 * 0.8 ** 5)) < 1e-5",
    ),
    Case(
        situation="a hidden tensor of an earlier cell is used again after that cell's backward freed its graph",
        before=(
            """\
import torch
torch.manual_seed(0)
kernel = torch.randn(3, 4, requires_grad=True)
batch = torch.randn(5, 3)
hidden = torch.sigmoid(batch @ kernel)
loss = hidden.mean()
loss.backward()
kernel.grad = None
""",
        ),
        cell="""\
loss = hidden.square().mean()
loss.backward()
""",
        kind="second_backward",
        line=3,
        mentions=("hidden",),
        paste="manual",
        cure="""\
hidden = torch.sigmoid(batch @ kernel)
loss = hidden.square().mean()
loss.backward()
""",
        cured="kernel.grad is not None and float(kernel.grad.abs().sum()) > 0",
        raises="RuntimeError",
    ),
    Case(
        situation="the weight was made anew after the scores were computed with the old one",
        before=(
            """\
import torch
weight = torch.tensor(2.0, requires_grad=True)
doses = torch.tensor([1.0, 2.0, 3.0])
effects = doses * weight
""",
            """\
weight = torch.tensor(3.0, requires_grad=True)
""",
        ),
        cell="""\
loss = (effects - 1.0).pow(2).mean()
loss.backward()
""",
        kind="stale_graph",
        line=2,
        mentions=("effects", "weight"),
        paste="manual",
        cure="""\
effects = doses * weight
loss = (effects - 1.0).pow(2).mean()
loss.backward()
""",
        cured="weight.grad is not None",
    ),
    Case(
        situation="the encoder was made anew, but its codes are still those of the old one",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
photos = torch.randn(6, 4)
codes = torch.tanh(encoder(photos))
""",
            """\
encoder = nn.Linear(4, 2)
""",
        ),
        cell="""\
restored = decoder(codes)
loss = nn.functional.mse_loss(restored, photos)
""",
        kind="stale_graph",
        line=2,
        mentions=("codes", "encoder"),
        paste="manual",
        cure="""\
codes = torch.tanh(encoder(photos))
restored = decoder(codes)
loss = nn.functional.mse_loss(restored, photos)
""",
        cured="encoder.weight.grad is not None",
    ),
    Case(
        situation="the model was defined again, but the optimizer still holds the old one's parameters",
        before=(_SETUP, "model = nn.Linear(3, 1)\n"),
        cell="""\
first_weight = model.weight.detach().clone()
optimizer.zero_grad()
loss = nn.functional.mse_loss(model(inputs), targets)
loss.backward()
optimizer.step()
""",
        kind="optimizer_mismatch",
        line=6,
        mentions=("optimizer", "model"),
        paste="above",
        cure="""\
first_weight = model.weight.detach().clone()
optimizer.zero_grad()
loss = nn.functional.mse_loss(model(inputs), targets)
loss.backward()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.step()
""",
        cured="not torch.equal(model.weight, first_weight)",
    ),
    Case(
        situation="a deep copy of the policy is trained with the optimizer of the original",
        before=(
            """\
import copy
import torch
from torch import nn
torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
adam = torch.optim.Adam(policy.parameters(), lr=0.01)
observations, actions = torch.randn(6, 4), torch.randint(2, (6,))
""",
            """\
policy = copy.deepcopy(policy)
""",
        ),
        cell="""\
before_training = policy[0].weight.detach().clone()
for _ in range(3):
    loss = nn.functional.cross_entropy(policy(observations), actions)
    policy.zero_grad()
    loss.backward()
    adam.step()
""",
        kind="optimizer_mismatch",
        line=7,
        mentions=("adam", "policy"),
        paste="manual",
        cure="""\
before_training = policy[0].weight.detach().clone()
adam = torch.optim.Adam(policy.parameters(), lr=0.01)
for _ in range(3):
    loss = nn.functional.cross_entropy(policy(observations), actions)
    policy.zero_grad()
    loss.backward()
    adam.step()
""",
        cured="not torch.equal(policy[0].weight, before_training)",
    ),
    Case(
        situation="the head of a network was replaced after the optimizer was made",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 10)
    def forward(self, words):
        return self.head(torch.tanh(self.body(words)))
tagger = Tagger()
optimizer = torch.optim.SGD(tagger.parameters(), lr=0.1)
tagger.head = nn.Linear(6, 3)
words, tags = torch.randn(7, 4), torch.randint(3, (7,))
""",
        ),
        cell="""\
old_head = tagger.head.weight.detach().clone()
loss = nn.functional.cross_entropy(tagger(words), tags)
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
        kind="not_in_optimizer",
        line=6,
        mentions=("tagger.head", "optimizer"),
        paste="above",
        cure="""\
old_head = tagger.head.weight.detach().clone()
loss = nn.functional.cross_entropy(tagger(words), tags)
optimizer.zero_grad()
loss.backward()
optimizer.add_param_group({"params": tagger.head.parameters()})
optimizer.step()
""",
        cured="not torch.equal(tagger.head.weight, old_head)",
    ),
    Case(
        situation="a layer was appended to the list of layers after the optimizer was made, in the cell itself",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
stack = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
optimizer = torch.optim.SGD(stack.parameters(), lr=0.5)
stack.append(nn.Linear(5, 1))
points, heights = torch.randn(9, 3), torch.randn(9, 1)
last_before = stack[2].weight.detach().clone()
loss = nn.functional.mse_loss(stack(points), heights)
loss.backward()
optimizer.step()
""",
        kind="not_in_optimizer",
        line=12,
        mentions=("stack.2", "optimizer"),
        paste="above",
        cure="""\
import torch
from torch import nn
torch.manual_seed(0)
stack = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
stack.append(nn.Linear(5, 1))
optimizer = torch.optim.SGD(stack.parameters(), lr=0.5)
points, heights = torch.randn(9, 3), torch.randn(9, 1)
last_before = stack[2].weight.detach().clone()
loss = nn.functional.mse_loss(stack(points), heights)
loss.backward()
optimizer.step()
""",
        cured="not torch.equal(stack[2].weight, last_before)",
    ),
    Case(
        situation="training goes on after a validation cell that left the model with batch norm in eval mode",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
xs, ys = torch.randn(12, 4), torch.randn(12, 1)
""",
            """\
net.eval()
with torch.no_grad():
    validation_loss = nn.functional.mse_loss(net(xs), ys)
""",
        ),
        cell="""\
for epoch in range(2):
    optimizer.zero_grad()
    predicted = net(xs)
    loss = nn.functional.mse_loss(predicted, ys)
    loss.backward()
    optimizer.step()
""",
        kind="eval_mode",
        line=4,
        mentions=("net",),
        paste="above",
        cure="""\
net.train()
for epoch in range(2):
    optimizer.zero_grad()
    predicted = net(xs)
    loss = nn.functional.mse_loss(predicted, ys)
    loss.backward()
    optimizer.step()
""",
        cured="int(net[1].num_batches_tracked) > 0",
    ),
    Case(
        situation="a training step with a dropout model that is still in eval mode",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
drop_net = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 2))
optimizer = torch.optim.Adam(drop_net.parameters(), lr=1e-3)
emails, spam = torch.randn(10, 5), torch.randint(2, (10,))
drop_net.eval()
""",
        ),
        cell="""\
optimizer.zero_grad()
logits = drop_net(emails)
loss = nn.functional.cross_entropy(logits, spam)
loss.backward()
optimizer.step()
""",
        kind="eval_mode",
        line=3,
        mentions=("drop_net",),
        paste="above",
        cure="""\
optimizer.zero_grad()
drop_net.train()
logits = drop_net(emails)
loss = nn.functional.cross_entropy(logits, spam)
loss.backward()
optimizer.step()
""",
        cured="drop_net[2].training",
    ),
    Case(
        situation="a penalty on the scale is written below the backward call",
        cell="""\
import torch
torch.manual_seed(0)
mixing = torch.randn(3, requires_grad=True)
scale = torch.tensor(0.7, requires_grad=True)
observed = torch.randn(3)
loss = (mixing - observed).pow(2).sum()
loss.backward()
penalty = 0.1 * scale ** 2
total = loss + penalty
""",
        kind="after_backward",
        line=9,
        rows={"scale": "after_backward"},
        mentions=("scale", "line 8"),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
mixing = torch.randn(3, requires_grad=True)
scale = torch.tensor(0.7, requires_grad=True)
observed = torch.randn(3)
loss = (mixing - observed).pow(2).sum()
penalty = 0.1 * scale ** 2
total = loss + penalty
total.backward()
""",
        cured="scale.grad is not None",
    ),
)

ANOMALY = (
    Case(
        situation="anomaly mode stops at the square root of a speed that is zero",
        cell="""\
import torch
speed = torch.tensor([0.0, 4.0], requires_grad=True)
with torch.autograd.detect_anomaly():
    root = speed.sqrt()
    loss = (root * 0).sum()
    loss.backward()
""",
        kind="nan_gradient",
        line=5,
        mentions=("root = speed.sqrt()", "loss"),
        paste="replace",
        cured="bool(speed.grad.isfinite().all())",
        raises="RuntimeError",
    ),
)

SICK: tuple[Case, ...] = ANOMALY + NAN_GRADIENTS + NAN_VALUES + TRENDS + TRAPS


NEAR_MISSES: tuple[Healthy, ...] = (
    Healthy(
        situation="gradients gathered over four micro-batches on purpose",
        before=(_SETUP,),
        cell="""\
optimizer.zero_grad()
for part, wanted in zip(inputs.chunk(4), targets.chunk(4)):
    loss = nn.functional.mse_loss(model(part), wanted) / 4
    loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="two losses over one trunk, both backward before the step",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
trunk, actor, critic = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)
everything = [*trunk.parameters(), *actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(everything, lr=1e-3)
states, actions, returns = torch.randn(6, 4), torch.randint(2, (6,)), torch.randn(6, 1)
shared = torch.tanh(trunk(states))
policy_loss = nn.functional.cross_entropy(actor(shared), actions)
value_loss = nn.functional.mse_loss(critic(shared), returns)
optimizer.zero_grad()
policy_loss.backward(retain_graph=True)
value_loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="LoRA: B starts at zero, so A's gradient is zero in the first step",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
base = nn.Linear(6, 6)
base.requires_grad_(False)
lora_a = nn.Parameter(torch.randn(2, 6) * 0.1)
lora_b = nn.Parameter(torch.zeros(6, 2))
optimizer = torch.optim.AdamW([lora_a, lora_b], lr=1e-3)
tokens, wanted = torch.randn(5, 6), torch.randn(5, 6)
adapted = base(tokens) + tokens @ lora_a.T @ lora_b.T
loss = nn.functional.mse_loss(adapted, wanted)
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="a residual block whose last layer starts at zero",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
inner, outer, readout = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1)
nn.init.zeros_(outer.weight)
nn.init.zeros_(outer.bias)
stream = torch.randn(8, 5)
stream = stream + outer(torch.tanh(inner(stream)))
loss = readout(stream).pow(2).mean()
""",
    ),
    Healthy(
        situation="the discriminator's step of a GAN, with fake.detach()",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3))
discriminator = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
opt_g = torch.optim.Adam(generator.parameters(), lr=2e-4)
opt_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4)
real = torch.randn(6, 3)
""",
        ),
        cell="""\
fake = generator(torch.randn(6, 2))
on_real = discriminator(real)
on_fake = discriminator(fake.detach())
loss = nn.functional.softplus(-on_real).mean() + nn.functional.softplus(on_fake).mean()
opt_d.zero_grad()
loss.backward()
opt_d.step()
""",
    ),
    Healthy(
        situation="a DQN step with the target network under no_grad",
        before=(),
        cell="""\
import copy
import torch
from torch import nn
torch.manual_seed(0)
q_net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
target_net = copy.deepcopy(q_net)
optimizer = torch.optim.Adam(q_net.parameters(), lr=1e-3)
state, following = torch.randn(10, 4), torch.randn(10, 4)
action, reward = torch.randint(2, (10, 1)), torch.randn(10)
chosen = q_net(state).gather(1, action).squeeze(1)
with torch.no_grad():
    wanted = reward + 0.99 * target_net(following).max(dim=1).values
loss = nn.functional.smooth_l1_loss(chosen, wanted)
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="rounding with a straight-through estimator",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
latent = torch.randn(4, 3, requires_grad=True)
codes = latent + (latent.round() - latent).detach()
loss = (codes - 0.4).pow(2).mean()
""",
    ),
    Healthy(
        situation="dropout in train mode sets half of the units to zero",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
x, y = torch.randn(16, 6), torch.randn(16, 1)
loss = nn.functional.mse_loss(net(x), y)
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="ReLU with about half of its units off for each sample, and none off for all",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
wide = nn.Linear(8, 24)
narrow = nn.Linear(24, 3)
x, labels = torch.randn(64, 8), torch.randint(3, (64,))
active = torch.relu(wide(x))
loss = nn.functional.cross_entropy(narrow(active), labels)
loss.backward()
""",
    ),
    Healthy(
        situation="a saliency map of a model in eval mode, without any optimizer step",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
convnet = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, 3)
)
optimizer = torch.optim.SGD(convnet.parameters(), lr=0.1)
""",
        ),
        cell="""\
convnet.eval()
picture = torch.randn(1, 1, 8, 8, requires_grad=True)
score = convnet(picture)[0, 1]
score.backward()
saliency = picture.grad.abs()
""",
    ),
    Healthy(
        situation="a recurrent loop whose gradient decays mildly over ten steps",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
recurrent = (0.8 * torch.eye(6)).requires_grad_()
inward = (0.3 * torch.randn(4, 6)).requires_grad_()
state = torch.zeros(3, 6)
for observation in torch.randn(10, 3, 4):
    state = torch.tanh(state @ recurrent + observation @ inward)
loss = state.pow(2).mean()
""",
    ),
    Healthy(
        situation="norm of a zero row, std of constants, cdist of equal points and atan2(0, 0): PyTorch gives finite gradients",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], requires_grad=True)
lengths = rows.norm(dim=1)
spread = rows.std(dim=1)
gaps = torch.cdist(rows, rows)
heading = torch.atan2(rows[:, 1], rows[:, 0])
loss = lengths.sum() + spread.sum() + gaps.mean() + heading.sum()
""",
    ),
    Healthy(
        situation="log with a double where, so that no branch ever meets zero",
        before=(),
        cell="""\
import torch
counts = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
safe = torch.where(counts > 0, counts, torch.ones_like(counts))
logs = torch.where(counts > 0, safe.log(), torch.zeros_like(counts))
loss = (logs - 0.5).pow(2).sum()
""",
    ),
    Healthy(
        situation="attention under a causal mask of -inf, in which each query sees itself",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
q = torch.randn(5, 8, requires_grad=True)
k = torch.randn(5, 8, requires_grad=True)
v = torch.randn(5, 8, requires_grad=True)
later = torch.ones(5, 5).triu(1).bool()
scores = (q @ k.T / 8 ** 0.5).masked_fill(later, float("-inf"))
attention = scores.softmax(dim=-1)
loss = (attention @ v).pow(2).mean()
""",
    ),
    Healthy(
        situation="a PPO ratio of which some samples are clipped",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
log_prob = torch.linspace(-0.6, 0.6, 8).requires_grad_()
old_log_prob = torch.zeros(8)
advantage = torch.tensor([1.0, -1.0] * 4)
ratio = (log_prob - old_log_prob).exp()
clipped = ratio.clamp(0.8, 1.2)
loss = -torch.min(ratio * advantage, clipped * advantage).mean()
""",
    ),
    Healthy(
        situation="a hinge loss that most of the samples already satisfy",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
normal = torch.tensor([1.0, -1.0], requires_grad=True)
bias = torch.tensor(0.0, requires_grad=True)
points = torch.tensor([[3.0, -1.0], [2.0, -2.0], [-3.0, 1.0], [0.3, 0.1]])
sides = torch.tensor([1.0, 1.0, -1.0, 1.0])
margins = sides * (points @ normal + bias)
loss = torch.clamp(1 - margins, min=0).mean()
""",
    ),
    Healthy(
        situation="fine-tuning of the head alone, over a frozen backbone in eval mode",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
backbone.requires_grad_(False)
backbone.eval()
head = nn.Linear(8, 2)
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
x, y = torch.randn(10, 4), torch.randint(2, (10,))
loss = nn.functional.cross_entropy(head(backbone(x)), y)
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="an encoder and a decoder with an optimizer each",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
opt_encoder = torch.optim.Adam(encoder.parameters(), lr=1e-3)
opt_decoder = torch.optim.Adam(decoder.parameters(), lr=1e-3)
x = torch.randn(7, 6)
loss = nn.functional.mse_loss(decoder(encoder(x)), x)
for opt in (opt_encoder, opt_decoder):
    opt.zero_grad()
loss.backward()
for opt in (opt_encoder, opt_decoder):
    opt.step()
""",
    ),
    Healthy(
        situation="small gradients, but Adam rescales them, so that the update is not lost",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
theta = torch.ones(5, requires_grad=True)
optimizer = torch.optim.Adam([theta], lr=1e-2, eps=1e-20)
x = torch.rand(6, 5)
loss = (x @ theta).pow(2).mean() * 1e-9
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="bfloat16 autocast with float32 weights",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
layer = nn.Linear(8, 4)
optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
x, y = torch.randn(6, 8), torch.randint(4, (6,))
with torch.autocast("cpu", dtype=torch.bfloat16):
    logits = layer(x)
loss = nn.functional.cross_entropy(logits.float(), y)
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="features of a frozen model are cached in an earlier cell, and that model was made anew since",
        before=(
            """\
import torch
from torch import nn
torch.manual_seed(0)
extractor = nn.Linear(4, 3)
with torch.no_grad():
    cached = torch.tanh(extractor(torch.randn(9, 4)))
extractor = nn.Linear(4, 3)
""",
        ),
        cell="""\
probe = nn.Linear(3, 1)
loss = (probe(cached) - 1.0).pow(2).mean()
loss.backward()
""",
    ),
    Healthy(
        situation="an embedding of which the batch uses a few rows, with a padding index",
        before=(),
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
table = nn.Embedding(50, 6, padding_idx=0)
score = nn.Linear(6, 1)
ids = torch.tensor([[4, 9, 0, 0], [7, 4, 2, 0]])
pooled = table(ids).sum(dim=1) / (ids != 0).sum(dim=1, keepdim=True)
loss = score(pooled).pow(2).mean()
""",
    ),
    Healthy(
        situation="a gate close to open in some units (sigmoid of 6), as LSTM forget biases make it",
        before=(),
        cell="""\
import torch
torch.manual_seed(0)
gate_logit = torch.tensor([-1.0, 0.5, 2.0, 6.0], requires_grad=True)
content = torch.randn(4)
kept = torch.sigmoid(gate_logit) * content
loss = (kept - 0.5).pow(2).sum()
""",
    ),
    Healthy(
        situation="a training loop that clears its gradients at the end of each step",
        before=(_SETUP,),
        cell="""\
for step in range(4):
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
""",
    ),
)
