"""Good, idiomatic PyTorch, as people write it in notebooks. No finding may come of it."""

from __future__ import annotations

from corpus.cases import Healthy

HEALTHY: tuple[Healthy, ...] = (
    Healthy(
        situation="A character MLP by hand, trained through p.grad = None and p.data",
        before=(
            """\
import torch
import torch.nn.functional as F

names = ["ada", "alan", "barbara", "claude", "donald", "edsger", "grace", "ken", "lynn", "margaret"]
chars = ["."] + sorted(set("".join(names)))
stoi = {c: i for i, c in enumerate(chars)}
block_size = 3
X, Y = [], []
for name in names:
    context = [0] * block_size
    for c in name + ".":
        X.append(context)
        Y.append(stoi[c])
        context = context[1:] + [stoi[c]]
X, Y = torch.tensor(X), torch.tensor(Y)
""",
        ),
        cell="""\
g = torch.Generator().manual_seed(42)
n_embd, n_hidden, vocab_size = 6, 32, len(chars)
C = torch.randn((vocab_size, n_embd), generator=g)
W1 = torch.randn((block_size * n_embd, n_hidden), generator=g) * (5 / 3) / (block_size * n_embd) ** 0.5
b1 = torch.randn(n_hidden, generator=g) * 0.01
W2 = torch.randn((n_hidden, vocab_size), generator=g) * 0.1
b2 = torch.zeros(vocab_size)
parameters = [C, W1, b1, W2, b2]
for p in parameters:
    p.requires_grad = True

lr = 0.1
lossi = []
for step in range(12):
    ix = torch.randint(0, X.shape[0], (32,), generator=g)
    emb = C[X[ix]]
    h = torch.tanh(emb.view(emb.shape[0], -1) @ W1 + b1)
    logits = h @ W2 + b2
    loss = F.cross_entropy(logits, Y[ix])
    for p in parameters:
        p.grad = None
    loss.backward()
    for p in parameters:
        p.data += -lr * p.grad
    lossi.append(loss.log10().item())
""",
    ),
    Healthy(
        situation="An nn.Sequential classifier with accuracy, confusion counts and numpy copies for plots",
        cell="""\
import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
points = torch.randn(96, 2)
labels = (points[:, 0] * points[:, 1] > 0).long()

model = nn.Sequential(
    nn.Linear(2, 24),
    nn.ReLU(),
    nn.Linear(24, 24),
    nn.ReLU(),
    nn.Linear(24, 2),
)
criterion = nn.CrossEntropyLoss()

logits = model(points)
loss = criterion(logits, labels)

history = {"loss": [loss.item()]}
predictions = logits.argmax(dim=1)
accuracy = (predictions == labels).float().mean().item()
history["accuracy"] = [accuracy]
confusion = torch.zeros(2, 2, dtype=torch.long)
for actual, predicted in zip(labels.tolist(), predictions.tolist()):
    confusion[actual, predicted] += 1
probabilities = logits.detach().softmax(dim=1).numpy()
heights, edges = np.histogram(probabilities[:, 1], bins=10, range=(0.0, 1.0))
first_weights = model[0].weight.detach().cpu().numpy().copy()
""",
    ),
    Healthy(
        situation="A small CNN with batch norm, biases left at their default",
        cell="""\
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(1)

class SmallCNN(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16 * 3 * 3, num_classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        return self.fc(torch.flatten(x, 1))

net = SmallCNN()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
images = torch.rand(16, 1, 12, 12)
targets = torch.randint(0, 4, (16,))

net.train()
optimizer.zero_grad()
loss = F.cross_entropy(net(images), targets)
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="Residual blocks with inplace ReLU whose last batch norm starts at zero",
        cell="""\
import torch
from torch import nn

torch.manual_seed(2)

class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(c_out),
            )
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)

resnet = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(inplace=True),
    BasicBlock(8, 8),
    BasicBlock(8, 16, stride=2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 5),
)
batch, classes = torch.randn(8, 3, 12, 12), torch.randint(0, 5, (8,))
loss = nn.functional.cross_entropy(resnet(batch), classes)
""",
    ),
    Healthy(
        situation="A vanilla RNN by hand with a loss at every time step",
        cell="""\
import torch
import torch.nn.functional as F

torch.manual_seed(3)
text = "to be or not to be"
vocab = sorted(set(text))
ids = torch.tensor([vocab.index(c) for c in text])
V, H = len(vocab), 20

Wxh = (torch.randn(V, H) * 0.3).requires_grad_()
Whh = (torch.randn(H, H) / H ** 0.5).requires_grad_()
bh = torch.zeros(H, requires_grad=True)
Why = (torch.randn(H, V) * 0.3).requires_grad_()
by = torch.zeros(V, requires_grad=True)

h = torch.zeros(H)
loss = 0.0
for t in range(len(ids) - 1):
    x = F.one_hot(ids[t], V).float()
    h = torch.tanh(x @ Wxh + h @ Whh + bh)
    y = h @ Why + by
    loss = loss + F.cross_entropy(y.unsqueeze(0), ids[t + 1].unsqueeze(0))
loss = loss / (len(ids) - 1)
""",
    ),
    Healthy(
        situation="An nn.LSTM forecaster trained by truncated backpropagation with a detached state",
        cell="""\
import torch
from torch import nn

torch.manual_seed(4)
time = torch.linspace(0, 12, 81)
series = torch.sin(time) + 0.3 * torch.sin(3 * time)
inputs = series[:-1].view(1, -1, 1)
targets = series[1:].view(1, -1, 1)

lstm = nn.LSTM(input_size=1, hidden_size=16, batch_first=True)
readout = nn.Linear(16, 1)
optimizer = torch.optim.Adam([*lstm.parameters(), *readout.parameters()], lr=0.01)

state = None
for start in range(0, 80, 20):
    chunk = inputs[:, start:start + 20]
    target = targets[:, start:start + 20]
    if state is not None:
        state = tuple(s.detach() for s in state)
    output, state = lstm(chunk, state)
    loss = nn.functional.mse_loss(readout(output), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="A bidirectional nn.GRU over packed sentences of different lengths",
        cell="""\
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

torch.manual_seed(5)

class SentimentGRU(nn.Module):
    def __init__(self, vocab_size, emb_dim=12, hidden=16):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, emb_dim, padding_idx=0)
        self.gru = nn.GRU(emb_dim, hidden, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, 1)

    def forward(self, tokens, lengths):
        embedded = self.embedding(tokens)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, hidden = self.gru(packed)
        hidden = torch.cat([hidden[0], hidden[1]], dim=-1)
        return self.classifier(hidden).squeeze(-1)

lengths = torch.tensor([5, 9, 3, 7, 6, 4])
sentences = [torch.randint(1, 30, (n,)) for n in lengths.tolist()]
tokens = pad_sequence(sentences, batch_first=True)
sentiment = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])

model = SentimentGRU(30)
loss = nn.BCEWithLogitsLoss()(model(tokens, lengths), sentiment)
""",
    ),
    Healthy(
        situation="A TransformerEncoder classifier with padding mask and masked mean pooling",
        cell="""\
import torch
from torch import nn

torch.manual_seed(6)

class Classifier(nn.Module):
    def __init__(self, vocab_size=40, d_model=32, max_len=16, num_classes=3):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Parameter(torch.randn(1, max_len, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, ids):
        padding = ids == 0
        x = self.tokens(ids) + self.positions[:, :ids.size(1)]
        x = self.encoder(x, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1).float()
        pooled = (x * keep).sum(1) / keep.sum(1)
        return self.head(pooled)

ids = torch.randint(1, 40, (8, 10))
for row, n in enumerate([10, 8, 6, 10, 5, 7, 9, 4]):
    ids[row, n:] = 0
labels = torch.randint(0, 3, (8,))

model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
model.train()
loss = nn.functional.cross_entropy(model(ids), labels)
optimizer.zero_grad(set_to_none=True)
loss.backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
""",
    ),
    Healthy(
        situation="A tiny GPT with a -inf causal mask and tied input and output embeddings",
        cell="""\
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(7)

class Block(nn.Module):
    def __init__(self, d, heads, T):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.proj = nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))

    def attend(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        wei = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        out = (wei @ v).transpose(1, 2).reshape(B, T, D)
        return self.proj(out)

    def forward(self, x):
        x = x + self.attend(self.ln1(x))
        return x + self.mlp(self.ln2(x))

class TinyGPT(nn.Module):
    def __init__(self, vocab=27, d=32, heads=4, layers=2, T=12):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(T, d)
        self.blocks = nn.ModuleList([Block(d, heads, T) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.1)
        nn.init.normal_(self.wpe.weight, std=0.1)

    def forward(self, idx, targets=None):
        pos = torch.arange(idx.size(1))
        x = self.wte(idx) + self.wpe(pos)
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

gpt = TinyGPT()
data = torch.randint(0, 27, (4, 13))
logits, loss = gpt(data[:, :-1], data[:, 1:])
""",
    ),
    Healthy(
        situation="A variational autoencoder with the reparameterisation trick",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(8)

class VAE(nn.Module):
    def __init__(self, n_in=36, n_hidden=32, n_latent=4):
        super().__init__()
        self.encoder = nn.Linear(n_in, n_hidden)
        self.mu = nn.Linear(n_hidden, n_latent)
        self.logvar = nn.Linear(n_hidden, n_latent)
        self.decoder = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_in))

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def forward(self, x):
        h = F.relu(self.encoder(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = self.reparameterize(mu, logvar)
        return torch.sigmoid(self.decoder(z)), mu, logvar

x = (torch.rand(16, 36) > 0.6).float()
vae = VAE()
recon, mu, logvar = vae(x)
bce = F.binary_cross_entropy(recon, x, reduction="sum") / x.size(0)
kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / x.size(0)
loss = bce + kld
""",
    ),
    Healthy(
        situation="A GAN trained for three iterations, discriminator and generator in turn",
        before=(
            """\
import torch
from torch import nn

torch.manual_seed(9)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
opt_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
opt_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
""",
        ),
        cell="""\
d_losses, g_losses = [], []
for iteration in range(3):
    angle = 6.2832 * torch.rand(32)
    real = torch.stack([angle.cos(), angle.sin()], dim=1)
    ones, zeros = torch.ones(32, 1), torch.zeros(32, 1)

    # discriminator
    fake = generator(torch.randn(32, 4))
    opt_d.zero_grad()
    d_loss = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
    d_loss.backward()
    opt_d.step()

    # generator
    opt_g.zero_grad()
    g_loss = bce(discriminator(fake), ones)
    g_loss.backward()
    opt_g.step()

    d_losses.append(d_loss.item())
    g_losses.append(g_loss.item())
""",
    ),
    Healthy(
        situation="Only the discriminator's step of a GAN, the generator's images detached",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(10)
latent_dim = 8
G = nn.Sequential(
    nn.Linear(latent_dim, 32), nn.BatchNorm1d(32), nn.ReLU(),
    nn.Linear(32, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)),
)
D = nn.Sequential(
    nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
    nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
    nn.Flatten(), nn.Linear(64, 1),
)
optimizer_D = torch.optim.Adam(D.parameters(), lr=2e-4)

real_images = torch.rand(12, 1, 8, 8) * 2 - 1
noise = torch.randn(12, latent_dim)
fake_images = G(noise).detach()

optimizer_D.zero_grad()
real_score = D(real_images)
fake_score = D(fake_images)
real_loss = F.binary_cross_entropy_with_logits(real_score, torch.full_like(real_score, 0.9))
fake_loss = F.binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score))
loss = (real_loss + fake_loss) / 2
loss.backward()
optimizer_D.step()
""",
    ),
    Healthy(
        situation="A WGAN critic with gradient penalty, then one generator step",
        cell="""\
import torch
from torch import nn

torch.manual_seed(11)
G = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 2))
critic = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
opt_critic = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
opt_G = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.0, 0.9))

def gradient_penalty(critic, real, fake):
    alpha = torch.rand(real.size(0), 1)
    mixed = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    scores = critic(mixed)
    grad = torch.autograd.grad(
        outputs=scores,
        inputs=mixed,
        grad_outputs=torch.ones_like(scores),
        create_graph=True,
        retain_graph=True,
    )[0]
    return ((grad.norm(2, dim=1) - 1) ** 2).mean()

for _ in range(2):
    real = torch.randn(32, 2) * 0.5 + torch.tensor([2.0, -1.0])
    fake = G(torch.randn(32, 3)).detach()
    critic_loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)
    opt_critic.zero_grad()
    critic_loss.backward()
    opt_critic.step()

opt_G.zero_grad()
g_loss = -critic(G(torch.randn(32, 3))).mean()
g_loss.backward()
opt_G.step()
""",
    ),
    Healthy(
        situation="A recommender with a dense embedding, an EmbeddingBag and a sparse embedding with padding_idx",
        cell="""\
import torch
from torch import nn

torch.manual_seed(12)

class Recommender(nn.Module):
    def __init__(self, n_users=12, n_items=50, n_tags=20, dim=8):
        super().__init__()
        self.user = nn.Embedding(n_users, dim)
        self.tags = nn.EmbeddingBag(n_tags, dim, mode="mean")
        self.items = nn.Embedding(n_items, dim, padding_idx=0, sparse=True)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, user, tags, offsets, basket):
        query = self.user(user) + self.tags(tags, offsets)
        history = self.items(basket).sum(dim=1)
        return (query * history).sum(-1) / query.size(-1) ** 0.5 + self.bias

recommender = Recommender()
dense = torch.optim.Adam([p for n, p in recommender.named_parameters() if n != "items.weight"], lr=0.01)
sparse = torch.optim.SparseAdam([recommender.items.weight], lr=0.01)

user = torch.tensor([0, 3, 5, 7])
tags = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
offsets = torch.tensor([0, 2, 5, 7])
basket = torch.tensor([[4, 7, 0], [8, 0, 0], [1, 2, 3], [9, 4, 0]])
clicked = torch.tensor([1.0, 0.0, 1.0, 0.0])

loss = nn.functional.binary_cross_entropy_with_logits(recommender(user, tags, offsets, basket), clicked)
dense.zero_grad()
sparse.zero_grad()
loss.backward()
dense.step()
sparse.step()
""",
    ),
    Healthy(
        situation="A custom autograd.Function and a straight-through rounding of the weights",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(13)

class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, beta):
        ctx.save_for_backward(x, beta)
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def backward(ctx, grad_output):
        x, beta = ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        grad_x = grad_output * (s + beta * x * s * (1 - s))
        grad_beta = (grad_output * x * x * s * (1 - s)).sum()
        return grad_x, grad_beta

class QuantizedLinear(nn.Linear):
    def forward(self, x):
        scale = self.weight.detach().abs().max() / 7
        rounded = torch.round(self.weight / scale) * scale
        weight = self.weight + (rounded - self.weight).detach()
        return F.linear(x, weight, self.bias)

hidden, output = QuantizedLinear(6, 16), QuantizedLinear(16, 1)
beta = nn.Parameter(torch.tensor(1.0))
x = torch.randn(40, 6)
y = x[:, :1] * x[:, 1:2] + 0.5 * x[:, 2:3]

h = SwishFunction.apply(hidden(x), beta)
loss = F.mse_loss(output(h), y)
""",
    ),
    Healthy(
        situation="A VQ-VAE step with codebook loss, commitment loss and copied gradients",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(14)

class VectorQuantizer(nn.Module):
    def __init__(self, num_codes, dim, beta=0.25):
        super().__init__()
        self.codebook = nn.Embedding(num_codes, dim)
        self.codebook.weight.data.uniform_(-0.5, 0.5)
        self.beta = beta

    def forward(self, z):
        distances = torch.cdist(z, self.codebook.weight)
        indices = distances.argmin(dim=1)
        quantized = self.codebook(indices)
        codebook_loss = F.mse_loss(quantized, z.detach())
        commitment_loss = F.mse_loss(z, quantized.detach())
        quantized = z + (quantized - z).detach()
        return quantized, codebook_loss + self.beta * commitment_loss, indices

encoder = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
quantizer = VectorQuantizer(8, 4)
decoder = nn.Sequential(nn.Linear(4, 24), nn.SiLU(), nn.Linear(24, 10))

x = torch.randn(48, 10)
z_e = encoder(x)
z_q, vq_loss, codes = quantizer(z_e)
x_hat = decoder(z_q)
loss = F.mse_loss(x_hat, x) + vq_loss
usage = torch.bincount(codes, minlength=8).float() / codes.numel()
""",
    ),
    Healthy(
        situation="A MAML outer step through inner updates taken with create_graph",
        cell="""\
import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(15)
net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
meta_optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
inner_lr = 0.05

def sample_task():
    amplitude, phase = 0.5 + 2 * torch.rand(()), 3 * torch.rand(())
    def draw(n):
        x = 6 * torch.rand(n, 1) - 3
        return x, amplitude * torch.sin(x + phase)
    return draw(10), draw(10)

meta_optimizer.zero_grad()
loss = 0.0
for _ in range(3):
    (x_support, y_support), (x_query, y_query) = sample_task()
    fast = dict(net.named_parameters())
    for _ in range(2):
        inner_loss = nn.functional.mse_loss(functional_call(net, fast, (x_support,)), y_support)
        grads = torch.autograd.grad(inner_loss, list(fast.values()), create_graph=True)
        fast = {name: p - inner_lr * g for (name, p), g in zip(fast.items(), grads)}
    loss = loss + nn.functional.mse_loss(functional_call(net, fast, (x_query,)), y_query)
loss = loss / 3
loss.backward()
meta_optimizer.step()
""",
    ),
    Healthy(
        situation="A Hessian-vector product by double backward, checked against torch.func",
        cell="""\
import torch
import torch.nn.functional as F

torch.manual_seed(16)
features = torch.randn(50, 5)
labels = (features @ torch.randn(5) > 0).float()

def objective(weights):
    return F.binary_cross_entropy_with_logits(features @ weights, labels) + 0.05 * weights.square().sum()

w = (0.1 * torch.randn(5)).requires_grad_()
v = torch.randn(5)

value = objective(w)
grad_w, = torch.autograd.grad(value, w, create_graph=True)
(grad_w @ v).backward()
hvp = w.grad.clone()

point = w.detach()
same_grad = torch.func.grad(objective)(point)
same_hvp = torch.func.grad(lambda p: torch.func.grad(objective)(p) @ v)(point)
per_sample = torch.func.vmap(
    torch.func.grad(lambda wt, f, t: F.binary_cross_entropy_with_logits(f @ wt, t)), in_dims=(None, 0, 0)
)(point, features, labels)
assert torch.allclose(hvp, same_hvp, atol=1e-5) and torch.allclose(grad_w.detach(), same_grad, atol=1e-5)
""",
    ),
    Healthy(
        situation="A physics-informed network for the harmonic oscillator, derivatives by autograd.grad",
        cell="""\
import torch
from torch import nn

torch.manual_seed(17)
pinn = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
optimizer = torch.optim.Adam(pinn.parameters(), lr=1e-3)

def derivative(u, t):
    return torch.autograd.grad(u, t, grad_outputs=torch.ones_like(u), create_graph=True)[0]

for epoch in range(4):
    t = (2 * torch.rand(40, 1)).requires_grad_(True)
    u = pinn(t)
    u_t = derivative(u, t)
    u_tt = derivative(u_t, t)
    residual = u_tt + 4 * u
    physics_loss = residual.pow(2).mean()

    t0 = torch.zeros(1, 1, requires_grad=True)
    u0 = pinn(t0)
    boundary_loss = (u0 - 1).pow(2).mean() + derivative(u0, t0).pow(2).mean()

    loss = physics_loss + boundary_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="REINFORCE with sampled actions, log_prob and normalised returns",
        cell="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(18)
policy = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)

position, goal = torch.zeros(2), torch.tensor([1.0, 0.5])
moves = torch.tensor([[0.2, 0.0], [0.0, 0.2], [-0.1, -0.1]])
log_probs, rewards = [], []
for step in range(12):
    dist = Categorical(logits=policy(position))
    action = dist.sample()
    log_probs.append(dist.log_prob(action))
    position = position + moves[action.item()]
    rewards.append(-(goal - position).norm().item())

gamma, running, returns = 0.95, 0.0, []
for r in reversed(rewards):
    running = r + gamma * running
    returns.insert(0, running)
returns = torch.tensor(returns)
returns = (returns - returns.mean()) / (returns.std() + 1e-8)

loss = -(torch.stack(log_probs) * returns).sum()
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="A DQN update whose target network is only run under no_grad",
        before=(
            """\
import torch
from torch import nn

torch.manual_seed(19)

def make_q_net():
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

policy_net, target_net = make_q_net(), make_q_net()
target_net.load_state_dict(policy_net.state_dict())
optimizer = torch.optim.AdamW(policy_net.parameters(), lr=1e-3)
""",
        ),
        cell="""\
gamma, tau = 0.99, 0.005
states, next_states = torch.randn(32, 4), torch.randn(32, 4)
actions = torch.randint(0, 2, (32, 1))
rewards = torch.rand(32)
done = (torch.rand(32) < 0.1).float()

q_values = policy_net(states).gather(1, actions).squeeze(1)
with torch.no_grad():
    next_q = target_net(next_states).max(dim=1).values
    expected = rewards + gamma * (1 - done) * next_q

loss = nn.SmoothL1Loss()(q_values, expected)
optimizer.zero_grad()
loss.backward()
nn.utils.clip_grad_value_(policy_net.parameters(), 100)
optimizer.step()

target_state = target_net.state_dict()
for key, value in policy_net.state_dict().items():
    target_state[key] = tau * value + (1 - tau) * target_state[key]
target_net.load_state_dict(target_state)
""",
    ),
    Healthy(
        situation="A mean teacher kept as an exponential moving average of the student",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(20)
student = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
teacher = copy.deepcopy(student)
for p in teacher.parameters():
    p.requires_grad_(False)
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

@torch.no_grad()
def update_teacher(student, teacher, decay=0.99):
    for s, t in zip(student.parameters(), teacher.parameters()):
        t.mul_(decay).add_(s, alpha=1 - decay)

labelled, targets = torch.randn(16, 6), torch.randint(0, 3, (16,))
for step in range(4):
    unlabelled = torch.randn(32, 6)
    supervised = F.cross_entropy(student(labelled), targets)
    with torch.no_grad():
        teacher_probs = teacher(unlabelled + 0.1 * torch.randn_like(unlabelled)).softmax(dim=-1)
    student_probs = student(unlabelled + 0.1 * torch.randn_like(unlabelled)).softmax(dim=-1)
    consistency = F.mse_loss(student_probs, teacher_probs)
    loss = supervised + 2.0 * consistency

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update_teacher(student, teacher)
""",
    ),
    Healthy(
        situation="SimSiam with the stop-gradient on both projections",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(21)

class SimSiam(nn.Module):
    def __init__(self, n_in=12, dim=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(n_in, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, dim),
        )

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return p1, p2, z1.detach(), z2.detach()

samples = torch.randn(32, 12)
view1 = samples + 0.2 * torch.randn_like(samples)
view2 = samples + 0.2 * torch.randn_like(samples)

model = SimSiam()
p1, p2, z1, z2 = model(view1, view2)
loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) * 0.5
""",
    ),
    Healthy(
        situation="Contrastive learning with the InfoNCE loss over two views",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(22)
encoder = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16))
projector = nn.Sequential(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
optimizer = torch.optim.Adam(list(encoder.parameters()) + list(projector.parameters()), lr=1e-3)

def info_nce(a, b, temperature=0.2):
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    similarity = a @ b.t() / temperature
    positives = torch.arange(a.size(0))
    return (F.cross_entropy(similarity, positives) + F.cross_entropy(similarity.t(), positives)) / 2

anchors = torch.randn(24, 10)
first = projector(encoder(anchors + 0.1 * torch.randn(24, 10)))
second = projector(encoder(anchors * (torch.rand(24, 10) > 0.1)))
loss = info_nce(first, second)

optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="Knowledge distillation from a frozen teacher in eval mode",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(23)
teacher = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4))
student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
teacher.eval()
for param in teacher.parameters():
    param.requires_grad = False

optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
inputs, labels = torch.randn(32, 8), torch.randint(0, 4, (32,))
T, alpha = 4.0, 0.7

student.train()
with torch.no_grad():
    teacher_logits = teacher(inputs)
student_logits = student(inputs)
soft = F.kl_div(
    F.log_softmax(student_logits / T, dim=1),
    F.softmax(teacher_logits / T, dim=1),
    reduction="batchmean",
) * T * T
hard = F.cross_entropy(student_logits, labels)
loss = alpha * soft + (1 - alpha) * hard

optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="Transfer learning: a frozen backbone with its batch norm in eval, a new head",
        before=(
            """\
import torch
from torch import nn

torch.manual_seed(24)
backbone = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(),
)
backbone(torch.rand(32, 3, 10, 10))   # "pre-training": gives batch norm its statistics
""",
        ),
        cell="""\
for param in backbone.parameters():
    param.requires_grad = False

model = nn.Sequential(backbone, nn.Linear(16, 3))
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.01, momentum=0.9)
criterion = nn.CrossEntropyLoss()
photos, species = torch.rand(12, 3, 10, 10), torch.randint(0, 3, (12,))

model.train()
backbone.eval()
running_loss, running_corrects = 0.0, 0
for epoch in range(3):
    optimizer.zero_grad()
    outputs = model(photos)
    _, preds = torch.max(outputs, 1)
    loss = criterion(outputs, species)
    loss.backward()
    optimizer.step()
    running_loss += loss.item() * photos.size(0)
    running_corrects += torch.sum(preds == species.data).item()
""",
    ),
    Healthy(
        situation="Gradients accumulated over four micro-batches under bfloat16 autocast",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(25)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 5))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
batch, labels = torch.randn(64, 16), torch.randint(0, 5, (64,))
accumulation_steps = 4

optimizer.zero_grad(set_to_none=True)
total = 0.0
for micro_x, micro_y in zip(batch.chunk(accumulation_steps), labels.chunk(accumulation_steps)):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(micro_x)
        loss = F.cross_entropy(logits, micro_y)
    loss = loss / accumulation_steps
    loss.backward()
    total += loss.item()
optimizer.step()
""",
    ),
    Healthy(
        situation="Twenty Adam steps over mini-batches with dropout in train mode",
        cell="""\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(26)
X = torch.randn(80, 7)
y = torch.sin(X[:, :1]) + 0.5 * X[:, 1:2] ** 2
loader = DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True)

model = nn.Sequential(
    nn.Linear(7, 32), nn.ReLU(), nn.Dropout(0.2),
    nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.2),
    nn.Linear(32, 1),
)
loss_fn = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

model.train()
losses = []
for epoch in range(4):
    for xb, yb in loader:
        pred = model(xb)
        loss = loss_fn(pred, yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
""",
    ),
    Healthy(
        situation="SGD with momentum, gradient clipping and a scheduler, then validation under no_grad",
        before=(
            """\
import torch
from torch import nn

torch.manual_seed(27)
X_all = torch.randn(120, 5)
y_all = (X_all.sum(dim=1) > 0).long()
X_train, y_train, X_val, y_val = X_all[:90], y_all[:90], X_all[90:], y_all[90:]
clf = nn.Sequential(nn.Linear(5, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 2))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(clf.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
""",
            """\
# a first warm-up step
optimizer.zero_grad()
criterion(clf(X_train), y_train).backward()
optimizer.step()
""",
        ),
        cell="""\
for epoch in range(6):
    clf.train()
    for start in range(0, len(X_train), 30):
        xb, yb = X_train[start:start + 30], y_train[start:start + 30]
        optimizer.zero_grad()
        loss = criterion(clf(xb), yb)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(clf.parameters(), max_norm=1.0)
        optimizer.step()
    scheduler.step()

    clf.eval()
    with torch.no_grad():
        val_logits = clf(X_val)
        val_loss = criterion(val_logits, y_val).item()
        val_acc = (val_logits.argmax(1) == y_val).float().mean().item()
""",
    ),
    Healthy(
        situation="A LoRA adapter whose B starts at zero around a frozen linear layer",
        cell="""\
import math
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(28)

class LoRALinear(nn.Module):
    def __init__(self, base, rank=4, alpha=8):
        super().__init__()
        self.base = base
        self.base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)

pretrained = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Linear(32, 4))
pretrained[0] = LoRALinear(pretrained[0])
pretrained[2] = LoRALinear(pretrained[2])
trainable = [p for p in pretrained.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=1e-3)

prompts, answers = torch.randn(20, 10), torch.randint(0, 4, (20,))
optimizer.zero_grad()
loss = F.cross_entropy(pretrained(prompts), answers)
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="Activation checkpointing, reentrant in one block and not in the other",
        disclosed=("hidden_in_backward",),
        cell="""\
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.manual_seed(29)

def make_block(width):
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

class DeepMLP(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.block1 = make_block(width)
        self.block2 = make_block(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + checkpoint(self.block1, x, use_reentrant=False)
        x = x + checkpoint(self.block2, x, use_reentrant=True)
        return self.head(x)

model = DeepMLP()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x, y = torch.randn(24, 6), torch.randn(24, 1)

loss = nn.functional.mse_loss(model(x), y)
optimizer.zero_grad()
loss.backward()
optimizer.step()
""",
    ),
    Healthy(
        situation="A top-2 mixture of experts with a load-balancing loss",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(30)

class MoE(nn.Module):
    def __init__(self, dim=12, num_experts=4, k=2):
        super().__init__()
        self.k, self.num_experts = k, num_experts
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)) for _ in range(num_experts)
        )

    def forward(self, tokens):
        probs = self.router(tokens).softmax(dim=-1)
        weights, chosen = probs.topk(self.k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            token_ids, slot = torch.where(chosen == e)
            if token_ids.numel() == 0:
                continue
            out.index_add_(0, token_ids, weights[token_ids, slot].unsqueeze(1) * expert(tokens[token_ids]))
        load = F.one_hot(chosen, self.num_experts).float().sum(1).mean(0) / self.k
        balance = self.num_experts * (load * probs.mean(0)).sum()
        return out, balance

moe = MoE()
tokens = torch.randn(64, 12)
target = torch.roll(tokens, 1, dims=1).tanh()
mixed, balance = moe(tokens)
loss = F.mse_loss(tokens + mixed, target) + 0.01 * balance
""",
    ),
    Healthy(
        situation="A saliency map and an FGSM attack on a model in eval mode",
        before=(
            """\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(31)
cnn = nn.Sequential(
    nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Dropout(0.25), nn.Linear(6 * 5 * 5, 4),
)
optimizer = torch.optim.Adam(cnn.parameters(), lr=3e-3)
for _ in range(25):
    photos, quadrant = torch.rand(32, 1, 10, 10), torch.randint(0, 4, (32,))
    for image, q in zip(photos, quadrant.tolist()):
        image[0, 5 * (q // 2):5 * (q // 2) + 5, 5 * (q % 2):5 * (q % 2) + 5] += 0.5
    optimizer.zero_grad()
    F.cross_entropy(cnn(photos), quadrant).backward()
    optimizer.step()
optimizer.zero_grad()
""",
        ),
        cell="""\
cnn.eval()
photo = torch.rand(1, 1, 10, 10)

# saliency
photo.requires_grad_()
scores = cnn(photo)
top = scores.argmax(dim=1).item()
scores[0, top].backward()
saliency = photo.grad.abs().amax(dim=1).squeeze(0).numpy()

# FGSM
epsilon, label = 0.05, torch.tensor([top])
attacked = photo.detach().clone().requires_grad_(True)
loss = F.cross_entropy(cnn(attacked), label)
cnn.zero_grad()
loss.backward()
adversarial = torch.clamp(attacked + epsilon * attacked.grad.sign(), 0, 1).detach()
with torch.no_grad():
    fooled = cnn(adversarial).argmax(dim=1) != label
""",
    ),
    Healthy(
        situation="A RealNVP normalizing flow fitted by maximum likelihood",
        cell="""\
import torch
from torch import nn
from torch.distributions import Normal

torch.manual_seed(32)

class AffineCoupling(nn.Module):
    def __init__(self, mask, hidden=24):
        super().__init__()
        self.register_buffer("mask", mask)
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.LeakyReLU(), nn.Linear(hidden, 4))

    def forward(self, x):
        kept = x * self.mask
        log_scale, shift = self.net(kept).chunk(2, dim=-1)
        log_scale = torch.tanh(log_scale) * (1 - self.mask)
        shift = shift * (1 - self.mask)
        return kept + (1 - self.mask) * (x * log_scale.exp() + shift), log_scale.sum(dim=-1)

flow = nn.ModuleList(AffineCoupling(torch.tensor(m)) for m in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0]))
prior = Normal(torch.zeros(2), torch.ones(2))

theta = 3.1416 * torch.rand(64)
moons = torch.stack([theta.cos(), theta.sin()], dim=1) + 0.05 * torch.randn(64, 2)
z, log_det = moons, torch.zeros(64)
for layer in flow:
    z, ld = layer(z)
    log_det = log_det + ld
log_likelihood = prior.log_prob(z).sum(dim=-1) + log_det
loss = -log_likelihood.mean()
""",
    ),
    Healthy(
        situation="A diffusion model's noise-prediction step with sinusoidal time embedding",
        cell="""\
import math
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(33)
timesteps = 100
betas = torch.linspace(1e-4, 0.02, timesteps)
alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)

def time_embedding(t, dim=16):
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    args = t[:, None].float() * freqs[None]
    return torch.cat([args.sin(), args.cos()], dim=-1)

class Denoiser(nn.Module):
    def __init__(self, dim=2, hidden=48):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(16, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.inp = nn.Linear(dim, hidden)
        self.mid = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x, t):
        h = F.silu(self.inp(x) + self.time_mlp(time_embedding(t)))
        return self.out(h + F.silu(self.mid(h)))

denoiser = Denoiser()
x0 = torch.randn(32, 2) * torch.tensor([1.0, 0.3])
t = torch.randint(0, timesteps, (32,))
noise = torch.randn_like(x0)
a_bar = alphas_cumprod[t].unsqueeze(1)
x_t = a_bar.sqrt() * x0 + (1 - a_bar).sqrt() * noise
loss = F.mse_loss(denoiser(x_t, t), noise)
""",
    ),
    Healthy(
        situation="Linear regression by hand with in-place updates under no_grad",
        cell="""\
import torch

torch.manual_seed(34)
true_w, true_b = torch.tensor([2.0, -3.4]), 4.2
X = torch.randn(60, 2)
y = X @ true_w + true_b + 0.01 * torch.randn(60)

w = torch.zeros(2, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
lr = 0.1
for epoch in range(15):
    y_hat = X @ w + b
    loss = ((y_hat - y) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        w -= lr * w.grad
        b -= lr * b.grad
        w.grad.zero_()
        b.grad.zero_()
w_error = (w.detach() - true_w).abs().max().item()
""",
    ),
    Healthy(
        situation="An averaged model is updated and evaluated after the training pass",
        cell="""\
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(0)
net = nn.Linear(3, 1)
average = copy.deepcopy(net)
x, y = torch.randn(8, 3), torch.randn(8, 1)
loss = F.mse_loss(net(x), y)
loss.backward()
with torch.no_grad():
    for p, q in zip(average.parameters(), net.parameters()):
        p.mul_(0.9).add_(q, alpha=0.1)
    held_out = F.mse_loss(average(x), y)
""",
    ),
    Healthy(
        situation="A new ReLU layer on a single feature of one sign, half of whose units are off",
        cell="""\
import torch
import torch.nn as nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
x = torch.rand(32, 1) + 1
loss = (net(x) - x ** 2).pow(2).mean()
loss.backward()
""",
    ),
    Healthy(
        situation="An ensemble stacked with torch.func and run as one model over a skeleton on the meta device",
        cell="""\
import copy
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
torch.manual_seed(0)
models = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(3)]
params, buffers = stack_module_state(models)
base = copy.deepcopy(models[0]).to("meta")
x, y = torch.randn(16, 4), torch.randn(16, 1)
out = vmap(lambda p, b, t: functional_call(base, (p, b), (t,)), in_dims=(0, 0, None))(params, buffers, x)
loss = ((out - y) ** 2).mean()
loss.backward()
""",
    ),
    Healthy(
        situation="A hypernetwork that makes the weights of another network",
        cell="""\
import torch
from torch import nn
from torch.func import functional_call
torch.manual_seed(0)
main = nn.Linear(4, 2)
hyper = nn.Linear(3, 10)
x, task = torch.randn(8, 4), torch.randn(3)
made = hyper(task)
out = functional_call(main, {"weight": made[:8].view(2, 4), "bias": made[8:]}, (x,))
loss = out.pow(2).mean()
""",
    ),
    Healthy(
        situation="An adversarial example that takes the place of the input it came from",
        cell="""\
import torch
import torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
net = nn.Linear(6, 3)
x, y = torch.rand(4, 6), torch.randint(0, 3, (4,))
x_adv = x.clone().detach().requires_grad_(True)
loss = F.cross_entropy(net(x_adv), y)
loss.backward()
x_adv = (x_adv + 0.03 * x_adv.grad.sign()).clamp(0, 1).detach()
""",
    ),
    Healthy(
        situation="Lazy layers that learn their sizes from the first batch",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
loss = net(torch.randn(2, 1, 8, 8)).pow(2).mean()
""",
    ),
    Healthy(
        situation="A step of deep Q-learning whose targets are written into a tensor of an earlier cell, and a soft update",
        before=(
            """\
import copy
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
target = copy.deepcopy(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
x, mask, wanted = torch.randn(4, 3), torch.tensor([True, False, True, True]), torch.zeros(4)
""",
        ),
        cell="""\
with torch.no_grad():
    wanted[mask] = target(x[mask]).max(1).values
loss = (net(x)[:, 0] - wanted).pow(2).mean()
optimizer.zero_grad()
loss.backward()
optimizer.step()
state = target.state_dict()
for key, value in net.state_dict().items():
    state[key] = 0.1 * value + 0.9 * state[key]
target.load_state_dict(state)
""",
    ),
    Healthy(
        situation="Weights of a second model are saved after backward",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
net, spare = nn.Linear(3, 1), nn.Linear(3, 1)
x = torch.randn(8, 3)
with torch.no_grad():
    before = spare(x)
loss = net(x).pow(2).mean()
loss.backward()
saved = {key: value.clone() for key, value in spare.state_dict().items()}
""",
    ),
    Healthy(
        situation="Integrated gradients: autograd.grad along a straight line of inputs",
        cell="""\
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
x, total = torch.randn(1, 3), torch.zeros(1, 3)
for a in torch.linspace(0, 1, 6):
    p = (a * x).requires_grad_()
    g, = torch.autograd.grad(net(p).squeeze(), p)
    total += g
attribution = x * total / 6
""",
    ),
    Healthy(
        situation="All parameters as one flat vector, a leaf of its own, that functional_call gets its parts from",
        cell="""\
import torch
import torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
flat = nn.utils.parameters_to_vector(net.parameters()).detach().requires_grad_()
named = list(net.named_parameters())
parts = flat.split([parameter.numel() for _, parameter in named])
params = {name: part.view_as(parameter) for (name, parameter), part in zip(named, parts)}
x, y = torch.randn(8, 3), torch.randn(8, 1)
loss = F.mse_loss(torch.func.functional_call(net, params, (x,)), y)
loss.backward()
""",
    ),
    Healthy(
        situation="A first hidden state that is learned, and a loop that goes on from it",
        cell="""\
import torch
torch.manual_seed(0)
W = torch.randn(4, 4, requires_grad=True)
h = torch.zeros(2, 4, requires_grad=True)
for x in torch.randn(5, 2, 4):
    h = torch.tanh(h @ W + x)
loss = h.pow(2).mean()
loss.backward()
""",
    ),
    Healthy(
        situation="The same in each of several epochs",
        cell="""\
import torch
torch.manual_seed(0)
W = (0.5 * torch.randn(4, 4)).requires_grad_()
optimizer = torch.optim.SGD([W], lr=0.1)
for epoch in range(3):
    h = torch.zeros(2, 4, requires_grad=True)
    for x in torch.randn(5, 2, 4):
        h = torch.tanh(h @ W + x)
    loss = h.pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="A learning rate that is learned through unrolled steps of plain gradient descent",
        cell="""\
import torch
torch.manual_seed(0)
lr = torch.tensor(0.1, requires_grad=True)
x, y = torch.randn(16, 3), torch.randn(16)
w = torch.zeros(3, requires_grad=True)
for _ in range(4):
    inner = (x @ w - y).pow(2).mean()
    g, = torch.autograd.grad(inner, w, create_graph=True)
    w = w - lr * g
outer = (x @ w - y).pow(2).mean()
outer.backward()
""",
    ),
    Healthy(
        situation="A product of the Hessian with a vector, by autograd.grad twice",
        cell="""\
import torch
torch.manual_seed(0)
w, A, v = torch.randn(4, requires_grad=True), torch.randn(4, 4), torch.randn(4)
f = (A @ w).tanh().pow(2).sum()
g, = torch.autograd.grad(f, w, create_graph=True)
hv, = torch.autograd.grad(g @ v, w)
""",
        disclosed=("graph_used_up",),
    ),
)
