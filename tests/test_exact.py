"""Laws 2 and 3 on real loads: every autograd node has its gradient in the report, bit for bit."""

from __future__ import annotations

import pytest
import torch
from plain import assert_same_as_plain, norms_of, run_plain, run_traced

CELLS = {
    "simple": """
w = torch.randn(3,4,requires_grad=True)
x = torch.randn(5,3)
h = torch.tanh(x @ w + 1)
loss = (h**2).mean()
""",
    "charmlp": """
import torch.nn.functional as F
n=32; V=27; E=10; B=3; H=64
g = torch.Generator().manual_seed(1)
Xb = torch.randint(0,V,(n,B),generator=g); Yb = torch.randint(0,V,(n,),generator=g)
C  = torch.randn((V, E), generator=g, requires_grad=True)
W1 = torch.randn((B*E, H), generator=g).mul_(.3).requires_grad_()
b1 = (torch.randn(H, generator=g) * 0.1).requires_grad_()
W2 = torch.randn((H, V), generator=g).requires_grad_()
b2 = torch.randn(V, generator=g, requires_grad=True)
bngain = torch.ones((1, H)).requires_grad_()
bnbias = torch.zeros((1, H), requires_grad=True)
emb = C[Xb]
embcat = emb.view(emb.shape[0], -1)
hprebn = embcat @ W1 + b1
bnmeani = 1/n*hprebn.sum(0, keepdim=True)
bndiff = hprebn - bnmeani
bndiff2 = bndiff**2
bnvar = 1/(n-1)*(bndiff2).sum(0, keepdim=True)
bnvar_inv = (bnvar + 1e-5)**-0.5
bnraw = bndiff * bnvar_inv
hpreact = bngain * bnraw + bnbias
h = torch.tanh(hpreact)
logits = h @ W2 + b2
logit_maxes = logits.max(1, keepdim=True).values
norm_logits = logits - logit_maxes
counts = norm_logits.exp()
counts_sum = counts.sum(1, keepdims=True)
counts_sum_inv = counts_sum**-1
probs = counts * counts_sum_inv
logprobs = probs.log()
loss = -logprobs[range(n), Yb].mean()
""",
    "transformer": """
import torch.nn as nn
layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
model = nn.TransformerEncoder(layer, 2)
x = torch.randn(2,5,16)
out = model(x)
loss = out.pow(2).mean()
""",
    "resnet": """
import torch.nn as nn
class Block(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.conv1 = nn.Conv2d(i,o,3,s,1,bias=False); self.bn1=nn.BatchNorm2d(o); self.relu=nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(o,o,3,1,1,bias=False); self.bn2=nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i,o,1,s,bias=False), nn.BatchNorm2d(o)) if s!=1 or i!=o else None
    def forward(self,x):
        identity=x
        out=self.relu(self.bn1(self.conv1(x)))
        out=self.bn2(self.conv2(out))
        if self.down is not None: identity=self.down(x)
        out += identity
        return self.relu(out)
net = nn.Sequential(Block(3,8,1),Block(8,16,2),Block(16,16,1),nn.AdaptiveAvgPool2d(1),nn.Flatten(),nn.Linear(16,10))
x=torch.randn(2,3,16,16)
logits=net(x)
loss=nn.functional.cross_entropy(logits, torch.tensor([1,2]))
""",
    "lstm": """
import torch.nn as nn
rnn=nn.LSTM(3,4,num_layers=2)
emb=nn.Embedding(10,3)
out,(h,c)=rnn(emb(torch.arange(6).view(3,2)))
U,S,V=torch.svd(out[-1])
a,b=out.chunk(2)[0].unbind(1)
loss=out.sum()+h.mean()+c.std()+S.sum()+(a*b).sum()
""",
    "inplace": """
w=torch.randn(4,4,requires_grad=True)
y=w*2
y.mul_(3)
y[0]=1.
v=y[1:3]
v.add_(w[1:3])
v.mul_(1.5)
y+=w
z=torch.zeros(4,4); z[1]=y[2]; z[2:].copy_(y[2:])
t=w*1; t.t_(); t.squeeze_(); t.mul_(2)
q=y.relu()
q=q*1; q.clamp_(max=1)
loss=(q.sum()+z.prod(0).sum()+(t*v.sum()).sum()+v[0].exp().sum()).tanh()
""",
    "custom": """
class F2(torch.autograd.Function):
    @staticmethod
    def forward(ctx,x,y):
        ctx.save_for_backward(x,y); return x*y, x+y
    @staticmethod
    def backward(ctx,a,b):
        x,y=ctx.saved_tensors; return a*y+b, a*x+b
class F1(torch.autograd.Function):
    @staticmethod
    def forward(ctx,x): return x.clone()
    @staticmethod
    def backward(ctx,a): return a*3
w=torch.randn(3,requires_grad=True)
p,q=F2.apply(w,w*2)
r=F1.apply(F1.apply(p))
def f(x): return F1.apply(x)
s=f(q)
loss=F1.apply((r*s).sum())
""",
    "checkpoint": """
from torch.utils.checkpoint import checkpoint
import torch.nn as nn
net=nn.Sequential(nn.Linear(4,4),nn.Dropout(.5),nn.Tanh())
x=torch.randn(2,4,requires_grad=True)
a=checkpoint(net,x,use_reentrant=False)
b=checkpoint(net,a,use_reentrant=True)
loss=b.sum()
""",
    "mha": """
import torch.nn as nn
m=nn.MultiheadAttention(8,2)
x=torch.randn(3,2,8,requires_grad=True)
o,wts=m(x,x,x)
loss=o.sum()+wts.max()
""",
    "gru": """
W=torch.randn(4,4,requires_grad=True);U=torch.randn(4,4,requires_grad=True)
h=torch.zeros(2,4)
xs=torch.randn(6,2,4)
hs=[]
for x in xs:
    h=torch.tanh(x@W+h@U)
    hs.append(h)
loss=torch.stack(hs).pow(2).mean()
""",
    "inner steps in a loop": """
w=torch.randn(3,4,4,requires_grad=True)
h=torch.randn(1,4,2)
for _ in range(3):
    h=torch.softmax(w@h,dim=1)
loss=(h**2).sum()
""",
}


@pytest.mark.parametrize("name", CELLS)
def test_every_gradient_of_every_node_is_that_of_plain_pytorch(name: str) -> None:
    """Values, `.grad`, the random stream and the gradient of every node are those of the untraced run."""
    report = assert_same_as_plain(CELLS[name])
    assert report.root is not None
    assert report.root.name == "loss"
    # The last tanh of the in-place cell is saturated, so that its gradients are exactly zero, as the finding says.
    assert [found.kind for found in report.findings] == (["zero_gradient"] if name == "inplace" else [])


@pytest.mark.parametrize("name", ["simple", "charmlp", "resnet"])
def test_gradients_of_a_backward_that_the_cell_runs_are_those_of_plain_pytorch(name: str) -> None:
    """Whether the cell or gradtrace runs backward makes no difference to the table."""
    torch.manual_seed(0)
    by_gradtrace, _ = run_traced(CELLS[name])
    torch.manual_seed(0)
    by_cell, _ = run_traced(CELLS[name] + "loss.backward()\n")
    assert norms_of(by_cell) == norms_of(by_gradtrace)
    assert [p.run_by for p in by_cell.passes] == ["cell"]


def test_every_intermediate_of_a_hand_written_network_has_a_named_row_with_its_gradient() -> None:
    """Each variable of the character-level MLP that a gradient reaches is found by name, with plain PyTorch's norm."""
    torch.manual_seed(0)
    plain = run_plain(CELLS["charmlp"])
    torch.manual_seed(0)
    report, _ = run_traced(CELLS["charmlp"])
    named = {k: v for k, v in plain.namespace.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    assert len(named) > 20
    for name, tensor in named.items():
        row = report[name]
        assert row.grad is not None, name
        assert row.grad.norm == float(torch.linalg.vector_norm(tensor.grad)), name
        assert row.shape == tuple(tensor.shape)


def test_an_inner_step_shows_the_gradient_of_the_last_occurrence_as_its_row_does() -> None:
    """Backward reaches the last round of a loop first: what arrives last is the first round's."""
    report, _ = run_traced(CELLS["inner steps in a loop"])
    row = next(row for row in report.rows if row.op == "matmul")
    assert row.inner
    for step in row.inner:
        assert step.grads.occurrences[-1] == row.count - 1
        assert step.grad is not None
        assert step.grad.norm == step.grads.norm[-1] != step.grads.norm[0]


def test_pytorch_adds_gradients_up_in_place_where_it_does_so_untraced() -> None:
    """The version of `.grad` tells, where its memory was added to."""
    source = """
w = torch.ones(2, 3, requires_grad=True)
loss = torch.cov(w).sum()
loss.backward()
version = w.grad._version
"""
    plain = run_plain(source.replace("backward()", "backward(retain_graph=True)"))
    _, namespace = run_traced(source)
    assert namespace["version"] == plain.namespace["version"] == 2
