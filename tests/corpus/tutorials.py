"""Small notebooks after the subjects of PyTorch's tutorials, on made-up data; `# %%` begins a cell."""

from __future__ import annotations

TUTORIALS: dict[str, str] = {
    # ---- beginners' basics
    "autograd by hand": """\
import torch.nn.functional as F
features = torch.ones(5)
labels = torch.zeros(3)
weight = torch.randn(5, 3, requires_grad=True)
bias = torch.randn(3, requires_grad=True)
scores = features @ weight + bias
loss = F.binary_cross_entropy_with_logits(scores, labels)
print(scores.grad_fn.name(), loss.grad_fn.name())
# %%
loss.backward()
print(weight.grad, bias.grad)
# %%
with torch.no_grad():
    still = features @ weight + bias
loose = (features @ weight + bias).detach()
print(still.requires_grad, loose.requires_grad)
# %%
inputs = torch.eye(4, 5, requires_grad=True)
out = (inputs + 1).pow(2).t()
out.backward(torch.ones_like(out), retain_graph=True)
first = inputs.grad.clone()
out.backward(torch.ones_like(out), retain_graph=True)
second = inputs.grad.clone()
inputs.grad.zero_()
out.backward(torch.ones_like(out), retain_graph=True)
print(first, second, inputs.grad)
""",
    "the optimization loop": """\
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Blobs(Dataset):
    def __init__(self, count, transform=None):
        self.labels = torch.arange(count) % 4
        self.points = torch.randn(count, 1, 4, 4) + self.labels.view(-1, 1, 1, 1)
        self.transform = transform
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, index):
        point = self.points[index]
        return (self.transform(point) if self.transform else point), self.labels[index]

train_loader = DataLoader(Blobs(40, lambda x: x / 2), batch_size=8, shuffle=True)
test_loader = DataLoader(Blobs(16, lambda x: x / 2), batch_size=8)
# %%
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.stack = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    def forward(self, x):
        return self.stack(self.flatten(x))

model = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train_epoch(loader):
    model.train()
    for batch, (X, y) in enumerate(loader):
        prediction = model(X)
        loss = criterion(prediction, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch % 2 == 0:
            print(f"loss {loss.item():>7f}  [{(batch + 1) * len(X):>3d}/{len(loader.dataset):>3d}]")

def evaluate(loader):
    model.eval()
    total, correct = 0.0, 0.0
    with torch.no_grad():
        for X, y in loader:
            prediction = model(X)
            total += criterion(prediction, y).item()
            correct += (prediction.argmax(1) == y).type(torch.float).sum().item()
    print(f"accuracy {100 * correct / len(loader.dataset):>0.1f}%, loss {total / len(loader):>8f}")
# %%
for epoch in range(2):
    print("epoch", epoch + 1)
    train_epoch(train_loader)
    evaluate(test_loader)
# %%
kept = {name: value.clone() for name, value in model.state_dict().items()}
again = Net()
print(again.load_state_dict(kept))
again.eval()
with torch.no_grad():
    logits = again(next(iter(test_loader))[0])
print(logits.argmax(1))
""",
    "a network from scratch, then by torch.nn": """\
import math
import torch.nn.functional as F
from torch import nn

x_train, y_train = torch.rand(48, 64), torch.randint(0, 5, (48,))
weights = torch.randn(64, 5) / math.sqrt(64)
weights.requires_grad_()
bias = torch.zeros(5, requires_grad=True)

def log_softmax(x):
    return x - x.exp().sum(-1).log().unsqueeze(-1)

def model(xb):
    return log_softmax(xb @ weights + bias)

def nll(input, target):
    return -input[range(target.shape[0]), target].mean()

def accuracy(out, yb):
    return (torch.argmax(out, dim=1) == yb).float().mean()
# %%
preds = model(x_train[:16])
loss = nll(preds, y_train[:16])
print(loss.item(), accuracy(preds, y_train[:16]))
# %%
for epoch in range(2):
    for i in range(3):
        xb, yb = x_train[i * 16 : i * 16 + 16], y_train[i * 16 : i * 16 + 16]
        loss = nll(model(xb), yb)
        loss.backward()
        with torch.no_grad():
            weights -= weights.grad * 0.5
            bias -= bias.grad * 0.5
            weights.grad.zero_()
            bias.grad.zero_()
print(F.cross_entropy(x_train @ weights + bias, y_train))
# %%
from torch.utils.data import DataLoader, TensorDataset

class Lambda(nn.Module):
    def __init__(self, func):
        super().__init__()
        self.func = func
    def forward(self, x):
        return self.func(x)

cnn = nn.Sequential(
    Lambda(lambda x: x.view(-1, 1, 8, 8)),
    nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    Lambda(lambda x: x.view(x.size(0), -1)),
)
opt = torch.optim.SGD(cnn.parameters(), lr=0.1, momentum=0.9)

def loss_batch(model, xb, yb, opt=None):
    loss = F.cross_entropy(model(xb), yb)
    if opt is not None:
        loss.backward()
        opt.step()
        opt.zero_grad()
    return loss.item(), len(xb)

losses = []
for epoch in range(2):
    cnn.train()
    for xb, yb in DataLoader(TensorDataset(x_train, y_train), batch_size=16, shuffle=True):
        loss_batch(cnn, xb, yb, opt)
    cnn.eval()
    with torch.no_grad():
        pairs = [loss_batch(cnn, xb, yb) for xb, yb in DataLoader(TensorDataset(x_train, y_train), batch_size=24)]
    losses.append(sum(loss * count for loss, count in pairs) / sum(count for _, count in pairs))
    print(epoch, losses[-1])
""",
    "a polynomial and a Function of one's own": """\
import math

class Legendre(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (5 * x**3 - 3 * x) / 2
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 1.5 * (5 * x**2 - 1)

x = torch.linspace(-math.pi, math.pi, 50)
y = torch.sin(x)
a = torch.full((), 0.0, requires_grad=True)
b = torch.full((), -1.0, requires_grad=True)
c = torch.full((), 0.0, requires_grad=True)
d = torch.full((), 0.3, requires_grad=True)
# %%
for t in range(5):
    y_pred = a + b * Legendre.apply(c + d * x)
    loss = (y_pred - y).pow(2).sum()
    print(t, loss.item())
    loss.backward()
    with torch.no_grad():
        for p in (a, b, c, d):
            p -= 1e-4 * p.grad
            p.grad = None
# %%
import random

class Dynamic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.randn(())) for _ in range(3))
    def forward(self, x):
        y = self.a + self.b * x
        for power in range(4, random.randint(4, 6)):
            y = y + self.c * x**power
        return y

random.seed(1)
model = Dynamic()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
for t in range(5):
    loss = torch.nn.MSELoss(reduction="sum")(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{model.a.item()} + {model.b.item()} x + {model.c.item()} x^4 ?")
""",
    # ---- text
    "word embeddings": """\
import torch.nn as nn
import torch.nn.functional as F

words = "the cell ran as it always does and the table says where the gradient of the cell went and why".split()
vocab = sorted(set(words))
index = {word: i for i, word in enumerate(vocab)}
trigrams = [([words[i - 2], words[i - 1]], words[i]) for i in range(2, len(words))]

class NGram(nn.Module):
    def __init__(self, size, width, context):
        super().__init__()
        self.embeddings = nn.Embedding(size, width)
        self.linear1 = nn.Linear(context * width, 16)
        self.linear2 = nn.Linear(16, size)
    def forward(self, ids):
        embeds = self.embeddings(ids).view((1, -1))
        return F.log_softmax(self.linear2(F.relu(self.linear1(embeds))), dim=1)

losses = []
loss_function = nn.NLLLoss()
model = NGram(len(vocab), 6, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(2):
    total = 0
    for context, target in trigrams:
        ids = torch.tensor([index[w] for w in context], dtype=torch.long)
        model.zero_grad()
        log_probs = model(ids)
        loss = loss_function(log_probs, torch.tensor([index[target]], dtype=torch.long))
        loss.backward()
        optimizer.step()
        total += loss.item()
    losses.append(total)
print(losses, model.embeddings.weight[index["cell"]])
# %%
class CBOW(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.bag = nn.EmbeddingBag(size, width, mode="sum", sparse=True)
        self.out = nn.Linear(width, size)
    def forward(self, ids, offsets):
        return self.out(self.bag(ids, offsets))

around = [[words[i + j] for j in (-2, -1, 1, 2)] for i in range(2, len(words) - 2)]
ids = torch.tensor([index[w] for context in around for w in context])
offsets = torch.arange(0, len(ids), 4)
targets = torch.tensor([index[w] for w in words[2:-2]])
cbow = CBOW(len(vocab), 5)
loss = F.cross_entropy(cbow(ids, offsets), targets)
# %%
loss.backward()
step = torch.optim.SGD(cbow.parameters(), lr=0.5)
step.step()
step.zero_grad()
print(cbow.bag.weight.grad, F.cross_entropy(cbow(ids, offsets), targets).item())
""",
    "names letter by letter": """\
import random
import string
import torch.nn as nn
import torch.nn.functional as F

letters = string.ascii_lowercase
names = {"a": ["anna", "adam", "abel"], "o": ["otto", "olga", "oleg"]}
kinds = list(names)

def line_to_tensor(line):
    tensor = torch.zeros(len(line), 1, len(letters))
    for place, letter in enumerate(line):
        tensor[place][0][letters.find(letter)] = 1
    return tensor

class RNN(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.hidden = hidden
        self.i2h = nn.Linear(inputs, hidden)
        self.h2h = nn.Linear(hidden, hidden)
        self.h2o = nn.Linear(hidden, outputs)
        self.softmax = nn.LogSoftmax(dim=1)
    def forward(self, input, hidden):
        hidden = F.tanh(self.i2h(input) + self.h2h(hidden))
        return self.softmax(self.h2o(hidden)), hidden
    def start(self):
        return torch.zeros(1, self.hidden)

rnn = RNN(len(letters), 10, len(kinds))
# %%
criterion = nn.NLLLoss()

def train(kind, line):
    hidden = rnn.start()
    rnn.zero_grad()
    for letter in line_to_tensor(line):
        output, hidden = rnn(letter, hidden)
    loss = criterion(output, torch.tensor([kinds.index(kind)]))
    loss.backward()
    for p in rnn.parameters():
        p.data.add_(p.grad.data, alpha=-0.05)
    return output, loss.item()

random.seed(0)
confusion = torch.zeros(2, 2)
for step in range(8):
    kind = random.choice(kinds)
    output, loss = train(kind, random.choice(names[kind]))
    confusion[kinds.index(kind)][output.topk(1)[1][0].item()] += 1
print(confusion / confusion.sum(1, keepdim=True).clamp(min=1), loss)
# %%
class Writer(nn.Module):
    def __init__(self):
        super().__init__()
        self.i2h = nn.Linear(2 + 27 + 8, 8)
        self.i2o = nn.Linear(2 + 27 + 8, 27)
        self.o2o = nn.Linear(8 + 27, 27)
        self.dropout = nn.Dropout(0.1)
    def forward(self, kind, letter, hidden):
        combined = torch.cat((kind, letter, hidden), 1)
        hidden, output = self.i2h(combined), self.i2o(combined)
        output = self.dropout(self.o2o(torch.cat((hidden, output), 1)))
        return F.log_softmax(output, 1), hidden

writer = Writer()
kind = torch.eye(2)[:1]
target = torch.tensor([letters.find(letter) for letter in "dam"] + [26])
hidden = torch.zeros(1, 8)
loss = torch.Tensor([0])
for letter, wanted in zip(torch.eye(27)[[0, 3, 0, 12]], target):
    output, hidden = writer(kind, letter[None], hidden)
    loss += criterion(output, wanted[None])
# %%
loss.backward()
for p in writer.parameters():
    p.data.add_(p.grad.data, alpha=-0.01)
writer.eval()
with torch.no_grad():
    written, letter, hidden = "a", torch.eye(27)[:1], torch.zeros(1, 8)
    for _ in range(5):
        output, hidden = writer(kind, letter, hidden)
        best = output.topk(1)[1][0][0].item()
        if best == 26:
            break
        written += letters[best]
        letter = torch.eye(27)[best][None]
print(written)
""",
    "a transformer that translates": """\
import math
from torch import nn
from torch.nn.utils.rnn import pad_sequence

PAD, BEGIN, END = 0, 1, 2

class Positions(nn.Module):
    def __init__(self, width, dropout, longest=20):
        super().__init__()
        den = torch.exp(-torch.arange(0, width, 2) * math.log(10000) / width)
        pos = torch.arange(longest).reshape(longest, 1)
        table = torch.zeros(longest, width)
        table[:, 0::2] = torch.sin(pos * den)
        table[:, 1::2] = torch.cos(pos * den)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("table", table.unsqueeze(-2))
    def forward(self, embedded):
        return self.dropout(embedded + self.table[: embedded.size(0), :])

class Translator(nn.Module):
    def __init__(self, words, width):
        super().__init__()
        self.transformer = nn.Transformer(width, 2, 1, 1, 2 * width, 0.1)
        self.generator = nn.Linear(width, words)
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.positions, self.scale = Positions(width, 0.1), math.sqrt(width)
    def forward(self, src, trg, trg_mask, src_padding, trg_padding):
        outs = self.transformer(
            self.positions(self.source(src) * self.scale), self.positions(self.target(trg) * self.scale),
            tgt_mask=trg_mask, src_key_padding_mask=src_padding, tgt_key_padding_mask=trg_padding,
            memory_key_padding_mask=src_padding,
        )
        return self.generator(outs)

model = Translator(9, 8)
for p in model.parameters():
    if p.dim() > 1:
        nn.init.xavier_uniform_(p)
loss_fn = nn.CrossEntropyLoss(ignore_index=PAD)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-9)
# %%
def later_words(size):
    mask = (torch.triu(torch.ones((size, size))) == 1).transpose(0, 1)
    return mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)

lines = [torch.randint(3, 9, (length,)) for length in (3, 5, 4)]
src = pad_sequence([torch.cat([torch.tensor([BEGIN]), line, torch.tensor([END])]) for line in lines], padding_value=PAD)
trg = pad_sequence([torch.cat([torch.tensor([BEGIN]), line.flip(0), torch.tensor([END])]) for line in lines])
for step in range(2):
    given, wanted = trg[:-1], trg[1:]
    blind = torch.zeros(len(given), len(given)).masked_fill(later_words(len(given)) != 0, float("-inf"))
    padding = [torch.zeros_like(each.t(), dtype=torch.float).masked_fill(each.t() == PAD, float("-inf")) for each in (src, given)]
    logits = model(src, given, blind, *padding)
    optimizer.zero_grad()
    loss = loss_fn(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1))
    loss.backward()
    optimizer.step()
    print(step, loss.item())
# %%
model.eval()
with torch.no_grad():
    asked = src[:5, :1]
    memory = model.transformer.encoder(model.positions(model.source(asked) * model.scale))
    said = torch.ones(1, 1).fill_(BEGIN).type(torch.long)
    for _ in range(6):
        out = model.transformer.decoder(model.positions(model.target(said) * model.scale), memory, later_words(len(said)))
        next_word = model.generator(out[-1]).max(dim=1)[1].item()
        said = torch.cat([said, torch.ones(1, 1).type_as(asked).fill_(next_word)], dim=0)
        if next_word == END:
            break
print(said.flatten().tolist())
""",
    "sequence to sequence with attention": """\
import random
import torch.nn as nn
import torch.nn.functional as F

class Encoder(nn.Module):
    def __init__(self, words, hidden):
        super().__init__()
        self.embedding, self.gru, self.dropout = nn.Embedding(words, hidden), nn.GRU(hidden, hidden, batch_first=True), nn.Dropout(0.1)
    def forward(self, input):
        return self.gru(self.dropout(self.embedding(input)))

class Additive(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.Wa, self.Ua, self.Va = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
    def forward(self, query, keys):
        scores = self.Va(torch.tanh(self.Wa(query) + self.Ua(keys))).squeeze(2).unsqueeze(1)
        weights = F.softmax(scores, dim=-1)
        return torch.bmm(weights, keys), weights

class Decoder(nn.Module):
    def __init__(self, hidden, words, forced):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(words, hidden), Additive(hidden)
        self.gru, self.out = nn.GRU(2 * hidden, hidden, batch_first=True), nn.Linear(hidden, words)
        self.forced = forced
    def forward(self, read, hidden, target=None):
        input = torch.empty(read.size(0), 1, dtype=torch.long).fill_(0)
        outputs, attentions = [], []
        for i in range(4):
            context, weights = self.attention(hidden.permute(1, 0, 2), read)
            output, hidden = self.gru(torch.cat((self.embedding(input), context), dim=2), hidden)
            output = self.out(output)
            outputs.append(output)
            attentions.append(weights)
            if target is not None and random.random() < self.forced:
                input = target[:, i].unsqueeze(1)
            else:
                input = output.topk(1)[1].squeeze(-1).detach()
        return F.log_softmax(torch.cat(outputs, dim=1), dim=-1), hidden, torch.cat(attentions, dim=1)

encoder, decoder = Encoder(8, 6), Decoder(6, 8, 0.5)
# %%
random.seed(2)
pairs = [(torch.randint(1, 8, (3, 5)), torch.randint(1, 8, (3, 4))) for _ in range(3)]
optimizers = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (encoder, decoder)]
criterion = nn.NLLLoss()
total = 0
for source, target in pairs:
    for optimizer in optimizers:
        optimizer.zero_grad()
    read, hidden = encoder(source)
    written, _, _ = decoder(read, hidden, target)
    loss = criterion(written.view(-1, written.size(-1)), target.view(-1))
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    total += loss.item()
print(total / len(pairs))
# %%
encoder.eval(), decoder.eval()
with torch.no_grad():
    read, hidden = encoder(pairs[0][0][:1])
    written, _, attention = decoder(read, hidden)
print(written.topk(1)[1].squeeze().tolist(), attention.shape)
""",
    "tags by an LSTM and a CRF": """\
import torch.nn as nn

START, STOP, TAGS = 3, 4, 5

def log_sum_exp(scores):
    best = scores[0, scores.argmax(1).item()]
    return best + torch.log(torch.sum(torch.exp(scores - best.view(1, -1).expand(1, scores.size()[1]))))

class Tagger(nn.Module):
    def __init__(self, words, width, hidden):
        super().__init__()
        self.embeds = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, hidden // 2, num_layers=1, bidirectional=True)
        self.to_tag = nn.Linear(hidden, TAGS)
        self.transitions = nn.Parameter(torch.randn(TAGS, TAGS))
        self.transitions.data[START, :] = -10000
        self.transitions.data[:, STOP] = -10000
    def features(self, sentence):
        start = (torch.randn(2, 1, 2), torch.randn(2, 1, 2))
        return self.to_tag(self.lstm(self.embeds(sentence).view(len(sentence), 1, -1), start)[0].view(len(sentence), -1))
    def all_paths(self, features):
        alphas = torch.full((1, TAGS), -10000.0)
        alphas[0][START] = 0.0
        for feature in features:
            step = []
            for tag in range(TAGS):
                score = alphas + self.transitions[tag].view(1, -1) + feature[tag].view(1, -1).expand(1, TAGS)
                step.append(log_sum_exp(score).view(1))
            alphas = torch.cat(step).view(1, -1)
        return log_sum_exp(alphas + self.transitions[STOP])
    def path(self, features, tags):
        score, tags = torch.zeros(1), torch.cat([torch.tensor([START]), tags])
        for i, feature in enumerate(features):
            score = score + self.transitions[tags[i + 1], tags[i]] + feature[tags[i + 1]]
        return score + self.transitions[STOP, tags[-1]]
    def loss(self, sentence, tags):
        features = self.features(sentence)
        return self.all_paths(features) - self.path(features, tags)
    def forward(self, sentence):
        back, scores = [], torch.full((1, TAGS), -10000.0)
        scores[0][START] = 0
        features = self.features(sentence)
        for feature in features:
            best = [(scores + self.transitions[tag]).max(1) for tag in range(TAGS)]
            back.append([each.indices.item() for each in best])
            scores = (torch.cat([each.values for each in best]) + feature).view(1, -1)
        tag = (scores + self.transitions[STOP]).argmax(1).item()
        tags = [tag]
        for pointers in reversed(back):
            tag = pointers[tag]
            tags.append(tag)
        return scores.max(), tags[::-1][1:]

model = Tagger(9, 4, 4)
sentence, tags = torch.tensor([1, 4, 2, 7]), torch.tensor([0, 1, 1, 2])
# %%
score = model.loss(sentence, tags)
# %%
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=1e-4)
score.backward()
optimizer.step()
for _ in range(2):
    model.zero_grad()
    loss = model.loss(sentence, tags)
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print(loss.item(), model(sentence))
""",
    # ---- images
    "DCGAN": """\
import torch.nn as nn

def weights_init(m):
    kind = m.__class__.__name__
    if kind.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif kind.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)

netG = nn.Sequential(
    nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
    nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True),
    nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh(),
)
netD = nn.Sequential(
    nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(4, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(8, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
)
netG.apply(weights_init)
netD.apply(weights_init)
criterion = nn.BCELoss()
fixed_noise = torch.randn(4, 6, 1, 1)
optimizerD = torch.optim.Adam(netD.parameters(), lr=0.0002, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=0.0002, betas=(0.5, 0.999))
# %%
G_losses, D_losses, pictures = [], [], []
for i, data in enumerate(torch.rand(3, 4, 3, 16, 16) * 2 - 1):
    netD.zero_grad()
    label = torch.full((4,), 1.0)
    output = netD(data).view(-1)
    errD_real = criterion(output, label)
    errD_real.backward()
    D_x = output.mean().item()
    fake = netG(torch.randn(4, 6, 1, 1))
    label.fill_(0.0)
    output = netD(fake.detach()).view(-1)
    errD_fake = criterion(output, label)
    errD_fake.backward()
    D_G_z1 = output.mean().item()
    errD = errD_real + errD_fake
    optimizerD.step()
    netG.zero_grad()
    label.fill_(1.0)
    output = netD(fake).view(-1)
    errG = criterion(output, label)
    errG.backward()
    optimizerG.step()
    print(f"[{i}] {errD.item():.4f} {errG.item():.4f} {D_x:.4f} {D_G_z1:.4f} {output.mean().item():.4f}")
    G_losses.append(errG.item())
    D_losses.append(errD.item())
with torch.no_grad():
    pictures.append(netG(fixed_noise).detach())
""",
    "a variational autoencoder": """\
import torch.nn.functional as F
from torch import nn

class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.fc3, self.fc4 = nn.Linear(3, 8), nn.Linear(8, 16)
    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)
    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        return mu + torch.randn_like(std) * std
    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))
    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 16))
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

def elbo(recon, x, mu, logvar):
    bce = F.binary_cross_entropy(recon, x.view(-1, 16), reduction="sum")
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
images = torch.rand(24, 1, 4, 4)
# %%
recon, mu, logvar = model(images[:8])
loss = elbo(recon, images[:8], mu, logvar)
# %%
loss.backward()
optimizer.step()
model.train()
for data in images.split(8):
    optimizer.zero_grad()
    recon_batch, mu, logvar = model(data)
    loss = elbo(recon_batch, data, mu, logvar)
    loss.backward()
    optimizer.step()
    print(f"{loss.item() / len(data):.6f}")
# %%
model.eval()
with torch.no_grad():
    sample = model.decode(torch.randn(4, 3))
    compared = torch.cat([images[:4].view(4, -1), model(images[:4])[0]])
""",
    "the style of another picture": """\
import torch.nn as nn
import torch.nn.functional as F

class ContentLoss(nn.Module):
    def __init__(self, target):
        super().__init__()
        self.target = target.detach()
    def forward(self, input):
        self.loss = F.mse_loss(input, self.target)
        return input

def gram_matrix(input):
    a, b, c, d = input.size()
    features = input.view(a * b, c * d)
    return torch.mm(features, features.t()).div(a * b * c * d)

class StyleLoss(nn.Module):
    def __init__(self, target):
        super().__init__()
        self.target = gram_matrix(target).detach()
    def forward(self, input):
        self.loss = F.mse_loss(gram_matrix(input), self.target)
        return input

class Normalization(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    def forward(self, img):
        return (img - self.mean) / self.std

cnn = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval()
style_img, content_img = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
model = nn.Sequential(Normalization([0.48, 0.45, 0.4], [0.22, 0.22, 0.22]))
content_losses, style_losses = [], []
for i, layer in enumerate(cnn.children()):
    model.add_module(f"layer_{i}", nn.ReLU(inplace=False) if isinstance(layer, nn.ReLU) else layer)
    if isinstance(layer, nn.Conv2d):
        style_losses.append(StyleLoss(model(style_img).detach()))
        model.add_module(f"style_{i}", style_losses[-1])
content_losses.append(ContentLoss(model(content_img).detach()))
model.add_module("content", content_losses[-1])
# %%
input_img = content_img.clone()
input_img.requires_grad_(True)
model.eval()
model.requires_grad_(False)
optimizer = torch.optim.LBFGS([input_img])
run = [0]
while run[0] <= 20:
    def closure():
        with torch.no_grad():
            input_img.clamp_(0, 1)
        optimizer.zero_grad()
        model(input_img)
        style_score = sum(each.loss for each in style_losses) * 1000
        content_score = sum(each.loss for each in content_losses)
        loss = style_score + content_score
        loss.backward()
        run[0] += 1
        if run[0] % 10 == 0:
            print(f"{run} style {style_score.item():4f} content {content_score.item():4f}")
        return style_score + content_score
    optimizer.step(closure)
with torch.no_grad():
    input_img.clamp_(0, 1)
""",
    "a spatial transformer": """\
import torch.nn as nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.drop = nn.Dropout2d()
        self.fc = nn.Linear(27, 4)
        self.localization = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2, stride=2), nn.ReLU(True))
        self.fc_loc = nn.Sequential(nn.Linear(27, 8), nn.ReLU(True), nn.Linear(8, 3 * 2))
        self.fc_loc[2].weight.data.zero_()
        self.fc_loc[2].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
    def stn(self, x):
        xs = self.localization(x).view(-1, 27)
        theta = self.fc_loc(xs).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
    def forward(self, x):
        x = self.stn(x)
        x = F.relu(F.max_pool2d(self.drop(self.conv(x)), 2)).view(-1, 27)
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc(x), dim=1)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data, target = torch.rand(3, 6, 1, 8, 8), torch.randint(0, 4, (3, 6))
# %%
model.train()
for epoch in range(2):
    for batch_idx in range(len(data)):
        optimizer.zero_grad()
        output = model(data[batch_idx])
        loss = F.nll_loss(output, target[batch_idx])
        loss.backward()
        optimizer.step()
    print(epoch, loss.item())
# %%
with torch.no_grad():
    model.eval()
    warped = model.stn(data[0])
    pred = model(data[0]).max(1, keepdim=True)[1]
    print(pred.eq(target[0].view_as(pred)).sum().item())
""",
    # ---- reinforcement
    "actor and critic on a pole of one's own": """\
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Categorical

class Pole:
    def reset(self):
        self.state = torch.zeros(4)
        return self.state
    def step(self, action):
        push = 0.1 if action else -0.1
        self.state = self.state * 0.9 + torch.tensor([push, -push, 0.05, push / 2])
        return self.state, 1.0 - self.state.abs().sum().item(), bool(self.state.abs().sum() > 1)

class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine, self.action_head, self.value_head = nn.Linear(4, 12), nn.Linear(12, 2), nn.Linear(12, 1)
        self.saved_actions, self.rewards = [], []
    def forward(self, x):
        x = F.relu(self.affine(x))
        return F.softmax(self.action_head(x), dim=-1), self.value_head(x)

env, model = Pole(), Policy()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
eps = 1e-6

def select_action(state):
    probs, value = model(state)
    m = Categorical(probs)
    action = m.sample()
    model.saved_actions.append((m.log_prob(action), value))
    return action.item()

def finish_episode():
    R, returns, policy_losses, value_losses = 0, [], [], []
    for r in model.rewards[::-1]:
        R = r + 0.99 * R
        returns.insert(0, R)
    returns = torch.tensor(returns)
    returns = (returns - returns.mean()) / (returns.std() + eps)
    for (log_prob, value), R in zip(model.saved_actions, returns):
        advantage = R - value.item()
        policy_losses.append(-log_prob * advantage)
        value_losses.append(F.smooth_l1_loss(value, torch.tensor([R])))
    optimizer.zero_grad()
    loss = torch.stack(policy_losses).sum() + torch.stack(value_losses).sum()
    loss.backward()
    optimizer.step()
    del model.rewards[:]
    del model.saved_actions[:]
    return loss.item()
# %%
running = 10.0
for episode in range(3):
    state, total = env.reset(), 0
    for t in range(8):
        state, reward, done = env.step(select_action(state))
        model.rewards.append(reward)
        total += reward
        if done:
            break
    running = 0.05 * total + 0.95 * running
    print(episode, t, running, finish_episode())
""",
    "deep Q-learning": """\
import math
import random
from collections import deque, namedtuple
import torch.nn as nn
import torch.nn.functional as F

Transition = namedtuple("Transition", ("state", "action", "next_state", "reward"))

class Memory:
    def __init__(self, capacity):
        self.kept = deque([], maxlen=capacity)
    def push(self, *args):
        self.kept.append(Transition(*args))
    def sample(self, count):
        return random.sample(self.kept, count)
    def __len__(self):
        return len(self.kept)

class DQN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)
    def forward(self, x):
        return self.layer3(F.relu(self.layer2(F.relu(self.layer1(x)))))

policy_net, target_net = DQN(), DQN()
target_net.load_state_dict(policy_net.state_dict())
optimizer = torch.optim.AdamW(policy_net.parameters(), lr=1e-2, amsgrad=True)
memory = Memory(100)
# %%
def select_action(state, steps):
    if random.random() > 0.05 + 0.85 * math.exp(-steps / 10):
        with torch.no_grad():
            return policy_net(state).max(1).indices.view(1, 1)
    return torch.tensor([[random.randrange(2)]], dtype=torch.long)

def optimize_model():
    if len(memory) < 8:
        return None
    batch = Transition(*zip(*memory.sample(8)))
    not_final = torch.tensor(tuple(s is not None for s in batch.next_state), dtype=torch.bool)
    following = torch.cat([s for s in batch.next_state if s is not None])
    values = policy_net(torch.cat(batch.state)).gather(1, torch.cat(batch.action))
    next_values = torch.zeros(8)
    with torch.no_grad():
        next_values[not_final] = target_net(following).max(1).values
    expected = next_values * 0.99 + torch.cat(batch.reward)
    loss = nn.SmoothL1Loss()(values, expected.unsqueeze(1))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
    optimizer.step()
    return loss.item()

random.seed(4)
losses, state = [], torch.randn(1, 4)
for step in range(14):
    action = select_action(state, step)
    next_state = None if step % 5 == 4 else state * 0.8 + (0.2 if action.item() else -0.2)
    memory.push(state, action, next_state, torch.tensor([1.0 if next_state is None else 0.1]))
    state = torch.randn(1, 4) if next_state is None else next_state
    losses.append(optimize_model())
    theirs, ours = target_net.state_dict(), policy_net.state_dict()
    for key in ours:
        theirs[key] = ours[key] * 0.05 + theirs[key] * 0.95
    target_net.load_state_dict(theirs)
print(losses[-3:])
""",
}
