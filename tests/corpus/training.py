"""Training loops: gradients that go to the wrong player, stay too long, go too early or are never used."""

from __future__ import annotations

from corpus.cases import Case, Healthy

_REGRESSION = """\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
X = torch.randn(48, 3)
y = X @ torch.tensor([[1.5], [-2.0], [0.5]]) + 0.3
model = nn.Linear(3, 1)
"""

_PLAYERS = """\
import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
D = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
optG = torch.optim.Adam(G.parameters(), lr=1e-3)
optD = torch.optim.Adam(D.parameters(), lr=1e-3)
bce = nn.BCEWithLogitsLoss()
"""

TRAINING_SICK: tuple[Case, ...] = (
    # ---- gradients that stray to another player
    Case(
        situation="a GAN's discriminator step without detach; the generator clears before its own step",
        before=(_PLAYERS,),
        cell="""\
norms = []
for step in range(4):
    real = torch.randn(16, 2) + 3
    ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)

    # train D
    optD.zero_grad()
    fake = G(torch.randn(16, 4))
    d_real = D(real)
    d_fake = D(fake)
    lossD = bce(d_real, ones) + bce(d_fake, zeros)
    before = G[0].weight.grad.norm().item() if step else 0.0
    lossD.backward()
    norms.append(G[0].weight.grad.norm().item() - before if G[0].weight.grad is not None else 0.0)
    optD.step()

    # train G
    optG.zero_grad()
    lossG = bce(D(G(torch.randn(16, 4))), ones)
    lossG.backward()
    optG.step()
""",
        kind="stray_gradient",
        line=11,
        mentions=("G", "lossD", "fake"),
        paste="replace",
        cure="""\
norms = []
for step in range(4):
    real = torch.randn(16, 2) + 3
    ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)

    # train D
    optD.zero_grad()
    fake = G(torch.randn(16, 4))
    d_real = D(real)
    d_fake = D(fake.detach())
    lossD = bce(d_real, ones) + bce(d_fake, zeros)
    before = G[0].weight.grad.norm().item() if step else 0.0
    lossD.backward()
    norms.append(G[0].weight.grad.norm().item() - before if G[0].weight.grad is not None else 0.0)
    optD.step()

    # train G
    optG.zero_grad()
    lossG = bce(D(G(torch.randn(16, 4))), ones)
    lossG.backward()
    optG.step()
""",
        cured="norms == [0.0] * 4",
    ),
    Case(
        situation="retain_graph=True against the error of a second backward, where the fake should have been detached",
        before=(_PLAYERS,),
        cell="""\
touched = []
for epoch in range(3):
    real = torch.randn(16, 2) * 0.5 + 2
    z = torch.randn(16, 4)
    fake = G(z)

    optD.zero_grad()
    optG.zero_grad()
    real_loss = bce(D(real), torch.ones(16, 1))
    fake_loss = bce(D(fake), torch.zeros(16, 1))
    d_loss = (real_loss + fake_loss) / 2
    d_loss.backward(retain_graph=True)
    touched.append(any(p.grad is not None for p in G.parameters()))
    optD.step()

    optG.zero_grad()
    g_loss = bce(D(fake), torch.ones(16, 1))
    g_loss.backward()
    optG.step()
""",
        kind="stray_gradient",
        line=11,
        mentions=("G", "d_loss", "fake"),
        paste="replace",
        cure="""\
touched = []
for epoch in range(3):
    real = torch.randn(16, 2) * 0.5 + 2
    z = torch.randn(16, 4)
    fake = G(z)

    optD.zero_grad()
    optG.zero_grad()
    real_loss = bce(D(real), torch.ones(16, 1))
    fake_loss = bce(D(fake.detach()), torch.zeros(16, 1))
    d_loss = (real_loss + fake_loss) / 2
    d_loss.backward()
    touched.append(any(p.grad is not None for p in G.parameters()))
    optD.step()

    optG.zero_grad()
    g_loss = bce(D(fake), torch.ones(16, 1))
    g_loss.backward()
    optG.step()
""",
        cured="not any(touched)",
    ),
    Case(
        situation="no detach in the critic's step, and the generator clears only after its own: it steps on both",
        cell="""\
import torch
import torch.nn as nn
import torch.optim as optim

torch.manual_seed(1)
gen = nn.Linear(3, 2)
critic = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1))
gen_opt = optim.RMSprop(gen.parameters(), lr=5e-4)
critic_opt = optim.RMSprop(critic.parameters(), lr=5e-4)
data = torch.randn(64, 2) + torch.tensor([2.0, 0.0])

gen_grads = []
for i in range(4):
    batch = data[torch.randint(0, 64, (16,))]
    samples = gen(torch.randn(16, 3))
    score_fake = critic(samples)
    score_real = critic(batch)
    loss_critic = score_fake.mean() - score_real.mean()
    critic_opt.zero_grad()
    loss_critic.backward()
    gen_grads.append(gen.weight.grad)
    critic_opt.step()

    loss_gen = -critic(gen(torch.randn(16, 3))).mean()
    loss_gen.backward()
    gen_opt.step()
    gen_opt.zero_grad()
""",
        kind="stray_gradient",
        line=17,
        mentions=("gen", "loss_critic", "samples"),
        paste="replace",
        cure="""\
import torch
import torch.nn as nn
import torch.optim as optim

torch.manual_seed(1)
gen = nn.Linear(3, 2)
critic = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1))
gen_opt = optim.RMSprop(gen.parameters(), lr=5e-4)
critic_opt = optim.RMSprop(critic.parameters(), lr=5e-4)
data = torch.randn(64, 2) + torch.tensor([2.0, 0.0])

gen_grads = []
for i in range(4):
    batch = data[torch.randint(0, 64, (16,))]
    samples = gen(torch.randn(16, 3))
    score_fake = critic(samples.detach())
    score_real = critic(batch)
    loss_critic = score_fake.mean() - score_real.mean()
    critic_opt.zero_grad()
    loss_critic.backward()
    gen_grads.append(gen.weight.grad)
    critic_opt.step()

    loss_gen = -critic(gen(torch.randn(16, 3))).mean()
    loss_gen.backward()
    gen_opt.step()
    gen_opt.zero_grad()
""",
        cured="all(grad is None for grad in gen_grads)",
    ),
    Case(
        situation="in a function, the generator is called inside the discriminator's call, without detach",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(2)
latent = 6
netG = nn.Sequential(nn.Linear(latent, 20), nn.LeakyReLU(0.2), nn.Linear(20, 4), nn.Tanh())
netD = nn.Sequential(nn.Linear(4, 20), nn.LeakyReLU(0.2), nn.Linear(20, 1))
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
reached = []

def train_discriminator(real):
    optimizerD.zero_grad()
    out_real = netD(real)
    out_fake = netD(netG(torch.randn(len(real), latent)))
    errD = F.softplus(-out_real).mean() + F.softplus(out_fake).mean()
    errD.backward()
    reached.append([p.grad is not None for p in netG.parameters()])
    optimizerD.step()
    return errD.item()

def train_generator(batch_size):
    optimizerG.zero_grad()
    errG = F.softplus(-netD(netG(torch.randn(batch_size, latent)))).mean()
    errG.backward()
    optimizerG.step()
    return errG.item()

for real in torch.rand(3, 16, 4).mul(2).sub(1):
    train_discriminator(real)
    train_generator(16)
""",
        kind="stray_gradient",
        line=17,
        mentions=("netG", "errD"),
        paste="replace",
        cure="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(2)
latent = 6
netG = nn.Sequential(nn.Linear(latent, 20), nn.LeakyReLU(0.2), nn.Linear(20, 4), nn.Tanh())
netD = nn.Sequential(nn.Linear(4, 20), nn.LeakyReLU(0.2), nn.Linear(20, 1))
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
reached = []

def train_discriminator(real):
    optimizerD.zero_grad()
    out_real = netD(real)
    out_fake = netD(netG(torch.randn(len(real), latent)).detach())
    errD = F.softplus(-out_real).mean() + F.softplus(out_fake).mean()
    errD.backward()
    reached.append([p.grad is not None for p in netG.parameters()])
    optimizerD.step()
    return errD.item()

def train_generator(batch_size):
    optimizerG.zero_grad()
    errG = F.softplus(-netD(netG(torch.randn(batch_size, latent)))).mean()
    errG.backward()
    optimizerG.step()
    return errG.item()

for real in torch.rand(3, 16, 4).mul(2).sub(1):
    train_discriminator(real)
    train_generator(16)
""",
        cured="not any(reached[0])",
    ),
    Case(
        situation="a trainer class whose discriminator_step forgets to detach the generated images",
        cell="""\
import torch
from torch import nn

torch.manual_seed(3)

class GAN:
    def __init__(self, z_dim=5):
        self.z_dim = z_dim
        self.generator = nn.Sequential(nn.Linear(z_dim, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.opt_g = torch.optim.Adam(self.generator.parameters(), lr=2e-4)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4)
        self.criterion = nn.BCEWithLogitsLoss()
        self.leaks = []

    def discriminator_step(self, images):
        fakes = self.generator(torch.randn(images.size(0), self.z_dim))
        logits_real = self.discriminator(images)
        logits_fake = self.discriminator(fakes)
        loss = self.criterion(logits_real, torch.ones_like(logits_real))
        loss = loss + self.criterion(logits_fake, torch.zeros_like(logits_fake))
        self.opt_d.zero_grad()
        self.opt_g.zero_grad()
        loss.backward()
        self.leaks.append(self.generator[0].weight.grad is not None)
        self.opt_d.step()
        return loss.item()

    def generator_step(self, n):
        logits = self.discriminator(self.generator(torch.randn(n, self.z_dim)))
        loss = self.criterion(logits, torch.ones_like(logits))
        self.opt_g.zero_grad()
        loss.backward()
        self.opt_g.step()
        return loss.item()

    def fit(self, loader, epochs):
        for _ in range(epochs):
            for images in loader:
                self.discriminator_step(images)
                self.generator_step(len(images))

gan = GAN()
gan.fit(torch.rand(2, 12, 8).mul(2).sub(1), epochs=2)
""",
        kind="stray_gradient",
        line=20,
        mentions=("generator", "loss"),
        paste="replace",
        cure="""\
import torch
from torch import nn

torch.manual_seed(3)

class GAN:
    def __init__(self, z_dim=5):
        self.z_dim = z_dim
        self.generator = nn.Sequential(nn.Linear(z_dim, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.opt_g = torch.optim.Adam(self.generator.parameters(), lr=2e-4)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4)
        self.criterion = nn.BCEWithLogitsLoss()
        self.leaks = []

    def discriminator_step(self, images):
        fakes = self.generator(torch.randn(images.size(0), self.z_dim))
        logits_real = self.discriminator(images)
        logits_fake = self.discriminator(fakes.detach())
        loss = self.criterion(logits_real, torch.ones_like(logits_real))
        loss = loss + self.criterion(logits_fake, torch.zeros_like(logits_fake))
        self.opt_d.zero_grad()
        self.opt_g.zero_grad()
        loss.backward()
        self.leaks.append(self.generator[0].weight.grad is not None)
        self.opt_d.step()
        return loss.item()

    def generator_step(self, n):
        logits = self.discriminator(self.generator(torch.randn(n, self.z_dim)))
        loss = self.criterion(logits, torch.ones_like(logits))
        self.opt_g.zero_grad()
        loss.backward()
        self.opt_g.step()
        return loss.item()

    def fit(self, loader, epochs):
        for _ in range(epochs):
            for images in loader:
                self.discriminator_step(images)
                self.generator_step(len(images))

gan = GAN()
gan.fit(torch.rand(2, 12, 8).mul(2).sub(1), epochs=2)
""",
        cured="gan.leaks == [False] * 4",
    ),
    Case(
        situation="actor and critic with an optimizer each: the actor's loss reaches the critic by the advantage",
        cell="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(4)
actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
actor_optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
critic_optim = torch.optim.Adam(critic.parameters(), lr=1e-3)

critic_touched = []
for update in range(3):
    states, returns = torch.randn(20, 4), torch.randn(20)
    dist = Categorical(logits=actor(states))
    actions = dist.sample()
    values = critic(states).squeeze(-1)
    advantage = returns - values

    critic_optim.zero_grad()
    actor_optim.zero_grad()
    actor_loss = -(dist.log_prob(actions) * advantage).mean()
    actor_loss.backward(retain_graph=True)
    critic_touched.append(critic[0].weight.grad is not None)
    actor_optim.step()

    critic_optim.zero_grad()
    critic_loss = advantage.pow(2).mean()
    critic_loss.backward()
    critic_optim.step()
""",
        kind="stray_gradient",
        line=22,
        mentions=("critic", "actor_loss", "advantage"),
        paste="replace",
        cure="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(4)
actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
actor_optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
critic_optim = torch.optim.Adam(critic.parameters(), lr=1e-3)

critic_touched = []
for update in range(3):
    states, returns = torch.randn(20, 4), torch.randn(20)
    dist = Categorical(logits=actor(states))
    actions = dist.sample()
    values = critic(states).squeeze(-1)
    advantage = returns - values

    critic_optim.zero_grad()
    actor_optim.zero_grad()
    actor_loss = -(dist.log_prob(actions) * advantage.detach()).mean()
    actor_loss.backward()
    critic_touched.append(critic[0].weight.grad is not None)
    actor_optim.step()

    critic_optim.zero_grad()
    critic_loss = advantage.pow(2).mean()
    critic_loss.backward()
    critic_optim.step()
""",
        cured="not any(critic_touched)",
    ),
    Case(
        situation="DDPG: the critic's target is built with the actor's next action, neither detached nor under no_grad",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(5)

class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3 + 1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, state, action):
        return self.net(torch.cat([state, action], dim=-1))

policy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
q_net = Critic()
policy_opt = torch.optim.Adam(policy.parameters(), lr=1e-4)
q_opt = torch.optim.Adam(q_net.parameters(), lr=1e-3)
gamma, leaked = 0.99, []

def update(s, a, r, s2):
    a2 = policy(s2)
    q_next = q_net(s2, a2)
    q_loss = F.mse_loss(q_net(s, a), r + gamma * q_next)
    q_opt.zero_grad()
    policy_opt.zero_grad()
    q_loss.backward()
    leaked.append(any(p.grad is not None for p in policy.parameters()))
    q_opt.step()

    policy_loss = -q_net(s, policy(s)).mean()
    policy_opt.zero_grad()
    policy_loss.backward()
    policy_opt.step()

for _ in range(3):
    update(torch.randn(16, 3), torch.rand(16, 1) * 2 - 1, torch.randn(16, 1), torch.randn(16, 3))
""",
        kind="stray_gradient",
        line=24,
        mentions=("policy", "q_loss", "a2"),
        paste="replace",
        cure="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(5)

class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3 + 1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, state, action):
        return self.net(torch.cat([state, action], dim=-1))

policy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
q_net = Critic()
policy_opt = torch.optim.Adam(policy.parameters(), lr=1e-4)
q_opt = torch.optim.Adam(q_net.parameters(), lr=1e-3)
gamma, leaked = 0.99, []

def update(s, a, r, s2):
    a2 = policy(s2)
    with torch.no_grad():
        q_next = q_net(s2, a2)
    q_loss = F.mse_loss(q_net(s, a), r + gamma * q_next)
    q_opt.zero_grad()
    policy_opt.zero_grad()
    q_loss.backward()
    leaked.append(any(p.grad is not None for p in policy.parameters()))
    q_opt.step()

    policy_loss = -q_net(s, policy(s)).mean()
    policy_opt.zero_grad()
    policy_loss.backward()
    policy_opt.step()

for _ in range(3):
    update(torch.randn(16, 3), torch.rand(16, 1) * 2 - 1, torch.randn(16, 1), torch.randn(16, 3))
""",
        cured="not any(leaked)",
    ),
    Case(
        situation="online distillation: the teacher learns from labels, but gets the student's loss as well",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(6)
teacher = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
student = nn.Linear(5, 3)
teacher_opt = torch.optim.SGD(teacher.parameters(), lr=0.1)
student_opt = torch.optim.SGD(student.parameters(), lr=0.1)
T = 2.0
teacher_grads = []

for epoch in range(2):
    for xb, yb in zip(torch.randn(3, 16, 5), torch.randint(0, 3, (3, 16))):
        teacher_opt.zero_grad()
        loss_t = F.cross_entropy(teacher(xb), yb)
        loss_t.backward()
        teacher_opt.step()
        teacher_opt.zero_grad()

        student_opt.zero_grad()
        soft_targets = F.softmax(teacher(xb) / T, dim=1)
        log_probs = F.log_softmax(student(xb) / T, dim=1)
        loss_s = F.kl_div(log_probs, soft_targets, reduction="batchmean") * T * T
        loss_s.backward()
        student_opt.step()
        teacher_grads.append(teacher[0].weight.grad)
""",
        kind="stray_gradient",
        line=25,
        mentions=("teacher", "loss_s", "soft_targets"),
        paste="replace",
        cure="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(6)
teacher = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
student = nn.Linear(5, 3)
teacher_opt = torch.optim.SGD(teacher.parameters(), lr=0.1)
student_opt = torch.optim.SGD(student.parameters(), lr=0.1)
T = 2.0
teacher_grads = []

for epoch in range(2):
    for xb, yb in zip(torch.randn(3, 16, 5), torch.randint(0, 3, (3, 16))):
        teacher_opt.zero_grad()
        loss_t = F.cross_entropy(teacher(xb), yb)
        loss_t.backward()
        teacher_opt.step()
        teacher_opt.zero_grad()

        student_opt.zero_grad()
        soft_targets = F.softmax(teacher(xb) / T, dim=1)
        log_probs = F.log_softmax(student(xb) / T, dim=1)
        loss_s = F.kl_div(log_probs, soft_targets.detach(), reduction="batchmean") * T * T
        loss_s.backward()
        student_opt.step()
        teacher_grads.append(teacher[0].weight.grad)
""",
        cured="all(grad is None for grad in teacher_grads)",
    ),
    Case(
        situation="a probe on an autoencoder's codes has its own optimizer, but its loss reaches the encoder",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(7)
encoder = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3))
decoder = nn.Linear(3, 10)
probe = nn.Linear(3, 2)
ae_optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
probe_optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
x, labels = torch.randn(40, 10), torch.randint(0, 2, (40,))
reached_encoder = []

for step in range(4):
    codes = encoder(x)
    reconstruction_loss = F.mse_loss(decoder(codes), x)
    ae_optimizer.zero_grad()
    reconstruction_loss.backward()
    ae_optimizer.step()
    ae_optimizer.zero_grad()

    codes = encoder(x)
    logits = probe(codes)
    probe_loss = F.cross_entropy(logits, labels)
    probe_optimizer.zero_grad()
    probe_loss.backward()
    probe_optimizer.step()
    reached_encoder.append(encoder[0].weight.grad is not None)
""",
        kind="stray_gradient",
        line=24,
        mentions=("encoder", "probe_loss", "codes"),
        paste="replace",
        cure="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(7)
encoder = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3))
decoder = nn.Linear(3, 10)
probe = nn.Linear(3, 2)
ae_optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
probe_optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
x, labels = torch.randn(40, 10), torch.randint(0, 2, (40,))
reached_encoder = []

for step in range(4):
    codes = encoder(x)
    reconstruction_loss = F.mse_loss(decoder(codes), x)
    ae_optimizer.zero_grad()
    reconstruction_loss.backward()
    ae_optimizer.step()
    ae_optimizer.zero_grad()

    codes = encoder(x)
    logits = probe(codes.detach())
    probe_loss = F.cross_entropy(logits, labels)
    probe_optimizer.zero_grad()
    probe_loss.backward()
    probe_optimizer.step()
    reached_encoder.append(encoder[0].weight.grad is not None)
""",
        cured="not any(reached_encoder)",
    ),
    # ---- an update with another loss's gradient in it
    Case(
        situation="zero_grad right after each own step: the generator's loss stays in the discriminator's .grad",
        cell="""\
import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
D = nn.Linear(2, 1)
optG = torch.optim.Adam(G.parameters(), lr=1e-3)
optD = torch.optim.Adam(D.parameters(), lr=1e-3)

grads, wanted = [], []
for step in range(4):
    real = torch.randn(16, 2) + 3
    fake = G(torch.randn(16, 4))

    lossD = D(fake.detach()).mean() - D(real).mean()
    lossD.backward()
    grads.append(D.weight.grad.clone())
    wanted.append((fake.mean(0) - real.mean(0)).detach())
    optD.step()
    optD.zero_grad()

    lossG = -D(fake).mean()
    lossG.backward()
    optG.step()
    optG.zero_grad()
""",
        kind="mixed_gradients",
        line=17,
        mentions=("D", "lossD", "lossG", "optD"),
        paste="above",
        cure="""\
import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
D = nn.Linear(2, 1)
optG = torch.optim.Adam(G.parameters(), lr=1e-3)
optD = torch.optim.Adam(D.parameters(), lr=1e-3)

grads, wanted = [], []
for step in range(4):
    real = torch.randn(16, 2) + 3
    fake = G(torch.randn(16, 4))

    lossD = D(fake.detach()).mean() - D(real).mean()
    optD.zero_grad()
    lossD.backward()
    grads.append(D.weight.grad.clone())
    wanted.append((fake.mean(0) - real.mean(0)).detach())
    optD.step()

    lossG = -D(fake).mean()
    optG.zero_grad()
    lossG.backward()
    optG.step()
""",
        cured="all(torch.allclose(grad, want.reshape(1, 2), atol=1e-5) for grad, want in zip(grads, wanted))",
    ),
    Case(
        situation="both zero_grad calls stand at the top of the loop, and the generator steps first",
        before=(_PLAYERS,),
        cell="""\
import copy

for epoch in range(2):
    for real in torch.randn(3, 16, 2) + 2:
        valid, invalid = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        optG.zero_grad()
        optD.zero_grad()

        gen = G(torch.randn(len(real), 4))
        g_loss = bce(D(gen), valid)
        g_loss.backward()
        optG.step()

        d_loss = 0.5 * (bce(D(real), valid) + bce(D(gen.detach()), invalid))
        d_loss.backward()
        d_grad, last_D, batch = D[0].weight.grad.clone(), copy.deepcopy(D), (real, gen.detach())
        optD.step()
""",
        kind="mixed_gradients",
        line=16,
        mentions=("D", "d_loss", "g_loss", "optD"),
        paste="above",
        cure="""\
import copy

for epoch in range(2):
    for real in torch.randn(3, 16, 2) + 2:
        valid, invalid = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        optG.zero_grad()

        gen = G(torch.randn(len(real), 4))
        g_loss = bce(D(gen), valid)
        g_loss.backward()
        optG.step()

        optD.zero_grad()
        d_loss = 0.5 * (bce(D(real), valid) + bce(D(gen.detach()), invalid))
        d_loss.backward()
        d_grad, last_D, batch = D[0].weight.grad.clone(), copy.deepcopy(D), (real, gen.detach())
        optD.step()
""",
        cured="torch.allclose(d_grad, torch.autograd.grad("
        "0.5 * (bce(last_D(batch[0]), valid) + bce(last_D(batch[1]), invalid)), last_D[0].weight)[0], atol=1e-6)",
    ),
    Case(
        situation="DCGAN in functions: the real and fake halves add to what the generator's loss left there",
        cell="""\
import torch
from torch import nn

torch.manual_seed(1)
netG = nn.Sequential(nn.Linear(5, 16), nn.LeakyReLU(0.2), nn.Linear(16, 6), nn.Tanh())
netD = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Sigmoid())
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
criterion = nn.BCELoss()
fresh, used = [], []
netD[0].weight.register_hook(fresh.append)

def step_d(real, fake):
    label = torch.full((real.size(0),), 1.0)
    errD_real = criterion(netD(real).view(-1), label)
    errD_real.backward()
    used.append(netD[0].weight.grad.clone())
    label.fill_(0.0)
    errD_fake = criterion(netD(fake.detach()).view(-1), label)
    errD_fake.backward()
    optimizerD.step()
    optimizerD.zero_grad()
    return errD_real.item() + errD_fake.item()

def step_g(fake):
    errG = criterion(netD(fake).view(-1), torch.full((fake.size(0),), 1.0))
    errG.backward()
    optimizerG.step()
    optimizerG.zero_grad()
    return errG.item()

for i in range(3):
    data = torch.rand(12, 6) * 2 - 1
    fake = netG(torch.randn(12, 5))
    step_d(data, fake)
    step_g(fake)
""",
        kind="mixed_gradients",
        line=17,
        mentions=("netD", "errG", "optimizerD"),
        paste="above",
        cure="""\
import torch
from torch import nn

torch.manual_seed(1)
netG = nn.Sequential(nn.Linear(5, 16), nn.LeakyReLU(0.2), nn.Linear(16, 6), nn.Tanh())
netD = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Sigmoid())
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
criterion = nn.BCELoss()
fresh, used = [], []
netD[0].weight.register_hook(fresh.append)

def step_d(real, fake):
    label = torch.full((real.size(0),), 1.0)
    errD_real = criterion(netD(real).view(-1), label)
    optimizerD.zero_grad()
    errD_real.backward()
    used.append(netD[0].weight.grad.clone())
    label.fill_(0.0)
    errD_fake = criterion(netD(fake.detach()).view(-1), label)
    errD_fake.backward()
    optimizerD.step()
    return errD_real.item() + errD_fake.item()

def step_g(fake):
    errG = criterion(netD(fake).view(-1), torch.full((fake.size(0),), 1.0))
    errG.backward()
    optimizerG.step()
    optimizerG.zero_grad()
    return errG.item()

for i in range(3):
    data = torch.rand(12, 6) * 2 - 1
    fake = netG(torch.randn(12, 5))
    step_d(data, fake)
    step_g(fake)
""",
        cured="len(used) == 3 and all(torch.allclose(a, b) for a, b in zip(used, fresh[::3]))",
    ),
    Case(
        situation="actor-critic: the critic clears its gradient after its step, then the actor's loss flows through it",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(2)
actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)

class Agent:
    def __init__(self):
        self.differences = []

    def learn(self, state, action, target):
        q = critic(torch.cat([state, action], dim=1))
        critic_loss = F.mse_loss(q, target)
        own = torch.autograd.grad(critic_loss, critic[0].weight, retain_graph=True)[0]
        critic_loss.backward()
        self.differences.append((critic[0].weight.grad - own).abs().max().item())
        critic_optimizer.step()
        critic_optimizer.zero_grad()

        actor_loss = -critic(torch.cat([state, actor(state)], dim=1)).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()

agent = Agent()
for episode in range(4):
    agent.learn(torch.randn(16, 3), torch.rand(16, 1) * 2 - 1, torch.randn(16, 1))
""",
        kind="mixed_gradients",
        line=20,
        mentions=("critic", "actor_loss", "critic_optimizer"),
        paste="above",
        cure="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(2)
actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)

class Agent:
    def __init__(self):
        self.differences = []

    def learn(self, state, action, target):
        q = critic(torch.cat([state, action], dim=1))
        critic_loss = F.mse_loss(q, target)
        own = torch.autograd.grad(critic_loss, critic[0].weight, retain_graph=True)[0]
        critic_optimizer.zero_grad()
        critic_loss.backward()
        self.differences.append((critic[0].weight.grad - own).abs().max().item())
        critic_optimizer.step()

        actor_loss = -critic(torch.cat([state, actor(state)], dim=1)).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()

agent = Agent()
for episode in range(4):
    agent.learn(torch.randn(16, 3), torch.rand(16, 1) * 2 - 1, torch.randn(16, 1))
""",
        cured="max(agent.differences) < 1e-6",
    ),
    # ---- gradients that add up from step to step
    Case(
        situation="zero_grad once per epoch, but a step for every batch",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for epoch in range(5):
    optimizer.zero_grad()
    for xb, yb in zip(X.split(6), y.split(6)):
        loss = F.mse_loss(model(xb), yb)
        loss.backward()
        optimizer.step()
    losses.append(F.mse_loss(model(X), y).item())
""",
        kind="accumulated",
        line=8,
        mentions=("model",),
        paste="above",
        cure="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for epoch in range(5):
    for xb, yb in zip(X.split(6), y.split(6)):
        optimizer.zero_grad()
        loss = F.mse_loss(model(xb), yb)
        loss.backward()
        optimizer.step()
    losses.append(F.mse_loss(model(X), y).item())
""",
        cured="losses[-1] < 1e-3",
    ),
    Case(
        situation="a function train_step that never clears, called in a loop",
        before=(_REGRESSION,),
        cell="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.MSELoss()

def train_step(inputs, targets):
    model.train()
    predictions = model(inputs)
    loss = criterion(predictions, targets)
    loss.backward()
    opt.step()
    return loss.item()

history = [train_step(X, y) for _ in range(60)]
""",
        kind="accumulated",
        line=9,
        mentions=("model", "opt"),
        paste="above",
        cure="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.MSELoss()

def train_step(inputs, targets):
    model.train()
    predictions = model(inputs)
    loss = criterion(predictions, targets)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()

history = [train_step(X, y) for _ in range(60)]
""",
        cured="history[-1] < 1e-2",
    ),
    Case(
        situation="a Trainer class that clears once in its constructor",
        before=(_REGRESSION,),
        cell="""\
class Trainer:
    def __init__(self, model, lr):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.optimizer.zero_grad()
        self.history = []

    def fit(self, X, y, epochs):
        for epoch in range(epochs):
            loss = F.mse_loss(self.model(X), y)
            loss.backward()
            self.optimizer.step()
            self.history.append(loss.item())

trainer = Trainer(model, lr=0.1)
trainer.fit(X, y, epochs=60)
""",
        kind="accumulated",
        line=12,
        mentions=("model",),
        paste="above",
        cure="""\
class Trainer:
    def __init__(self, model, lr):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.history = []

    def fit(self, X, y, epochs):
        for epoch in range(epochs):
            loss = F.mse_loss(self.model(X), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.history.append(loss.item())

trainer = Trainer(model, lr=0.1)
trainer.fit(X, y, epochs=60)
""",
        cured="trainer.history[-1] < 1e-2",
    ),
    Case(
        situation="two optimizers on one loss, of which only the encoder's is cleared",
        cell="""\
import torch
from torch import nn

torch.manual_seed(3)
encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
enc_opt = torch.optim.SGD(encoder.parameters(), lr=0.05)
dec_opt = torch.optim.SGD(decoder.parameters(), lr=0.05)
data = torch.randn(32, 6)
extra = []

for epoch in range(4):
    for batch in data.chunk(2):
        enc_opt.zero_grad()
        loss = nn.functional.mse_loss(decoder(encoder(batch)), batch)
        fresh = torch.autograd.grad(loss, decoder.bias, retain_graph=True)[0]
        loss.backward()
        extra.append((decoder.bias.grad - fresh).norm().item())
        enc_opt.step()
        dec_opt.step()
""",
        kind="accumulated",
        line=17,
        mentions=("decoder", "dec_opt"),
        paste="above",
        cure="""\
import torch
from torch import nn

torch.manual_seed(3)
encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
enc_opt = torch.optim.SGD(encoder.parameters(), lr=0.05)
dec_opt = torch.optim.SGD(decoder.parameters(), lr=0.05)
data = torch.randn(32, 6)
extra = []

for epoch in range(4):
    for batch in data.chunk(2):
        enc_opt.zero_grad()
        dec_opt.zero_grad()
        loss = nn.functional.mse_loss(decoder(encoder(batch)), batch)
        fresh = torch.autograd.grad(loss, decoder.bias, retain_graph=True)[0]
        loss.backward()
        extra.append((decoder.bias.grad - fresh).norm().item())
        enc_opt.step()
        dec_opt.step()
""",
        cured="max(extra) < 1e-6",
    ),
    # ---- gradients that are cleared before they are used
    Case(
        situation="zero_grad between backward and step, in a plain loop",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    output = model(X)
    loss = F.mse_loss(output, y)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    losses.append(loss.item())
""",
        kind="cleared_before_step",
        line=8,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    output = model(X)
    loss = F.mse_loss(output, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
""",
        cured="losses[-1] < losses[0]",
    ),
    Case(
        situation="a function calls model.zero_grad() after backward, before the optimizer steps",
        before=(_REGRESSION,),
        cell="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def train_one_batch(model, batch, opt):
    xb, yb = batch
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    model.zero_grad()
    opt.step()
    return loss.detach()

start = model.weight.detach().clone()
for batch in zip(X.chunk(4), y.chunk(4)):
    loss = train_one_batch(model, batch, opt)
""",
        kind="cleared_before_step",
        line=8,
        mentions=("opt",),
        paste="manual",
        cure="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def train_one_batch(model, batch, opt):
    xb, yb = batch
    loss = F.mse_loss(model(xb), yb)
    model.zero_grad()
    loss.backward()
    opt.step()
    return loss.detach()

start = model.weight.detach().clone()
for batch in zip(X.chunk(4), y.chunk(4)):
    loss = train_one_batch(model, batch, opt)
""",
        cured="not torch.equal(start, model.weight)",
    ),
    Case(
        situation="zero_grad(set_to_none=False) after clipping: the step sees zeros",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
weights = [model.weight.detach().clone()]
for step in range(6):
    loss = F.smooth_l1_loss(model(X), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    scheduler.step()
    weights.append(model.weight.detach().clone())
""",
        kind="cleared_before_step",
        line=9,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
weights = [model.weight.detach().clone()]
for step in range(6):
    optimizer.zero_grad(set_to_none=False)
    loss = F.smooth_l1_loss(model(X), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    weights.append(model.weight.detach().clone())
""",
        cured="all(not torch.equal(a, b) for a, b in zip(weights, weights[1:]))",
    ),
    Case(
        situation="gradient accumulation in a trainer that clears after every micro-batch, before the step",
        before=(_REGRESSION,),
        cell="""\
class Trainer:
    def __init__(self, model, accumulate=4):
        self.model, self.accumulate = model, accumulate
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.updates = 0

    def train_epoch(self, loader):
        for i, (xb, yb) in enumerate(loader):
            loss = F.mse_loss(self.model(xb), yb) / self.accumulate
            loss.backward()
            self.optimizer.zero_grad()
            if (i + 1) % self.accumulate == 0:
                self.optimizer.step()
                self.updates += 1

initial = model.weight.detach().clone()
trainer = Trainer(model)
trainer.train_epoch(list(zip(X.split(6), y.split(6))))
""",
        kind="cleared_before_step",
        line=12,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
class Trainer:
    def __init__(self, model, accumulate=4):
        self.model, self.accumulate = model, accumulate
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.updates = 0

    def train_epoch(self, loader):
        for i, (xb, yb) in enumerate(loader):
            loss = F.mse_loss(self.model(xb), yb) / self.accumulate
            loss.backward()
            if (i + 1) % self.accumulate == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates += 1

initial = model.weight.detach().clone()
trainer = Trainer(model)
trainer.train_epoch(list(zip(X.split(6), y.split(6))))
""",
        cured="trainer.updates == 2 and not torch.equal(initial, model.weight)",
    ),
    # ---- steps without a gradient of their own
    Case(
        situation="a training loop without backward: every step finds no gradient",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    optimizer.zero_grad()
    loss = F.mse_loss(model(X), y)
    optimizer.step()
    losses.append(loss.item())
""",
        kind="step_without_backward",
        line=7,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    optimizer.zero_grad()
    loss = F.mse_loss(model(X), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
""",
        cured="losses[-1] < losses[0]",
    ),
    Case(
        situation="loss.backward without its parentheses, inside a function",
        before=(_REGRESSION,),
        cell="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1)

def train(model, loader, opt, epochs):
    history = []
    for epoch in range(epochs):
        total = 0.0
        for xb, yb in loader:
            opt.zero_grad()
            loss = F.mse_loss(model(xb), yb)
            loss.backward
            opt.step()
            total += loss.item()
        history.append(total)
    return history

history = train(model, list(zip(X.chunk(3), y.chunk(3))), opt, epochs=3)
""",
        kind="step_without_backward",
        line=12,
        mentions=("opt",),
        paste="manual",
        cure="""\
opt = torch.optim.SGD(model.parameters(), lr=0.1)

def train(model, loader, opt, epochs):
    history = []
    for epoch in range(epochs):
        total = 0.0
        for xb, yb in loader:
            opt.zero_grad()
            loss = F.mse_loss(model(xb), yb)
            loss.backward()
            opt.step()
            total += loss.item()
        history.append(total)
    return history

history = train(model, list(zip(X.chunk(3), y.chunk(3))), opt, epochs=3)
""",
        cured="history[-1] < history[0]",
    ),
    Case(
        situation="one backward before the loop, and a step in each round of it with the same old gradient",
        cell="""\
import torch
torch.manual_seed(0)
x = torch.linspace(-1, 1, 20)
target = 3 * x + 1
a = torch.nn.Parameter(torch.zeros(()))
b = torch.nn.Parameter(torch.zeros(()))
optimizer = torch.optim.SGD([a, b], lr=0.2)
loss = ((a * x + b - target) ** 2).mean()
loss.backward()
errors = []
for step in range(30):
    optimizer.step()
    errors.append(((a * x + b - target) ** 2).mean().item())
""",
        kind="step_without_backward",
        line=13,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
import torch
torch.manual_seed(0)
x = torch.linspace(-1, 1, 20)
target = 3 * x + 1
a = torch.nn.Parameter(torch.zeros(()))
b = torch.nn.Parameter(torch.zeros(()))
optimizer = torch.optim.SGD([a, b], lr=0.2)
errors = []
for step in range(30):
    optimizer.zero_grad()
    loss = ((a * x + b - target) ** 2).mean()
    loss.backward()
    optimizer.step()
    errors.append(((a * x + b - target) ** 2).mean().item())
""",
        cured="errors[-1] < 0.1",
    ),
    Case(
        situation="an earlier cell ran backward once; this cell's loop steps again and again without one of its own",
        before=(
            _REGRESSION,
            """\
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
loss = F.mse_loss(model(X), y)
loss.backward()
""",
        ),
        cell="""\
losses = []
for epoch in range(25):
    pred = model(X)
    loss = F.mse_loss(pred, y)
    losses.append(loss.item())
    optimizer.step()
""",
        kind="step_without_backward",
        line=7,
        mentions=("optimizer",),
        paste="manual",
        cure="""\
losses = []
for epoch in range(25):
    pred = model(X)
    loss = F.mse_loss(pred, y)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
        cured="losses[-1] < 1e-2",
    ),
    # ---- gradients that no step uses
    Case(
        situation="a training loop that forgets the step",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    optimizer.zero_grad()
    loss = F.mse_loss(model(X), y)
    loss.backward()
    losses.append(loss.item())
""",
        kind="backward_without_step",
        line=7,
        mentions=("optimizer",),
        paste="below",
        cure="""\
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for epoch in range(5):
    optimizer.zero_grad()
    loss = F.mse_loss(model(X), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
""",
        cured="losses[-1] < losses[0]",
    ),
    Case(
        situation="optimizer.step without its parentheses, inside a function that goes through batches",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def fit(epochs):
    running = []
    for epoch in range(epochs):
        for xb, yb in zip(X.split(16), y.split(16)):
            pred = model(xb)
            loss = F.mse_loss(pred, yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step
        running.append(loss.item())
    return running

running = fit(epochs=4)
""",
        kind="backward_without_step",
        line=11,
        mentions=("optimizer",),
        paste="below",
        cure="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def fit(epochs):
    running = []
    for epoch in range(epochs):
        for xb, yb in zip(X.split(16), y.split(16)):
            pred = model(xb)
            loss = F.mse_loss(pred, yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        running.append(loss.item())
    return running

running = fit(epochs=4)
""",
        cured="running[-1] != running[0]",
    ),
    Case(
        situation="two optimizers are cleared in each round, but only one of them steps",
        cell="""\
import torch
from torch import nn

torch.manual_seed(4)
backbone = nn.Sequential(nn.Linear(8, 12), nn.Tanh())
head = nn.Linear(12, 3)
backbone_opt = torch.optim.Adam(backbone.parameters(), lr=1e-3)
head_opt = torch.optim.Adam(head.parameters(), lr=1e-2)
features, labels = torch.randn(30, 8), torch.randint(0, 3, (30,))
first = backbone[0].weight.detach().clone()

for epoch in range(4):
    backbone_opt.zero_grad()
    head_opt.zero_grad()
    loss = nn.functional.cross_entropy(head(backbone(features)), labels)
    loss.backward()
    head_opt.step()
""",
        kind="backward_without_step",
        line=17,
        mentions=("backbone_opt",),
        paste="below",
        cure="""\
import torch
from torch import nn

torch.manual_seed(4)
backbone = nn.Sequential(nn.Linear(8, 12), nn.Tanh())
head = nn.Linear(12, 3)
backbone_opt = torch.optim.Adam(backbone.parameters(), lr=1e-3)
head_opt = torch.optim.Adam(head.parameters(), lr=1e-2)
features, labels = torch.randn(30, 8), torch.randint(0, 3, (30,))
first = backbone[0].weight.detach().clone()

for epoch in range(4):
    backbone_opt.zero_grad()
    head_opt.zero_grad()
    loss = nn.functional.cross_entropy(head(backbone(features)), labels)
    loss.backward()
    backbone_opt.step()
    head_opt.step()
""",
        cured="not torch.equal(first, backbone[0].weight)",
    ),
    Case(
        situation="a trainer that calls the scheduler's step, but not the optimizer's",
        before=(_REGRESSION,),
        cell="""\
class Trainer:
    def __init__(self, model, optimizer, scheduler):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.log = []

    def run(self, loader, epochs):
        for epoch in range(epochs):
            self.optimizer.zero_grad()
            for xb, yb in loader:
                self.optimizer.zero_grad()
                loss = F.mse_loss(self.model(xb), yb)
                loss.backward()
            self.scheduler.step()
            self.log.append(F.mse_loss(self.model(X), y).item())

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
trainer = Trainer(model, optimizer, scheduler)
trainer.run([(X[:24], y[:24]), (X[24:], y[24:])], epochs=4)
""",
        kind="backward_without_step",
        line=13,
        mentions=("optimizer",),
        paste="below",
        cure="""\
class Trainer:
    def __init__(self, model, optimizer, scheduler):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.log = []

    def run(self, loader, epochs):
        for epoch in range(epochs):
            for xb, yb in loader:
                self.optimizer.zero_grad()
                loss = F.mse_loss(self.model(xb), yb)
                loss.backward()
                self.optimizer.step()
            self.scheduler.step()
            self.log.append(F.mse_loss(self.model(X), y).item())

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
trainer = Trainer(model, optimizer, scheduler)
trainer.run([(X[:24], y[:24]), (X[24:], y[24:])], epochs=4)
""",
        cured="trainer.log[-1] < 0.5 * trainer.log[0]",
    ),
)

TRAINING_HEALTHY: tuple[Healthy, ...] = (
    # ---- two players
    Healthy(
        situation="DCGAN as in the tutorial: real and fake halves backward on their own, the fake made once",
        cell="""\
import torch
import torch.nn as nn
import torch.optim as optim

torch.manual_seed(999)
nz, ngf, ndf, nc = 8, 4, 4, 1

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 2, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, nc, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        return self.main(input)

class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(nc, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, input):
        return self.main(input)

netG, netD = Generator(), Discriminator()
criterion = nn.BCELoss()
fixed_noise = torch.randn(4, nz, 1, 1)
real_label, fake_label = 1.0, 0.0
optimizerD = optim.Adam(netD.parameters(), lr=0.0002, betas=(0.5, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=0.0002, betas=(0.5, 0.999))
dataloader = [(torch.rand(8, nc, 8, 8) * 2 - 1, None) for _ in range(2)]

img_list, G_losses, D_losses = [], [], []
for epoch in range(2):
    for i, data in enumerate(dataloader, 0):
        netD.zero_grad()
        real_cpu = data[0]
        b_size = real_cpu.size(0)
        label = torch.full((b_size,), real_label, dtype=torch.float)
        output = netD(real_cpu).view(-1)
        errD_real = criterion(output, label)
        errD_real.backward()
        D_x = output.mean().item()

        noise = torch.randn(b_size, nz, 1, 1)
        fake = netG(noise)
        label.fill_(fake_label)
        output = netD(fake.detach()).view(-1)
        errD_fake = criterion(output, label)
        errD_fake.backward()
        D_G_z1 = output.mean().item()
        errD = errD_real + errD_fake
        optimizerD.step()

        netG.zero_grad()
        label.fill_(real_label)
        output = netD(fake).view(-1)
        errG = criterion(output, label)
        errG.backward()
        D_G_z2 = output.mean().item()
        optimizerG.step()

        G_losses.append(errG.item())
        D_losses.append(errD.item())
    with torch.no_grad():
        img_list.append(netG(fixed_noise).detach().cpu())
""",
    ),
    Healthy(
        situation="a GAN's fake is made under no_grad for the discriminator, the generator steps every second time",
        before=(_PLAYERS,),
        cell="""\
for it in range(6):
    real = torch.randn(16, 2) + 3
    with torch.no_grad():
        fake = G(torch.randn(16, 4))
    optD.zero_grad()
    lossD = bce(D(real), torch.ones(16, 1)) + bce(D(fake), torch.zeros(16, 1))
    lossD.backward()
    optD.step()

    if it % 2 == 1:
        optG.zero_grad()
        lossG = bce(D(G(torch.randn(16, 4))), torch.ones(16, 1))
        lossG.backward()
        optG.step()
""",
    ),
    Healthy(
        situation="the generator steps first; both optimizers are cleared right before their own loss",
        before=(_PLAYERS,),
        cell="""\
def g_step(fake):
    optG.zero_grad(set_to_none=False)
    loss = bce(D(fake), torch.ones(len(fake), 1))
    loss.backward()
    optG.step()
    return loss.item()

def d_step(real, fake):
    optD.zero_grad(set_to_none=False)
    loss = 0.5 * (bce(D(real), torch.ones(len(real), 1)) + bce(D(fake.detach()), torch.zeros(len(fake), 1)))
    loss.backward()
    optD.step()
    return loss.item()

log = []
for real in torch.randn(4, 16, 2).add(2):
    fake = G(torch.randn(len(real), 4))
    log.append((g_step(fake), d_step(real, fake)))
""",
    ),
    Healthy(
        situation="the discriminator is frozen during the generator's step; zero_grad after each step",
        before=(_PLAYERS,),
        cell="""\
def set_requires_grad(net, flag):
    for p in net.parameters():
        p.requires_grad_(flag)

for step in range(4):
    real, z = torch.randn(16, 2) * 0.3 + 1, torch.randn(16, 4)
    fake = G(z)

    set_requires_grad(D, True)
    d_loss = torch.relu(1 - D(real)).mean() + torch.relu(1 + D(fake.detach())).mean()
    d_loss.backward()
    optD.step()
    optD.zero_grad()

    set_requires_grad(D, False)
    g_loss = -D(fake).mean()
    g_loss.backward()
    optG.step()
    optG.zero_grad()
set_requires_grad(D, True)
""",
    ),
    Healthy(
        situation="a conditional GAN whose players share a label embedding that both optimizers hold",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
label_emb = nn.Embedding(3, 4)
gen = nn.Sequential(nn.Linear(6 + 4, 16), nn.Tanh(), nn.Linear(16, 5))
disc = nn.Sequential(nn.Linear(5 + 4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
opt_g = torch.optim.Adam([*gen.parameters(), *label_emb.parameters()], lr=2e-4)
opt_d = torch.optim.Adam([*disc.parameters(), *label_emb.parameters()], lr=2e-4)

for step in range(3):
    x, labels = torch.randn(12, 5), torch.randint(0, 3, (12,))
    fake = gen(torch.cat([torch.randn(12, 6), label_emb(labels)], dim=1)).detach()
    opt_d.zero_grad()
    emb = label_emb(labels)
    d_loss = F.softplus(-disc(torch.cat([x, emb], 1))).mean() + F.softplus(disc(torch.cat([fake, emb], 1))).mean()
    d_loss.backward()
    opt_d.step()

    opt_g.zero_grad()
    emb = label_emb(labels)
    fake = gen(torch.cat([torch.randn(12, 6), emb], dim=1))
    g_loss = F.softplus(-disc(torch.cat([fake, emb], dim=1))).mean()
    g_loss.backward()
    opt_g.step()
""",
    ),
    Healthy(
        situation="WGAN: five critic steps with weight clipping for each generator step",
        cell="""\
import torch
from torch import nn

torch.manual_seed(1)
n_critic, clip_value = 5, 0.05
generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
optimizer_G = torch.optim.RMSprop(generator.parameters(), lr=5e-4)
optimizer_C = torch.optim.RMSprop(critic.parameters(), lr=5e-4)

for i, real in enumerate(torch.randn(10, 16, 2) + 1):
    optimizer_C.zero_grad()
    fake = generator(torch.randn(16, 4)).detach()
    loss_C = -critic(real).mean() + critic(fake).mean()
    loss_C.backward()
    optimizer_C.step()
    for p in critic.parameters():
        p.data.clamp_(-clip_value, clip_value)

    if i % n_critic == n_critic - 1:
        optimizer_G.zero_grad()
        gen_imgs = generator(torch.randn(16, 4))
        loss_G = -critic(gen_imgs).mean()
        loss_G.backward()
        optimizer_G.step()
""",
    ),
    Healthy(
        situation="WGAN-GP in a loop, the penalty on interpolates through autograd.grad",
        cell="""\
import torch
from torch import nn, autograd

torch.manual_seed(2)
G = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
C = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
opt_G = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.0, 0.9))
opt_C = torch.optim.Adam(C.parameters(), lr=1e-4, betas=(0.0, 0.9))

def calc_gradient_penalty(netC, real_data, fake_data, lam=10.0):
    alpha = torch.rand(real_data.size(0), 1)
    interpolates = alpha * real_data + (1 - alpha) * fake_data
    interpolates.requires_grad_(True)
    out = netC(interpolates)
    gradients = autograd.grad(out, interpolates, torch.ones_like(out), create_graph=True)[0]
    return lam * ((gradients.norm(2, dim=1) - 1) ** 2).mean()

one = torch.tensor(1.0)
for iteration in range(2):
    for _ in range(3):
        real = torch.randn(16, 3) + 1
        C.zero_grad()
        C_real = C(real).mean()
        C_real.backward(-one)
        fake = G(torch.randn(16, 4)).data
        C_fake = C(fake).mean()
        C_fake.backward(one)
        gp = calc_gradient_penalty(C, real, fake)
        gp.backward()
        opt_C.step()
    G.zero_grad()
    G_cost = C(G(torch.randn(16, 4))).mean()
    G_cost.backward(-one)
    opt_G.step()
""",
    ),
    Healthy(
        situation="CycleGAN: two generators under one optimizer, identity and cycle losses, two discriminators",
        cell="""\
import itertools
import torch
from torch import nn

torch.manual_seed(3)
mlp = lambda n_in, n_out: nn.Sequential(nn.Linear(n_in, 12), nn.Tanh(), nn.Linear(12, n_out))
G_AB, G_BA = mlp(4, 4), mlp(4, 4)
D_A, D_B = mlp(4, 1), mlp(4, 1)
optimizer_G = torch.optim.Adam(itertools.chain(G_AB.parameters(), G_BA.parameters()), lr=2e-4)
optimizer_D_A = torch.optim.Adam(D_A.parameters(), lr=2e-4)
optimizer_D_B = torch.optim.Adam(D_B.parameters(), lr=2e-4)
mse, l1 = nn.MSELoss(), nn.L1Loss()
valid, fake = torch.ones(8, 1), torch.zeros(8, 1)

for real_A, real_B in zip(torch.randn(3, 8, 4), torch.randn(3, 8, 4) + 1):
    optimizer_G.zero_grad()
    loss_identity = (l1(G_BA(real_A), real_A) + l1(G_AB(real_B), real_B)) / 2
    fake_B, fake_A = G_AB(real_A), G_BA(real_B)
    loss_GAN = (mse(D_B(fake_B), valid) + mse(D_A(fake_A), valid)) / 2
    loss_cycle = (l1(G_BA(fake_B), real_A) + l1(G_AB(fake_A), real_B)) / 2
    loss_G = loss_GAN + 10 * loss_cycle + 5 * loss_identity
    loss_G.backward()
    optimizer_G.step()

    optimizer_D_A.zero_grad()
    loss_D_A = (mse(D_A(real_A), valid) + mse(D_A(fake_A.detach()), fake)) / 2
    loss_D_A.backward()
    optimizer_D_A.step()

    optimizer_D_B.zero_grad()
    loss_D_B = (mse(D_B(real_B), valid) + mse(D_B(fake_B.detach()), fake)) / 2
    loss_D_B.backward()
    optimizer_D_B.step()
""",
    ),
    Healthy(
        situation="InfoGAN: a third optimizer over generator and discriminator's head for the information loss",
        cell="""\
import itertools
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(4)
gen = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
disc = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
q_net = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 2))
optimizer_G = torch.optim.Adam(gen.parameters(), lr=1e-3)
optimizer_D = torch.optim.Adam(disc.parameters(), lr=1e-3)
optimizer_info = torch.optim.Adam(itertools.chain(gen.parameters(), q_net.parameters()), lr=1e-3)

for real in torch.randn(3, 16, 4) + 2:
    code = torch.randint(0, 2, (16,))
    z = torch.cat([torch.randn(16, 4), F.one_hot(code, 2).float()], dim=1)

    optimizer_G.zero_grad()
    fake = gen(z)
    g_loss = F.softplus(-disc(fake)).mean()
    g_loss.backward()
    optimizer_G.step()

    optimizer_D.zero_grad()
    d_loss = (F.softplus(-disc(real)).mean() + F.softplus(disc(fake.detach())).mean()) / 2
    d_loss.backward()
    optimizer_D.step()

    optimizer_info.zero_grad()
    info_loss = F.cross_entropy(q_net(gen(z)), code)
    info_loss.backward()
    optimizer_info.step()
""",
    ),
    # ---- actors and critics
    Healthy(
        situation="DDPG: the actor's loss flows through the critic, whose zero_grad clears it; targets move softly",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(5)
gamma, tau = 0.99, 0.005

class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, state):
        return torch.tanh(self.net(state))

class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, state, action):
        return self.net(torch.cat([state, action], 1))

actor, critic = Actor(), Critic()
actor_target, critic_target = copy.deepcopy(actor), copy.deepcopy(critic)
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-4)
critic_optimizer = torch.optim.Adam(critic.parameters(), weight_decay=1e-2)

for _ in range(4):
    state, next_state = torch.randn(16, 3), torch.randn(16, 3)
    action, reward, not_done = torch.rand(16, 1) * 2 - 1, torch.randn(16, 1), torch.ones(16, 1)
    target_Q = critic_target(next_state, actor_target(next_state))
    target_Q = reward + (not_done * gamma * target_Q).detach()
    current_Q = critic(state, action)
    critic_loss = F.mse_loss(current_Q, target_Q)
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()

    actor_loss = -critic(state, actor(state)).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()

    for net, target in ((critic, critic_target), (actor, actor_target)):
        for param, target_param in zip(net.parameters(), target.parameters()):
            target_param.data.copy_(tau * param.data + (1 - tau) * target_param.data)
""",
    ),
    Healthy(
        situation="TD3: twin critics under one optimizer, the policy delayed by two steps",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(6)
actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
q1 = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
q2 = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
actor_t, q1_t, q2_t = (copy.deepcopy(net).requires_grad_(False) for net in (actor, q1, q2))
actor_opt = torch.optim.Adam(actor.parameters(), lr=3e-4)
critic_opt = torch.optim.Adam(list(q1.parameters()) + list(q2.parameters()), lr=3e-4)

for total_it in range(1, 7):
    s, s2, r = torch.randn(16, 3), torch.randn(16, 3), torch.randn(16, 1)
    a = torch.rand(16, 1) * 2 - 1
    with torch.no_grad():
        noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
        a2 = (actor_t(s2) + noise).clamp(-1, 1)
        s2a2 = torch.cat([s2, a2], 1)
        target = r + 0.99 * torch.min(q1_t(s2a2), q2_t(s2a2))
    sa = torch.cat([s, a], 1)
    critic_loss = F.mse_loss(q1(sa), target) + F.mse_loss(q2(sa), target)
    critic_opt.zero_grad()
    critic_loss.backward()
    critic_opt.step()
    if total_it % 2 == 0:
        actor_loss = -q1(torch.cat([s, actor(s)], 1)).mean()
        actor_opt.zero_grad()
        actor_loss.backward()
        actor_opt.step()
        with torch.no_grad():
            for net, slow in ((actor, actor_t), (q1, q1_t), (q2, q2_t)):
                for p, p_t in zip(net.parameters(), slow.parameters()):
                    p_t.lerp_(p, 0.005)
""",
    ),
    Healthy(
        situation="SAC: the actor's loss flows through frozen critics, the temperature has an optimizer of its own",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F
from torch.distributions import Normal

torch.manual_seed(7)
policy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
qf = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
qf_target = copy.deepcopy(qf)
log_alpha = torch.zeros(1, requires_grad=True)
policy_optim = torch.optim.Adam(policy.parameters(), lr=3e-4)
q_optim = torch.optim.Adam(qf.parameters(), lr=3e-4)
alpha_optim = torch.optim.Adam([log_alpha], lr=3e-4)
target_entropy = -1.0

def sample(state):
    mean, log_std = policy(state).chunk(2, dim=-1)
    normal = Normal(mean, log_std.clamp(-5, 2).exp())
    x_t = normal.rsample()
    action = torch.tanh(x_t)
    log_prob = normal.log_prob(x_t) - torch.log(1 - action.pow(2) + 1e-6)
    return action, log_prob

for updates in range(3):
    s, a, r, s2 = torch.randn(16, 3), torch.rand(16, 1) * 2 - 1, torch.randn(16, 1), torch.randn(16, 3)
    alpha = log_alpha.exp().detach()
    with torch.no_grad():
        a2, logp2 = sample(s2)
        backup = r + 0.99 * (qf_target(torch.cat([s2, a2], -1)) - alpha * logp2)
    qf_loss = F.mse_loss(qf(torch.cat([s, a], -1)), backup)
    q_optim.zero_grad()
    qf_loss.backward()
    q_optim.step()

    for p in qf.parameters():
        p.requires_grad = False
    pi, log_pi = sample(s)
    policy_loss = (alpha * log_pi - qf(torch.cat([s, pi], -1))).mean()
    policy_optim.zero_grad()
    policy_loss.backward()
    policy_optim.step()
    for p in qf.parameters():
        p.requires_grad = True

    alpha_loss = -(log_alpha * (log_pi + target_entropy).detach()).mean()
    alpha_optim.zero_grad()
    alpha_loss.backward()
    alpha_optim.step()
""",
    ),
    Healthy(
        situation="A2C with a shared trunk and one optimizer",
        cell="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(8)

class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 24), nn.Tanh())
        self.pi = nn.Linear(24, 2)
        self.v = nn.Linear(24, 1)

    def forward(self, obs):
        h = self.trunk(obs)
        return Categorical(logits=self.pi(h)), self.v(h).squeeze(-1)

ac = ActorCritic()
optimizer = torch.optim.Adam(ac.parameters(), lr=7e-4)
for update in range(4):
    obs, returns = torch.randn(20, 4), torch.randn(20)
    dist, values = ac(obs)
    actions = dist.sample()
    advantages = returns - values
    policy_loss = -(advantages.detach() * dist.log_prob(actions)).mean()
    value_loss = advantages.pow(2).mean()
    loss = policy_loss + 0.5 * value_loss - 0.01 * dist.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(ac.parameters(), 0.5)
    optimizer.step()
""",
    ),
    Healthy(
        situation="actor and critic with an optimizer each, one backward of the summed loss, both step",
        cell="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(9)
actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
optimizerA = torch.optim.Adam(actor.parameters(), lr=1e-3)
optimizerC = torch.optim.Adam(critic.parameters(), lr=1e-3)

for iteration in range(3):
    state, returns = torch.randn(12, 4), torch.randn(12)
    dist, value = Categorical(logits=actor(state)), critic(state).squeeze(1)
    action = dist.sample()
    advantage = returns - value
    actor_loss = -(dist.log_prob(action) * advantage.detach()).mean()
    critic_loss = advantage.pow(2).mean()

    optimizerA.zero_grad()
    optimizerC.zero_grad()
    (actor_loss + critic_loss).backward()
    optimizerA.step()
    optimizerC.step()
""",
    ),
    Healthy(
        situation="actor and critic: two losses backward, one after the other, before both optimizers step",
        cell="""\
import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(10)
actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
optimizers = {
    "actor": torch.optim.Adam(actor.parameters(), lr=1e-3),
    "critic": torch.optim.Adam(critic.parameters(), lr=5e-3),
}

def update(states, actions, returns):
    values = critic(states).squeeze(1)
    advantage = (returns - values).detach()
    actor_loss = -(Categorical(logits=actor(states)).log_prob(actions) * advantage).mean()
    critic_loss = nn.functional.smooth_l1_loss(values, returns)
    for opt in optimizers.values():
        opt.zero_grad()
    actor_loss.backward()
    critic_loss.backward()
    for opt in optimizers.values():
        opt.step()
    return actor_loss.item(), critic_loss.item()

for _ in range(3):
    update(torch.randn(16, 4), torch.randint(0, 3, (16,)), torch.randn(16))
""",
    ),
    Healthy(
        situation="REINFORCE: an episode's log-probabilities are gathered, one step for each episode",
        cell="""\
import torch
from torch import nn
from torch.distributions import Bernoulli

torch.manual_seed(11)
policy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)

for episode in range(4):
    state, log_probs, rewards = torch.randn(2), [], []
    while len(rewards) < 8:
        dist = Bernoulli(logits=policy(state))
        action = dist.sample()
        log_probs.append(dist.log_prob(action))
        state = 0.9 * state + 0.1 * (2 * action - 1)
        rewards.append(-state.pow(2).sum().item())
    returns, R = [], 0.0
    for r in reversed(rewards):
        R = r + 0.95 * R
        returns.insert(0, R)
    returns = torch.tensor(returns)
    returns = (returns - returns.mean()) / (returns.std() + 1e-8)
    loss = -(torch.cat(log_probs) * returns).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="deep Q-learning with a target net that is copied every few steps; gradients clipped by value",
        cell="""\
import random
import torch
from torch import nn

torch.manual_seed(12)
random.seed(0)
policy_net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
target_net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
target_net.load_state_dict(policy_net.state_dict())
optimizer = torch.optim.AdamW(policy_net.parameters(), lr=1e-4, amsgrad=True)
memory = [(torch.randn(4), random.randrange(2), random.random(), torch.randn(4)) for _ in range(64)]

def optimize_model(batch_size=16):
    if len(memory) < batch_size:
        return
    states, actions, rewards, next_states = zip(*random.sample(memory, batch_size))
    q = policy_net(torch.stack(states)).gather(1, torch.tensor(actions).unsqueeze(1))
    with torch.no_grad():
        next_values = target_net(torch.stack(next_states)).max(1).values
    expected = torch.tensor(rewards) + 0.99 * next_values
    loss = nn.SmoothL1Loss()(q, expected.unsqueeze(1))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
    optimizer.step()

for t in range(6):
    optimize_model()
    if t % 3 == 0:
        target_net.load_state_dict(policy_net.state_dict())
""",
    ),
    Healthy(
        situation="a world model and an actor that learns through it: the model's zero_grad clears the actor's loss",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(13)
dynamics = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
actor = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
model_opt = torch.optim.Adam(dynamics.parameters(), lr=1e-3)
actor_opt = torch.optim.Adam(actor.parameters(), lr=1e-3)

for _ in range(3):
    s, a = torch.randn(16, 2), torch.randn(16, 1)
    s_next = 0.9 * s + 0.1 * a
    model_opt.zero_grad()
    model_loss = F.mse_loss(dynamics(torch.cat([s, a], -1)), s_next)
    model_loss.backward()
    model_opt.step()

    actor_opt.zero_grad()
    state, cost = s, 0.0
    for _ in range(4):
        state = dynamics(torch.cat([state, actor(state)], -1))
        cost = cost + state.pow(2).mean()
    cost.backward()
    actor_opt.step()
""",
    ),
    # ---- several losses, several optimizers
    Healthy(
        situation="multi-task: two losses over one trunk, each backward, then one step",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(14)
trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
heads = nn.ModuleDict({"age": nn.Linear(16, 1), "kind": nn.Linear(16, 3)})
optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=1e-3)
x, age, kind = torch.randn(24, 6), torch.rand(24, 1), torch.randint(0, 3, (24,))

for epoch in range(3):
    optimizer.zero_grad()
    shared = trunk(x)
    loss_age = F.mse_loss(heads["age"](shared), age)
    loss_age.backward(retain_graph=True)
    loss_kind = F.cross_entropy(heads["kind"](shared), kind)
    loss_kind.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="gradient accumulation over micro-batches, a step every four and one for the rest",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
accumulation_steps = 4
loader = list(zip(X.split(5), y.split(5)))

optimizer.zero_grad()
for epoch in range(2):
    for i, (inputs, targets) in enumerate(loader):
        loss = F.mse_loss(model(inputs), targets) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0 or (i + 1) == len(loader):
            optimizer.step()
            optimizer.zero_grad()
""",
    ),
    Healthy(
        situation="gradient accumulation whose last micro-batches wait for the next cell's step",
        before=(_REGRESSION, "optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)\n"),
        cell="""\
for i, (xb, yb) in enumerate(zip(X.split(8), y.split(8))):
    (F.mse_loss(model(xb), yb) / 4).backward()
    if i % 4 == 3:
        optimizer.step()
        optimizer.zero_grad()
""",
    ),
    Healthy(
        situation="Adam for the dense and SparseAdam for the embedding's weights, both on one loss",
        cell="""\
import torch
from torch import nn

torch.manual_seed(15)
table = nn.Embedding(20, 6, sparse=True)
mlp = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
sparse_opt = torch.optim.SparseAdam(list(table.parameters()), lr=1e-2)
dense_opt = torch.optim.Adam(mlp.parameters(), lr=1e-3)
ids, target = torch.randint(0, 20, (3, 16)), torch.randn(3, 16)

for batch, wanted in zip(ids, target):
    dense_opt.zero_grad()
    sparse_opt.zero_grad()
    loss = nn.functional.mse_loss(mlp(table(batch)).squeeze(-1), wanted)
    loss.backward()
    dense_opt.step()
    sparse_opt.step()
""",
    ),
    Healthy(
        situation="two independent models trained in one loop, each on its own loss",
        cell="""\
import torch
from torch import nn

torch.manual_seed(16)
nets = [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))]
opts = [torch.optim.SGD(net.parameters(), lr=0.05) for net in nets]
x = torch.randn(40, 3)
y = x.prod(dim=1, keepdim=True)
curves = [[], []]
for epoch in range(5):
    for net, opt, curve in zip(nets, opts, curves):
        opt.zero_grad()
        loss = (net(x) - y).pow(2).mean()
        loss.backward()
        opt.step()
        curve.append(loss.item())
""",
    ),
    Healthy(
        situation="domain-adversarial training with a gradient reversal layer and an optimizer for each part",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(17)

class GradReverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lambd):
        ctx.lambd = lambd
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return -ctx.lambd * grad_output, None

features = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
classifier, domain = nn.Linear(16, 2), nn.Linear(16, 1)
opt_f = torch.optim.Adam(features.parameters(), lr=1e-3)
opt_c = torch.optim.Adam(classifier.parameters(), lr=1e-3)
opt_d = torch.optim.Adam(domain.parameters(), lr=1e-3)

for step in range(3):
    source, labels, target = torch.randn(16, 5), torch.randint(0, 2, (16,)), torch.randn(16, 5) + 1
    for opt in (opt_f, opt_c, opt_d):
        opt.zero_grad()
    f_s, f_t = features(source), features(target)
    class_loss = F.cross_entropy(classifier(f_s), labels)
    logits = domain(GradReverse.apply(torch.cat([f_s, f_t]), 0.3)).squeeze(1)
    domain_loss = F.binary_cross_entropy_with_logits(logits, torch.cat([torch.zeros(16), torch.ones(16)]))
    (class_loss + domain_loss).backward()
    for opt in (opt_f, opt_c, opt_d):
        opt.step()
""",
    ),
    Healthy(
        situation="a Lagrange multiplier that climbs the loss which the model descends, with one backward for both",
        cell="""\
import torch
from torch import nn

torch.manual_seed(18)
model = nn.Linear(4, 1)
lam = nn.Parameter(torch.tensor(0.5))
opt = torch.optim.SGD(model.parameters(), lr=0.05)
dual_opt = torch.optim.SGD([lam], lr=0.05, maximize=True)
x, y = torch.randn(32, 4), torch.randn(32, 1)
for step in range(6):
    opt.zero_grad()
    dual_opt.zero_grad()
    fit = (model(x) - y).pow(2).mean()
    constraint = model.weight.pow(2).sum() - 0.2
    lagrangian = fit + lam * constraint
    lagrangian.backward()
    opt.step()
    dual_opt.step()
    with torch.no_grad():
        lam.clamp_(min=0.01)
""",
    ),
    Healthy(
        situation="architecture search: weights learn on the training loss, alphas on the validation loss",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(19)

class MixedOp(nn.Module):
    def __init__(self):
        super().__init__()
        self.ops = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())])
        self.out = nn.Linear(4, 2)
        self.alphas = nn.Parameter(1e-3 * torch.randn(2))

    def forward(self, x):
        w = self.alphas.softmax(0)
        return self.out(sum(wi * op(x) for wi, op in zip(w, self.ops)))

net = MixedOp()
weights = [p for name, p in net.named_parameters() if name != "alphas"]
w_optim = torch.optim.SGD(weights, lr=0.025, momentum=0.9)
alpha_optim = torch.optim.Adam([net.alphas], lr=3e-3)
for step in range(3):
    trn_x, trn_y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    val_x, val_y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    alpha_optim.zero_grad()
    val_loss = F.cross_entropy(net(val_x), val_y)
    val_loss.backward()
    alpha_optim.step()

    w_optim.zero_grad()
    trn_loss = F.cross_entropy(net(trn_x), trn_y)
    trn_loss.backward()
    w_optim.step()
""",
    ),
    Healthy(
        situation="alternating least squares by gradient descent: U while V rests, then V",
        cell="""\
import torch

torch.manual_seed(20)
R = torch.randn(8, 3) @ torch.randn(3, 6)
U = torch.randn(8, 3, requires_grad=True)
V = torch.randn(3, 6, requires_grad=True)
opt_u = torch.optim.SGD([U], lr=0.01)
opt_v = torch.optim.SGD([V], lr=0.01)
for sweep in range(4):
    for opt in (opt_u, opt_v):
        for _ in range(2):
            opt_u.zero_grad()
            opt_v.zero_grad()
            loss = (R - U @ V).pow(2).mean() + 0.01 * (U.pow(2).mean() + V.pow(2).mean())
            loss.backward()
            opt.step()
""",
    ),
    Healthy(
        situation="EM-like updates: each optimizer clears only its own parameters before its own pass",
        cell="""\
import torch
from torch.distributions import Normal

torch.manual_seed(21)
data = torch.cat([torch.randn(30) - 2, torch.randn(30) + 2])
means = torch.nn.Parameter(torch.tensor([-0.5, 0.5]))
logits = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
opt_means = torch.optim.Adam([means], lr=0.1)
opt_weights = torch.optim.Adam([logits], lr=0.1)

def nll():
    log_p = Normal(means, 1.0).log_prob(data.unsqueeze(1)) + logits.log_softmax(0)
    return -log_p.logsumexp(dim=1).mean()

for it in range(5):
    opt_means.zero_grad()
    nll().backward()
    opt_means.step()
    opt_weights.zero_grad()
    nll().backward()
    opt_weights.step()
""",
    ),
    Healthy(
        situation="coordinate descent: the same loss, the parameters by turns, model.zero_grad() for all",
        before=(_REGRESSION,),
        cell="""\
coordinates = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]
for step in range(8):
    model.zero_grad()
    loss = F.mse_loss(model(X), y)
    loss.backward()
    coordinates[step % len(coordinates)].step()
""",
    ),
    Healthy(
        situation="the bias learns from one loss and the weights from another, in turn",
        before=(_REGRESSION,),
        cell="""\
opt_bias = torch.optim.SGD([model.bias], lr=0.1)
opt_weight = torch.optim.SGD([model.weight], lr=0.1)
for epoch in range(3):
    model.zero_grad()
    offset_loss = (model(X).mean() - y.mean()) ** 2
    offset_loss.backward()
    opt_bias.step()

    model.zero_grad()
    shape_loss = F.mse_loss(model(X), y)
    shape_loss.backward()
    opt_weight.step()
""",
    ),
    Healthy(
        situation="PCGrad: each task's gradient is kept, zero_grad in between, .grad set by hand before the step",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(22)
net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
x, targets = torch.randn(20, 4), torch.randn(20, 2)

for step in range(3):
    grads = []
    for task in range(2):
        optimizer.zero_grad()
        F.mse_loss(net(x)[:, task], targets[:, task]).backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    g1, g2 = grads
    dot = g1 @ g2
    if dot < 0:
        g1, g2 = g1 - dot * g2 / g2.norm() ** 2, g2 - dot * g1 / g1.norm() ** 2
    merged, offset = g1 + g2, 0
    optimizer.zero_grad()
    for p in net.parameters():
        p.grad = merged[offset:offset + p.numel()].view_as(p).clone()
        offset += p.numel()
    optimizer.step()
""",
    ),
    # ---- unusual steps
    Healthy(
        situation="LBFGS with a closure",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=5, line_search_fn="strong_wolfe")
history = []

def closure():
    optimizer.zero_grad()
    loss = F.mse_loss(model(X), y) + 1e-3 * model.weight.pow(2).sum()
    loss.backward()
    return loss

for epoch in range(3):
    history.append(optimizer.step(closure).item())
""",
    ),
    Healthy(
        situation="sharpness-aware minimisation: two passes, a perturbation between them, one step",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(23)
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
base_optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rho = 0.05
inputs, labels = torch.randn(3, 16, 4), torch.randint(0, 3, (3, 16))

for xb, yb in zip(inputs, labels):
    base_optimizer.zero_grad()
    F.cross_entropy(model(xb), yb).backward()
    grad_norm = torch.stack([p.grad.norm(2) for p in model.parameters()]).norm(2)
    e_ws = []
    with torch.no_grad():
        for p in model.parameters():
            e_w = p.grad * rho / (grad_norm + 1e-12)
            p.add_(e_w)
            e_ws.append(e_w)
    base_optimizer.zero_grad()

    loss = F.cross_entropy(model(xb), yb)
    loss.backward()
    with torch.no_grad():
        for p, e_w in zip(model.parameters(), e_ws):
            p.sub_(e_w)
    base_optimizer.step()
""",
    ),
    Healthy(
        situation="MAML over tasks: inner steps with create_graph, the outer losses summed",
        cell="""\
import torch
import torch.nn.functional as F

torch.manual_seed(24)
params = [torch.randn(12, 1) * 0.5, torch.zeros(12), torch.randn(1, 12) * 0.3, torch.zeros(1)]
params = [p.requires_grad_() for p in params]
meta_opt = torch.optim.Adam(params, lr=1e-3)

def forward(x, w1, b1, w2, b2):
    return F.linear(torch.tanh(F.linear(x, w1, b1)), w2, b2)

for iteration in range(2):
    meta_opt.zero_grad()
    meta_loss = 0.0
    for task in range(3):
        amplitude, phase = torch.rand(2) * 3 + 0.1
        x = torch.rand(20, 1) * 6 - 3
        y = amplitude * torch.sin(x + phase)
        fast = params
        for _ in range(2):
            inner = F.mse_loss(forward(x[:10], *fast), y[:10])
            grads = torch.autograd.grad(inner, fast, create_graph=True)
            fast = [p - 0.05 * g for p, g in zip(fast, grads)]
        meta_loss = meta_loss + F.mse_loss(forward(x[10:], *fast), y[10:])
    meta_loss = meta_loss / 3
    meta_loss.backward()
    meta_opt.step()
""",
    ),
    Healthy(
        situation="first-order MAML: clones take inner steps, their gradients are added to the model's by hand",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(25)
model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))
outer = torch.optim.Adam(model.parameters(), lr=1e-3)

for meta_step in range(2):
    outer.zero_grad()
    for task in range(2):
        x = torch.rand(20, 1) * 4 - 2
        y = torch.sin(x + task)
        learner = copy.deepcopy(model)
        inner = torch.optim.SGD(learner.parameters(), lr=0.05)
        for _ in range(3):
            inner.zero_grad()
            F.mse_loss(learner(x[:10]), y[:10]).backward()
            inner.step()
        inner.zero_grad()
        F.mse_loss(learner(x[10:]), y[10:]).backward()
        for p, q in zip(model.parameters(), learner.parameters()):
            p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
    outer.step()
""",
    ),
    Healthy(
        situation="federated averaging: the server's .grad is the clients' mean difference, set by hand",
        cell="""\
import copy
import torch
from torch import nn

torch.manual_seed(26)
server = nn.Linear(3, 1)
server_opt = torch.optim.Adam(server.parameters(), lr=0.01)
clients = [(torch.randn(12, 3), torch.randn(12, 1)) for _ in range(3)]

for rnd in range(3):
    locals_ = []
    for x, y in clients:
        local = copy.deepcopy(server)
        opt = torch.optim.SGD(local.parameters(), lr=0.05)
        for _ in range(2):
            opt.zero_grad()
            nn.functional.mse_loss(local(x), y).backward()
            opt.step()
        locals_.append(local)
    server_opt.zero_grad()
    for name, p in server.named_parameters():
        average = torch.stack([dict(local.named_parameters())[name].data for local in locals_]).mean(0)
        p.grad = p.data - average
    server_opt.step()
""",
    ),
    Healthy(
        situation="evolution strategies: the estimated gradient is written into .grad; only the baseline runs backward",
        cell="""\
import torch

torch.manual_seed(27)
theta = torch.nn.Parameter(torch.zeros(5))
optimizer = torch.optim.Adam([theta], lr=0.05)
baseline = torch.nn.Linear(5, 1)
baseline_opt = torch.optim.SGD(baseline.parameters(), lr=0.01)
goal = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0])
sigma, n = 0.1, 20
rewards = []
for generation in range(6):
    eps = torch.randn(n, 5)
    with torch.no_grad():
        candidates = theta + sigma * eps
        fitness = -(candidates - goal).pow(2).sum(dim=1)

    baseline_opt.zero_grad()
    baseline_loss = (baseline(candidates).squeeze(1) - fitness).pow(2).mean()
    baseline_loss.backward()
    baseline_opt.step()

    with torch.no_grad():
        advantage = fitness - baseline(candidates).squeeze(1)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    theta.grad = -(advantage.unsqueeze(1) * eps).mean(0) / sigma
    optimizer.step()
    rewards.append(fitness.mean().item())
""",
    ),
    Healthy(
        situation="two ordinary steps, then steps on gradients of torch.autograd.grad that are put into .grad",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2)
params = list(model.parameters())
for step in range(5):
    loss = F.mse_loss(model(X), y)
    if step < 2:
        optimizer.zero_grad()
        loss.backward()
    else:
        for p, g in zip(params, torch.autograd.grad(loss, params)):
            p.grad = g.sign()
    optimizer.step()
""",
    ),
    Healthy(
        situation="manual SGD under no_grad with w.grad = None, beside one that uses p.grad.zero_()",
        cell="""\
import torch

torch.manual_seed(28)
x = torch.randn(50, 2)
y = x @ torch.tensor([2.0, -3.4]) + 4.2
w = torch.zeros(2, requires_grad=True)
b = torch.zeros(1, requires_grad=True)

def sgd(params, lr):
    with torch.no_grad():
        for p in params:
            p -= lr * p.grad
            p.grad.zero_()

for epoch in range(3):
    for xb, yb in zip(x.split(10), y.split(10)):
        l = ((xb @ w + b - yb) ** 2).mean() / 2
        l.backward()
        sgd([w, b], lr=0.1)

scale = torch.ones((), requires_grad=True)
for _ in range(3):
    loss = (scale * x.sum(1) - y).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        scale -= 0.01 * scale.grad
    scale.grad = None
""",
    ),
    Healthy(
        situation="the optimizer steps inside backward, in a hook for each parameter",
        cell="""\
import torch
from torch import nn

torch.manual_seed(29)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer_dict = {p: torch.optim.Adam([p], lr=1e-3, foreach=False) for p in model.parameters()}

def optimizer_hook(parameter):
    optimizer_dict[parameter].step()
    optimizer_dict[parameter].zero_grad()

handles = [p.register_post_accumulate_grad_hook(optimizer_hook) for p in model.parameters()]
x, y = torch.randn(16, 4), torch.randn(16, 1)
for step in range(3):
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
for handle in handles:
    handle.remove()
""",
    ),
    Healthy(
        situation="autocast and a GradScaler that is switched off: scale, unscale, clip, step, update",
        cell="""\
import torch
from torch import nn

torch.manual_seed(30)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", enabled=False)
x, y = torch.randn(4, 16, 8), torch.randint(0, 2, (4, 16))
for xb, yb in zip(x, y):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(xb), yb)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
    ),
    Healthy(
        situation="steps are skipped where the gradient's norm is too large; the gradient is cleared all the same",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
applied, skipped = 0, 0
for xb, yb in zip(X.split(4), y.split(4)):
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    total_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
    if not torch.isfinite(total_norm) or total_norm > 5.0:
        skipped += 1
        optimizer.zero_grad()
        continue
    optimizer.step()
    optimizer.zero_grad()
    applied += 1
""",
    ),
    Healthy(
        situation="bad batches are passed over with continue, an empty one too",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
batches = [X[:12], X[:0], X[12:24], torch.full((4, 3), float("nan")), X[24:]]
labels = [y[:12], y[:0], y[12:24], torch.zeros(4, 1), y[24:]]
for i, (xb, yb) in enumerate(zip(batches, labels)):
    if len(xb) == 0 or torch.isnan(xb).any():
        print(f"skip batch {i}")
        continue
    optimizer.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    optimizer.step()
""",
    ),
    # ---- sequences
    Healthy(
        situation="truncated backpropagation through time: the hidden state is detached between chunks",
        cell="""\
import torch
from torch import nn

torch.manual_seed(32)
rnn, readout = nn.GRU(2, 12, batch_first=True), nn.Linear(12, 1)
params = list(rnn.parameters()) + list(readout.parameters())
optimizer = torch.optim.Adam(params, lr=1e-2)
sequence = torch.randn(4, 24, 2)
target = sequence.cumsum(1).sum(-1, keepdim=True) / 5

for epoch in range(2):
    hidden = None
    for chunk, wanted in zip(sequence.split(8, dim=1), target.split(8, dim=1)):
        if hidden is not None:
            hidden = hidden.detach()
        out, hidden = rnn(chunk, hidden)
        loss = nn.functional.mse_loss(readout(out), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 0.25)
        optimizer.step()
""",
    ),
    Healthy(
        situation="an attached hidden state: backward at every time step with retain_graph, one optimizer step",
        cell="""\
import torch
from torch import nn

torch.manual_seed(33)
cell, out = nn.RNNCell(2, 8), nn.Linear(8, 1)
optimizer = torch.optim.SGD([*cell.parameters(), *out.parameters()], lr=0.05)
series = torch.randn(3, 5, 6, 2)
for batch in series:
    optimizer.zero_grad()
    h = torch.zeros(5, 8)
    for t in range(6):
        h = cell(batch[:, t], h)
        loss_t = (out(h) - batch[:, t].sum(1, keepdim=True)).pow(2).mean()
        loss_t.backward(retain_graph=t < 5)
    optimizer.step()
""",
    ),
    Healthy(
        situation="activation checkpointing inside an ordinary training loop",
        cell="""\
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.manual_seed(34)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)

net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
for step in range(3):
    xb, yb = torch.randn(16, 8), torch.randint(0, 2, (16,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(xb), yb)
    loss.backward()
    optimizer.step()
""",
    ),
    # ---- teachers and targets
    Healthy(
        situation="mean teacher: consistency with a slow copy, which follows by averages",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(35)
student = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
teacher = copy.deepcopy(student)
for p in teacher.parameters():
    p.detach_()
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

def update_ema_variables(model, ema_model, alpha, global_step):
    alpha = min(1 - 1 / (global_step + 1), alpha)
    for ema_param, param in zip(ema_model.parameters(), model.parameters()):
        ema_param.data.mul_(alpha).add_(param.data, alpha=1 - alpha)

for global_step in range(4):
    labelled, labels, unlabelled = torch.randn(8, 5), torch.randint(0, 3, (8,)), torch.randn(24, 5)
    class_loss = F.cross_entropy(student(labelled), labels)
    pseudo = teacher(unlabelled + 0.1 * torch.randn_like(unlabelled)).softmax(1)
    consistency_loss = F.mse_loss(student(unlabelled).softmax(1), pseudo)
    loss = class_loss + 5.0 * consistency_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update_ema_variables(student, teacher, 0.99, global_step)
""",
    ),
    Healthy(
        situation="MoCo: a momentum encoder without gradients and a queue of keys",
        cell="""\
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(36)

class MoCo(nn.Module):
    def __init__(self, dim=4, K=32, m=0.99, T=0.2):
        super().__init__()
        self.m, self.T, self.K = m, T, K
        self.encoder_q = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, dim))
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for p in self.encoder_k.parameters():
            p.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.ptr = 0

    @torch.no_grad()
    def _momentum_update(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
            k.data = k.data * self.m + q.data * (1.0 - self.m)

    @torch.no_grad()
    def _enqueue(self, keys):
        self.queue[:, self.ptr:self.ptr + len(keys)] = keys.T
        self.ptr = (self.ptr + len(keys)) % self.K

    def forward(self, im_q, im_k):
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            self._momentum_update()
            k = F.normalize(self.encoder_k(im_k), dim=1)
        l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([l_pos, l_neg], dim=1) / self.T
        self._enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.long)

moco = MoCo()
optimizer = torch.optim.SGD(moco.encoder_q.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
for images in torch.randn(3, 8, 6):
    output, target = moco(images + 0.1 * torch.randn_like(images), images + 0.1 * torch.randn_like(images))
    loss = F.cross_entropy(output, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="knowledge distillation: the teacher is trained first, then only asked under no_grad",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(37)
teacher = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
student = nn.Linear(4, 3)
x, y = torch.randn(48, 4), torch.randint(0, 3, (48,))

opt_t = torch.optim.Adam(teacher.parameters(), lr=1e-2)
for _ in range(5):
    opt_t.zero_grad()
    F.cross_entropy(teacher(x), y).backward()
    opt_t.step()

teacher.eval()
opt_s, T = torch.optim.Adam(student.parameters(), lr=1e-2), 4.0
for _ in range(5):
    with torch.no_grad():
        soft = F.softmax(teacher(x) / T, dim=-1)
    logits = student(x)
    kd = F.kl_div(F.log_softmax(logits / T, dim=-1), soft, reduction="batchmean") * T * T
    loss = 0.7 * kd + 0.3 * F.cross_entropy(logits, y)
    opt_s.zero_grad()
    loss.backward()
    opt_s.step()
""",
    ),
    Healthy(
        situation="deep mutual learning: two students teach each other, each with the other's logits detached",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(38)
nets = [nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)) for _ in range(2)]
opts = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]

def kl(student_logits, teacher_logits):
    return F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="batchmean")

for step in range(3):
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    outs = [net(x) for net in nets]
    for i, opt in enumerate(opts):
        loss = F.cross_entropy(outs[i], y) + kl(outs[i], outs[1 - i].detach())
        opt.zero_grad()
        loss.backward()
        opt.step()
""",
    ),
    Healthy(
        situation="noise-contrastive estimation of an unnormalised density",
        cell="""\
import math
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(39)
energy = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
log_Z = nn.Parameter(torch.tensor(1.0))
optimizer = torch.optim.Adam([*energy.parameters(), log_Z], lr=1e-2)
noise_dist = torch.distributions.Normal(0.0, 2.0)
for step in range(5):
    x = torch.randn(32, 1) * 0.5 + 1
    noise = noise_dist.sample((64, 1))
    nu = math.log(64 / 32)
    logit = lambda u: -energy(u) - log_Z - noise_dist.log_prob(u) - nu
    loss = F.softplus(-logit(x)).mean() + 2 * F.softplus(logit(noise)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    ),
    # ---- gradients that are read, not stepped on
    Healthy(
        situation="adversarial training: an FGSM attack inside the loop, its gradient on the model cleared afterwards",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(40)
model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

def fgsm_attack(model, x, y, epsilon):
    x_adv = x.clone().detach().requires_grad_(True)
    F.cross_entropy(model(x_adv), y).backward()
    x_adv = (x_adv + epsilon * x_adv.grad.sign()).detach()
    model.zero_grad()
    return x_adv

for epoch in range(2):
    for x, y in zip(torch.randn(2, 16, 6), torch.randint(0, 3, (2, 16))):
        x_adv = fgsm_attack(model, x, y, epsilon=0.1)
        loss = 0.5 * (F.cross_entropy(model(x), y) + F.cross_entropy(model(x_adv), y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
    ),
    Healthy(
        situation="PGD training: the attack's gradients pile up on the model and are cleared before the real pass",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(41)
net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
eps, alpha = 0.2, 0.05
for xb, yb in zip(torch.randn(3, 12, 5), torch.randint(0, 2, (3, 12))):
    delta = torch.empty_like(xb).uniform_(-eps, eps).requires_grad_()
    for _ in range(4):
        attack_loss = F.cross_entropy(net(xb + delta), yb)
        attack_loss.backward()
        delta.data = (delta + alpha * delta.grad.detach().sign()).clamp(-eps, eps)
        delta.grad.zero_()
    loss = F.cross_entropy(net(xb + delta.detach()), yb)
    opt.zero_grad()
    loss.backward()
    opt.step()
""",
    ),
    Healthy(
        situation="per-sample gradients in a loop with model.zero_grad(); an optimizer exists, but is for later",
        before=(_REGRESSION, "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"),
        cell="""\
per_sample = []
for xi, yi in zip(X[:8], y[:8]):
    model.zero_grad()
    loss = F.mse_loss(model(xi), yi)
    loss.backward()
    per_sample.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
per_sample = torch.stack(per_sample)
noise_scale = per_sample.var(dim=0).sum() / per_sample.mean(dim=0).pow(2).sum()
""",
    ),
    Healthy(
        situation="gradient norms of each batch, cleared with optimizer.zero_grad(), before any training",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
norms = []
for xb, yb in zip(X.split(8), y.split(8)):
    optimizer.zero_grad()
    F.mse_loss(model(xb), yb).backward()
    norms.append(nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item())
optimizer.zero_grad()
print(f"median gradient norm {sorted(norms)[len(norms) // 2]:.3f}")
""",
    ),
    Healthy(
        situation="the Fisher information of a trained model for EWC, then the penalty in the next task's loss",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(42)
model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x1, y1 = torch.randn(24, 4), torch.randint(0, 2, (24,))
x2, y2 = torch.randn(24, 4) + 1, torch.randint(0, 2, (24,))

for _ in range(3):
    optimizer.zero_grad()
    F.cross_entropy(model(x1), y1).backward()
    optimizer.step()

fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
for xi, yi in zip(x1[:10], y1[:10]):
    optimizer.zero_grad()
    F.cross_entropy(model(xi.unsqueeze(0)), yi.unsqueeze(0)).backward()
    for name, p in model.named_parameters():
        fisher[name] += p.grad.pow(2) / 10
anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

for _ in range(3):
    optimizer.zero_grad()
    penalty = sum((fisher[name] * (p - anchor[name]).pow(2)).sum() for name, p in model.named_parameters())
    loss = F.cross_entropy(model(x2), y2) + 100 * penalty
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="a Hessian-vector product and a power iteration after some training",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    F.mse_loss(model(X), y).backward()
    optimizer.step()

params = list(model.parameters())
v = [torch.randn_like(p) for p in params]
for _ in range(5):
    loss = F.mse_loss(model(X), y)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    hv = torch.autograd.grad(sum((g * u).sum() for g, u in zip(grads, v)), params)
    norm = torch.stack([h.norm() for h in hv]).norm()
    v = [h / norm for h in hv]
print(f"top eigenvalue {norm.item():.3f}")
""",
    ),
    Healthy(
        situation="training, then one more backward only to look at the gradients",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for epoch in range(4):
    loss = F.mse_loss(model(X), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

optimizer.zero_grad()
final_loss = F.mse_loss(model(X), y)
final_loss.backward()
grad_norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
""",
    ),
    Healthy(
        situation="a learning-rate finder that puts the model's state back in the end",
        before=(_REGRESSION,),
        cell="""\
import copy

state = copy.deepcopy(model.state_dict())
finder = torch.optim.SGD(model.parameters(), lr=1e-5)
lrs, losses = [], []
num_iter, end_lr = 12, 1.0
gamma = (end_lr / 1e-5) ** (1 / num_iter)
batches = list(zip(X.split(12), y.split(12)))
for i in range(num_iter):
    xb, yb = batches[i % len(batches)]
    finder.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    finder.step()
    lrs.append(finder.param_groups[0]["lr"])
    losses.append(loss.item())
    if losses[-1] > 4 * min(losses):
        break
    for group in finder.param_groups:
        group["lr"] *= gamma
model.load_state_dict(state)
best_lr = lrs[losses.index(min(losses))] / 10
""",
    ),
    Healthy(
        situation="DeepDream: the optimizer holds the image, the net is frozen",
        cell="""\
import torch
from torch import nn

torch.manual_seed(43)
net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1)).eval()
for p in net.parameters():
    p.requires_grad_(False)
image = torch.rand(1, 1, 10, 10, requires_grad=True)
optimizer = torch.optim.Adam([image], lr=0.05)
for step in range(5):
    optimizer.zero_grad()
    activation = net(image)[0, 2].mean()
    loss = -activation + 1e-3 * image.pow(2).sum()
    loss.backward()
    optimizer.step()
    image.data.clamp_(0, 1)
""",
    ),
    Healthy(
        situation="the optimizer holds the input; the net is not frozen and collects gradient that nobody steps on",
        cell="""\
import torch
from torch import nn

torch.manual_seed(50)
classifier = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
x = nn.Parameter(torch.randn(1, 6) * 0.1)
optimizer = torch.optim.SGD([x], lr=0.5)
scores = []
for step in range(5):
    optimizer.zero_grad()
    score = classifier(x)[0, 1]
    loss = -score + 0.01 * x.pow(2).sum()
    loss.backward()
    optimizer.step()
    scores.append(score.item())
""",
    ),
    # ---- the loop's shape
    Healthy(
        situation="functions for training and validation, with warm-up, early stopping and the best state kept",
        before=(_REGRESSION,),
        cell="""\
import copy

train_loader = list(zip(X[:36].split(12), y[:36].split(12)))
X_val, y_val = X[36:], y[36:]
optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6))

def train_one_epoch():
    model.train()
    total = 0.0
    for inputs, targets in train_loader:
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        total += loss.item() * len(inputs)
    return total / 36

@torch.no_grad()
def validate():
    model.eval()
    return F.mse_loss(model(X_val), y_val).item()

best, patience, bad_epochs, best_state = float("inf"), 2, 0, None
for epoch in range(30):
    train_loss, val_loss = train_one_epoch(), validate()
    if val_loss < best - 1e-3:
        best, bad_epochs, best_state = val_loss, 0, copy.deepcopy(model.state_dict())
    else:
        bad_epochs += 1
        if bad_epochs >= patience:
            break
model.load_state_dict(best_state)
model.train()
""",
    ),
    Healthy(
        situation="a while True loop that breaks when the loss is low, before another backward",
        cell="""\
import torch

torch.manual_seed(44)
m = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
optimizer = torch.optim.SGD([m], lr=0.2)
step = 0
while True:
    optimizer.zero_grad()
    loss = (m - torch.tensor([1.0, 1.0])).pow(2).sum()
    if loss.item() < 0.05 or step > 50:
        break
    loss.backward()
    optimizer.step()
    step += 1
""",
    ),
    Healthy(
        situation="batches from a generator function, losses in a comprehension",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)

def minibatches(n, size):
    order = torch.randperm(n)
    for start in range(0, n, size):
        index = order[start:start + size]
        yield X[index], y[index]

def step(xb, yb):
    optimizer.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    optimizer.step()
    return loss.item()

curve = [sum(step(xb, yb) for xb, yb in minibatches(48, 16)) / 3 for _ in range(3)]
""",
    ),
    Healthy(
        situation="a loop over an empty list of batches, before the one that trains",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
resume_from, batches = 4, list(zip(X.split(12), y.split(12)))
for xb, yb in batches[resume_from:]:
    optimizer.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    optimizer.step()

for xb, yb in batches[:2]:
    optimizer.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="forward, zero_grad and backward in this cell; the step comes in the next",
        before=(_REGRESSION, "optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)\n"),
        cell="""\
pred = model(X)
loss = F.mse_loss(pred, y)
optimizer.zero_grad()
loss.backward()
""",
    ),
    Healthy(
        situation="backward ran in an earlier cell; this one takes the step and looks at the new loss",
        before=(
            _REGRESSION,
            """\
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
optimizer.zero_grad()
F.mse_loss(model(X), y).backward()
""",
        ),
        cell="""\
optimizer.step()
optimizer.zero_grad()
loss = F.mse_loss(model(X), y)
""",
    ),
    Healthy(
        situation="a backbone frozen for the first epochs: its parameters are in the optimizer without gradients",
        cell="""\
import torch
from torch import nn

torch.manual_seed(45)
backbone = nn.Sequential(nn.Linear(5, 12), nn.Tanh())
head = nn.Linear(12, 2)
optimizer = torch.optim.Adam([
    {"params": backbone.parameters(), "lr": 1e-4},
    {"params": head.parameters(), "lr": 1e-2},
])
x, y = torch.randn(24, 5), torch.randint(0, 2, (24,))
for epoch in range(4):
    backbone.requires_grad_(epoch >= 2)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(head(backbone(x)), y)
    loss.backward()
    optimizer.step()
""",
    ),
    Healthy(
        situation="mixture of experts by hard routing: experts without a sample get no gradient in that step",
        cell="""\
import torch
from torch import nn

torch.manual_seed(46)
experts = nn.ModuleList([nn.Linear(3, 1) for _ in range(3)])
optimizers = [torch.optim.SGD(expert.parameters(), lr=0.05) for expert in experts]
for step in range(4):
    x = torch.randn(6, 3)
    route = (x[:, 0] > 0).long() + (step % 2)
    y = x.sum(dim=1, keepdim=True)
    for opt in optimizers:
        opt.zero_grad()
    loss = sum((experts[e](x[route == e]) - y[route == e]).pow(2).sum() for e in route.unique().tolist()) / 6
    loss.backward()
    for opt in optimizers:
        opt.step()
""",
    ),
    Healthy(
        situation="a trainer class with callbacks and gradient accumulation, closures for the losses",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(47)

def make_loss(weight):
    def loss_fn(pred, target):
        return weight * F.mse_loss(pred, target) + (1 - weight) * F.l1_loss(pred, target)
    return loss_fn

class Trainer:
    def __init__(self, model, loss_fn, lr=1e-2, accumulate=2, callbacks=()):
        self.model, self.loss_fn, self.accumulate = model, loss_fn, accumulate
        self.opt = torch.optim.Adam(model.parameters(), lr=lr)
        self.callbacks = callbacks
        self.step = 0

    def training_step(self, batch):
        x, y = batch
        return self.loss_fn(self.model(x), y)

    def fit(self, loader, epochs=1):
        for epoch in range(epochs):
            for i, batch in enumerate(loader, 1):
                loss = self.training_step(batch) / self.accumulate
                loss.backward()
                if i % self.accumulate == 0:
                    self.opt.step()
                    self.opt.zero_grad()
                    self.step += 1
                    for callback in self.callbacks:
                        callback(self, loss.item())

seen = []
trainer = Trainer(nn.Linear(3, 1), make_loss(0.7), callbacks=[lambda t, value: seen.append((t.step, value))])
trainer.fit([(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(4)], epochs=2)
""",
    ),
    Healthy(
        situation="a weighted sum of losses with learned uncertainties, the auxiliary loss switched on after a while",
        cell="""\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(48)
body, head_a, head_b = nn.Sequential(nn.Linear(4, 12), nn.Tanh()), nn.Linear(12, 1), nn.Linear(12, 1)
log_vars = nn.Parameter(torch.tensor([0.2, -0.1]))
main = torch.optim.Adam([*body.parameters(), *head_a.parameters(), log_vars], lr=1e-2)
aux = torch.optim.Adam(head_b.parameters(), lr=1e-2)
x, ya, yb = torch.randn(32, 4), torch.randn(32, 1), torch.randn(32, 1)
for epoch in range(5):
    main.zero_grad()
    aux.zero_grad()
    h = body(x)
    loss = F.mse_loss(head_a(h), ya) * torch.exp(-log_vars[0]) + log_vars[0]
    if epoch >= 2:
        loss = loss + F.mse_loss(head_b(h), yb) * torch.exp(-log_vars[1]) + log_vars[1]
    loss.backward()
    main.step()
    if epoch >= 2:
        aux.step()
""",
    ),
)

# Right as well, but something is to be told here that is no matter of the training loop: of a scale, of an infinity, or
# that no backward ran. None of the findings may be of the kinds in TRAINING_SICK.
TRAINING_NOTED: tuple[Healthy, ...] = (
    Healthy(
        situation="evolution strategies: no backward anywhere, the estimated gradient is written into .grad",
        cell="""\
import torch

torch.manual_seed(27)
theta = torch.nn.Parameter(torch.zeros(5))
optimizer = torch.optim.Adam([theta], lr=0.05)
goal = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0])
sigma, n = 0.1, 20
rewards = []
for generation in range(6):
    eps = torch.randn(n, 5)
    with torch.no_grad():
        fitness = -(theta + sigma * eps - goal).pow(2).sum(dim=1)
    fitness = (fitness - fitness.mean()) / (fitness.std() + 1e-8)
    theta.grad = -(fitness.unsqueeze(1) * eps).mean(0) / sigma
    optimizer.step()
    rewards.append(-(theta.detach() - goal).pow(2).sum().item())
""",
    ),
    Healthy(
        situation="gradients from torch.autograd.grad are put into .grad before each step",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2)
params = list(model.parameters())
for step in range(4):
    loss = F.mse_loss(model(X), y)
    for p, g in zip(params, torch.autograd.grad(loss, params)):
        p.grad = g
    optimizer.step()
""",
    ),
    Healthy(
        situation="autocast and a GradScaler on the CPU: scale, unscale, clip, step, update",
        cell="""\
import torch
from torch import nn

torch.manual_seed(30)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
x, y = torch.randn(4, 16, 8), torch.randint(0, 2, (4, 16))
for xb, yb in zip(x, y):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(xb), yb)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
    ),
    Healthy(
        situation="a GradScaler that skips its first steps: the scale is too large, an infinity goes by",
        cell="""\
import torch
from torch import nn

torch.manual_seed(31)
net = nn.Linear(6, 1)
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=100)
inputs, targets = torch.randn(16, 6), torch.randn(16, 1) * 4
skipped = 0
for step in range(8):
    opt.zero_grad(set_to_none=True)
    loss = nn.functional.mse_loss(net(inputs), targets)
    scaler.scale(loss).backward()
    old_scale = scaler.get_scale()
    scaler.step(opt)
    scaler.update()
    skipped += scaler.get_scale() < old_scale
""",
    ),
    Healthy(
        situation="loss scaling by hand: .grad is divided, and the step taken only if all of it is finite",
        before=(_REGRESSION,),
        cell="""\
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scale, good_steps = 128.0, 0

def finite(parameters):
    return all(torch.isfinite(p.grad).all() for p in parameters)

for xb, yb in zip(X.split(12), y.split(12)):
    optimizer.zero_grad()
    loss = F.mse_loss(model(xb), yb)
    (loss * scale).backward()
    for p in model.parameters():
        p.grad.div_(scale)
    if finite(model.parameters()):
        optimizer.step()
        good_steps += 1
    else:
        scale /= 2
""",
    ),
)
