"""Transforms, modes, compilers, other threads and environments: traced as in plain PyTorch."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from alike import assert_alike
from plain import run_traced
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gradmagic.tracing import trace

FROM_LOSS = {
    "func.grad": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
g = torch.func.grad(lambda w: (x @ w).tanh().sum())(w)
loss = (g * w).sum()
""",
    "func.grad_and_value": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
g, v = torch.func.grad_and_value(lambda w: (x @ w).tanh().sum())(w)
loss = (g * w).sum() + v
""",
    "vmap": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = torch.func.vmap(lambda r: (r @ w).tanh())(x)
loss = y.sum()
""",
    "vmap random": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = torch.func.vmap(lambda r: (r @ w) * torch.rand(3), randomness='different')(x)
loss = y.sum()
""",
    "jacrev": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
J = torch.func.jacrev(lambda w: (x @ w).tanh().sum(0))(w)
loss = J.sum()
""",
    "jacfwd": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
J = torch.func.jacfwd(lambda w: (x @ w).tanh().sum(0))(w)
loss = J.sum()
""",
    "hessian": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
J = torch.func.hessian(lambda w: (x @ w).tanh().sum(0))(w)
loss = J.sum()
""",
    "jvp": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
out, t = torch.func.jvp(lambda w: (x @ w).tanh(), (w,), (torch.ones(4, 3),))
loss = t.sum() + out.sum()
""",
    "linearize": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
out, f = torch.func.linearize(lambda w: (x @ w).tanh(), w)
t = f(torch.ones(4, 3))
loss = t.sum() + out.sum()
""",
    "functionalize": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
def f(w):
    y = x @ w
    y.add_(1)
    return y.tanh()
y = torch.func.functionalize(f)(w)
loss = y.sum()
""",
    "functional_call": """
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
params = {k: (v * 2).detach().requires_grad_() for k, v in net.named_parameters()}
out = torch.func.functional_call(net, params, (torch.randn(5, 3),))
loss = out.sum()
""",
    "functional_call derived": """
net = torch.nn.Linear(3, 4)
s = torch.ones((), requires_grad=True)
params = {k: v * s for k, v in net.named_parameters()}
out = torch.func.functional_call(net, params, (torch.randn(5, 3),))
loss = out.pow(2).sum()
""",
    "ensemble": """
import copy
nets = [torch.nn.Linear(3, 2) for _ in range(4)]
params, buffers = torch.func.stack_module_state(nets)
base = copy.deepcopy(nets[0]).to('meta')
fmodel = lambda p, b, x: torch.func.functional_call(base, (p, b), (x,))
out = torch.func.vmap(fmodel, in_dims=(0, 0, None))(params, buffers, torch.randn(5, 3))
loss = out.pow(2).sum()
""",
    "per-sample diff": """
net = torch.nn.Linear(3, 2)
p = {k: v.detach() for k, v in net.named_parameters()}
X, Y = torch.randn(6, 3), torch.randint(0, 2, (6,))
def one(p, x, y):
    out = torch.func.functional_call(net, p, (x[None],))
    return torch.nn.functional.cross_entropy(out, y[None])
p = dict(net.named_parameters())
grads = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(p, X, Y)
loss = sum(g.pow(2).sum() for g in grads.values())
""",
    "nested transforms": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
f = lambda w: w.sin().sum()
h = torch.func.vmap(torch.func.grad(torch.func.grad(lambda t: t.pow(3))))(torch.arange(4.))
loss = (w.sum(1) * h).sum()
""",
    "backward inside grad": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
def f(w):
    y = (x @ w).tanh()
    (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
    return g.pow(2).sum()
g = torch.func.grad(f)(w)
loss = g.sum()
""",
    "dual level": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import torch.autograd.forward_ad as fwAD
with fwAD.dual_level():
    d = fwAD.make_dual(w, torch.ones_like(w))
    y = (x @ d).tanh()
    p, t = fwAD.unpack_dual(y)
loss = p.sum() + t.sum()
""",
    "dual no grad": """
import torch.autograd.forward_ad as fwAD
w=torch.randn(3)
with fwAD.dual_level():
    d = fwAD.make_dual(w, torch.ones_like(w))
    t = fwAD.unpack_dual(d.exp()).tangent
v = torch.ones(3, requires_grad=True)
loss=(v*t).sum()
""",
    "dual function": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import torch.autograd.forward_ad as fwAD
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x); ctx.save_for_forward(x)
        return x.exp()
    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()
    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0].exp()
with fwAD.dual_level():
    d = fwAD.make_dual(w, torch.ones_like(w))
    p, t = fwAD.unpack_dual(F.apply(d))
loss = p.sum() + t.sum()
""",
    "generate_vmap_rule": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
class F(torch.autograd.Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(x): return x.exp()
    @staticmethod
    def setup_context(ctx, inputs, output): ctx.save_for_backward(output)
    @staticmethod
    def backward(ctx, g): return g * ctx.saved_tensors[0]
y = torch.vmap(F.apply)(w)
z = F.apply(w)
loss = (y*z).sum()
""",
    "autocast": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
with torch.autocast('cpu', dtype=torch.bfloat16):
    out = net(x)
    loss = torch.nn.functional.cross_entropy(out, torch.tensor([0, 1, 2, 0, 1]))
""",
    "autocast fp16": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
with torch.autocast('cpu', dtype=torch.float16):
    out = net(x)
    loss = out.float().pow(2).mean()
""",
    "autocast decorator": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
@torch.autocast('cpu', dtype=torch.bfloat16)
def f(x):
    return net(x).float().pow(2).mean()
loss = f(x)
""",
    "ddp auto": """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
ddp = torch.nn.parallel.DistributedDataParallel(net)
x = torch.randn(5, 3)
loss = ddp(x).pow(2).sum()
dist.destroy_process_group()
""",
    "function mode inside": """
from torch.overrides import TorchFunctionMode
class M(TorchFunctionMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))
from torch.utils._python_dispatch import TorchDispatchMode
class D(TorchDispatchMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))
with M() as m:
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
calls = m.calls
""",
    "dispatch mode inside": """
from torch.overrides import TorchFunctionMode
class M(TorchFunctionMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))
from torch.utils._python_dispatch import TorchDispatchMode
class D(TorchDispatchMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))
with D() as m:
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
calls = m.calls
""",
    "modifying function mode": """
from torch.overrides import TorchFunctionMode
class Half(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 0.5 if func is torch.exp else out
w = torch.randn(3, requires_grad=True)
with Half():
    y = torch.exp(w)
loss = y.sum()
""",
    "flop counter auto": """
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
with FlopCounterMode(display=False) as f:
    loss = net(torch.randn(5, 4)).sum()
n = f.get_total_flops()
d = {k: {str(o): c for o, c in v.items()} for k, v in f.get_flop_counts().items()}
""",
    "logging mode": """
from torch.testing._internal.logging_tensor import LoggingTensorMode, capture_logs_with_logging_tensor_mode
with capture_logs_with_logging_tensor_mode() as logs:
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
n = list(logs)
""",
    "deterministic": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
torch.use_deterministic_algorithms(True)
try:
    e = torch.empty(3)
    idx = torch.tensor([0, 0, 1])
    y = w.index_add(0, idx, torch.ones(3, 3))
    loss = (x @ y).sum()
finally:
    torch.use_deterministic_algorithms(False)
""",
    "device context": """
with torch.device('cpu'):
    w = torch.ones(3, requires_grad=True)
    loss = (w*2).sum()
""",
    "base torch function": """
from torch.overrides import BaseTorchFunctionMode
with BaseTorchFunctionMode():
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
""",
    "disable torch function": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch._C.DisableTorchFunctionSubclass():
    y = x @ w
with torch._C.DisableTorchFunction():
    z = (y * 2).tanh()
loss = z.sum()
""",
    "saved tensors hooks": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), lambda a: torch.from_numpy(a)):
    y = (x @ w).exp()
loss = y.sum()
""",
    "save on cpu": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.autograd.graph.save_on_cpu():
    y = (x @ w).exp()
loss = y.sum()
""",
    "checkpoint sac": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, CheckpointPolicy
from functools import partial
ctx=partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
y=checkpoint(lambda w: (x@w).tanh().exp(), w, use_reentrant=False, context_fn=ctx)
loss=y.sum()
""",
    "inference part": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.inference_mode():
    y = x @ w
z = y.clone()
loss = (w * w).sum() + z.sum()
""",
    "inference decorator": """
net = torch.nn.Linear(3, 2)
@torch.inference_mode()
def f(x): return net(x).argmax(1)
p = f(torch.randn(4, 3))
loss = net(torch.randn(4, 3)).sum()
""",
    "set_grad": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
prev = torch.is_grad_enabled()
torch.set_grad_enabled(False)
y = x @ w
torch.set_grad_enabled(True)
loss = (x @ w).sum()
""",
    "enable grad decorators": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
@torch.no_grad()
def f(): return x @ w
@torch.enable_grad()
def g(): return x @ w
with torch.no_grad():
    a = g()
b = f()
loss = a.sum()
""",
    "unsafe version": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = w.exp()
z = y * 1
with torch.autograd._unsafe_preserve_version_counter(y):
    y.mul_(1)
loss=z.sum()
""",
    "jit script": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
@torch.jit.script
def f(a, b):
    h = a @ b
    return h.tanh()
y = f(x, w)
loss = y.sum()
""",
    "jit script module": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
s = torch.jit.script(net)
loss = s(x).pow(2).sum()
""",
    "jit save": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
import io
s = torch.jit.script(net)
b = io.BytesIO()
torch.jit.save(s, b)
b.seek(0)
l = torch.jit.load(b)
loss = l(x).pow(2).sum()
""",
    "jit ignore fork": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
def g(a):
    return a * 2
fut = torch.jit.fork(g, w)
loss = torch.jit.wait(fut).sum()
""",
    "fx relu": """
import torch.fx
class N(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.p = torch.nn.Parameter(torch.ones(3))
    def forward(self, x):
        y = torch.relu(x * self.p)
        return torch.softmax(y.tanh(), 0) * 2
g = torch.fx.symbolic_trace(N())
c = g.code
g.graph.lint()
loss = g(torch.randn(3)).sum()
""",
    "make_fx": """
from torch.fx.experimental.proxy_tensor import make_fx
def f(x):
    return torch.relu(x.tanh()) + torch.softmax(x, 0)
g = make_fx(f)(torch.randn(3))
c = g.code
w = torch.randn(3, requires_grad=True)
loss = g(w).sum()
""",
    "make_fx fake": """
from torch.fx.experimental.proxy_tensor import make_fx
def f(x):
    return torch.relu(x.tanh()) + torch.softmax(x, 0)
g = make_fx(f, tracing_mode='fake')(torch.randn(3))
c = g.code
g2 = make_fx(f, tracing_mode='symbolic')(torch.randn(3))
c2 = g2.code
w = torch.randn(3, requires_grad=True)
loss = g(w).sum()
""",
    "export relu": """
class N(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.p = torch.nn.Parameter(torch.ones(3))
    def forward(self, x):
        y = torch.relu(x * self.p)
        return torch.softmax(y.tanh(), 0) * 2
ep = torch.export.export(N(), (torch.randn(3),), strict=True)
c = ep.graph_module.code
loss = ep.module()(torch.randn(3)).sum()
""",
    "export dynamic": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
ep = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim('b')},))
c = ep.graph_module.code
loss = ep.module()(torch.randn(7, 4)).sum()
""",
    "thread": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import threading
out = []
def work():
    h = x @ w
    out.append(h.tanh())
t = threading.Thread(target=work)
t.start(); t.join()
del t
loss = out[0].sum()
""",
    "thread and main": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import threading
out = []
def work():
    for _ in range(50): out.append((x @ w).tanh())
ts = [threading.Thread(target=work) for _ in range(3)]
for t in ts: t.start()
for _ in range(50): h = (x @ w).exp()
for t in ts: t.join()
del t, ts, out
loss = h.sum()
""",
    "data parallel": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
dp = torch.nn.DataParallel(net)
loss = dp(x).pow(2).sum()
""",
    "fork": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import os
r, wr = os.pipe()
pid = os.fork()
if pid == 0:
    h = (x @ w).sum()
    os.write(wr, b'%.6f' % h.item())
    os._exit(0)
os.waitpid(pid, 0)
got = os.read(r, 100)
os.close(r); os.close(wr)
del pid, r, wr
loss = (x @ w).sum()
""",
    "profiler forward": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
from torch.profiler import profile, ProfilerActivity, record_function
with profile(activities=[ProfilerActivity.CPU]) as prof:
    loss = net(x).pow(2).sum()
names = sorted((e.key, e.count) for e in prof.key_averages() if e.key.startswith('aten::'))
del prof
""",
    "gc disable": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import gc
gc.disable()
try:
    loss = (x @ w).sum()
finally:
    gc.enable()
""",
    "grad of nonleaf warns": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = x @ w
g = y.grad
loss = y.sum()
""",
    "tracemalloc": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import tracemalloc
tracemalloc.start()
loss = (x @ w).tanh().sum()
tracemalloc.stop()
""",
    "cond": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
from torch._higher_order_ops.cond import cond
loss = torch.cond(x.sum() > 0, lambda w: (x @ w).sin().sum(), lambda w: (x @ w).cos().sum(), (w,))
""",
    "while_loop and associative_scan": """
from torch._higher_order_ops import associative_scan, while_loop
w = torch.randn(4, requires_grad=True)
h = associative_scan(lambda a, b: a * b, w.sigmoid(), 0, combine_mode="generic")
with torch.no_grad():
    i, x = while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), torch.ones(4)))
loss = (h * x).sum()
""",
    "custom op": """
Tensor = torch.Tensor
@torch.library.custom_op("mylib_TAG::scale", mutates_args=())
def scale(x: Tensor, s: float) -> Tensor:
    return x * s
scale.register_autograd(lambda ctx, g: (g * ctx.s, None), setup_context=lambda ctx, inputs, output: setattr(ctx, "s", inputs[1]))
w = torch.ones(3, requires_grad=True)
y = scale(w, 3.0)
loss = y.sum()
del scale, Tensor
""",
}

BESIDE_OTHERS = {
    "vjp": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
out, f = torch.func.vjp(lambda w: (x @ w).tanh(), w)
(g,) = f(torch.ones(5, 3))
loss = g.sum() + out.sum()
""",
    "autograd.functional": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
J = torch.autograd.functional.jacobian(lambda w: (x @ w).sum(0), w, create_graph=True)
H = torch.autograd.functional.hessian(lambda w: (x @ w).tanh().sum(), w)
loss = (J * w).sum() + (H.detach().sum() * w).sum()
""",
    "autograd.functional vec": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
J = torch.autograd.functional.jacobian(lambda w: (x @ w).tanh().sum(0), w, vectorize=True)
o,v = torch.autograd.functional.vhp(lambda w: (x @ w).tanh().sum(), w, torch.ones(4,3))
o,v2 = torch.autograd.functional.jvp(lambda w: (x @ w).tanh().sum(), w, torch.ones(4,3))
loss = (J.sum() * w).sum()
""",
    "is_grads_batched": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = (x @ w).tanh().sum(0)
(J,) = torch.autograd.grad(y, w, torch.eye(3), is_grads_batched=True, retain_graph=True)
loss = y.sum()
""",
}

OWN = {
    "func.grad none": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
g = torch.func.grad(lambda w: (x @ w).tanh().sum())(w.detach())
""",
    "vmap error": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
y = torch.func.vmap(lambda r: (r @ w).sum().item())(x)
""",
    "per-sample": """
net = torch.nn.Linear(3, 2)
p = {k: v.detach() for k, v in net.named_parameters()}
X, Y = torch.randn(6, 3), torch.randint(0, 2, (6,))
def one(p, x, y):
    out = torch.func.functional_call(net, p, (x[None],))
    return torch.nn.functional.cross_entropy(out, y[None])
grads = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(p, X, Y)
""",
    "backward inside raises": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
def f(w):
    y = (x @ w).tanh().sum()
    y.backward()
    return y
g = torch.func.grad(f)(w)
""",
    "gradscaler": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
opt = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(3):
    opt.zero_grad()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = net(x).float().pow(2).mean()
    scaler.scale(loss).backward()
    scaler.unscale_(opt)
    n = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
    scaler.step(opt)
    scaler.update()
s = scaler.get_scale()
""",
    "gradscaler inf": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
opt = torch.optim.Adam(net.parameters(), 0.1)
loss = net(x).sum() * float('inf')
scaler.scale(loss).backward()
scaler.step(opt)
scaler.update()
s = scaler.get_scale()
""",
    "ddp": """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
try:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    x = torch.randn(5, 3)
    opt = torch.optim.SGD(ddp.parameters(), 0.1)
    with ddp.no_sync():
        ddp(x).pow(2).sum().backward()
    for _ in range(2):
        loss = ddp(x).pow(2).sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
    g = torch.ones(3)
    dist.all_reduce(g)
    del ddp
finally:
    dist.destroy_process_group()
""",
    "fsdp": """
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
try:
    mesh = init_device_mesh("cpu", (1,))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    fully_shard(net, mesh=mesh)
    loss = net(torch.randn(5, 3)).pow(2).sum()
    loss.backward()
    gs = [p.grad.to_local() for p in net.parameters()]
    n = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    torch.optim.SGD(net.parameters(), 0.1).step()
    ws = [p.to_local().detach() for p in net.parameters()]
    del net, mesh, n
finally:
    dist.destroy_process_group()
""",
    "all_reduce autograd": """
import torch.distributed as dist
import torch.distributed.nn.functional as df
import warnings
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
w = torch.ones(3, requires_grad=True)
y = df.all_reduce(w * 2)
loss = y.sum()
loss.backward()
dist.destroy_process_group()
""",
    "dispatch mode inside backward": """
from torch.overrides import TorchFunctionMode
class M(TorchFunctionMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))
from torch.utils._python_dispatch import TorchDispatchMode
class D(TorchDispatchMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))
with D() as m:
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
    loss.backward()
calls = m.calls
""",
    "function mode inside backward": """
from torch.overrides import TorchFunctionMode
class M(TorchFunctionMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))
from torch.utils._python_dispatch import TorchDispatchMode
class D(TorchDispatchMode):
    def __init__(self): super().__init__(); self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))
with M() as m:
    w = torch.randn(4, 3, requires_grad=True)
    h = (torch.randn(5, 4) @ w).sin()
    h[0] = 1.
    u, s, v = torch.svd(h)
    loss = s.sum()
    loss.backward()
    g = w.grad
calls = m.calls
""",
    "flop counter": """
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
with FlopCounterMode(display=False) as f:
    loss = net(torch.randn(5, 4)).sum()
    loss.backward()
n = f.get_total_flops()
d = {k: {str(o): c for o, c in v.items()} for k, v in f.get_flop_counts().items()}
""",
    "deterministic backward": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
torch.use_deterministic_algorithms(True)
try:
    loss = (x @ w).sum()
    loss.backward()
finally:
    torch.use_deterministic_algorithms(False)
""",
    "multi grad hook": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
n=[]
y=x@w
h=torch.autograd.graph.register_multi_grad_hook([w,y], lambda gs: n.append([None if g is None else g.norm() for g in gs]))
loss=y.pow(2).sum()
loss.backward()
""",
    "allow mutation": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.autograd.graph.allow_mutation_on_saved_tensors():
    y = w.exp()
    z = y * y
    y.add_(1)
    loss = z.sum()
    loss.backward()
""",
    "inference whole": """
with torch.inference_mode():
    net = torch.nn.Linear(3, 2)
    y = net(torch.randn(4, 3))
    y.add_(1)
    l = y.sum()
""",
    "inference error": """
w = torch.randn(3, requires_grad=True)
with torch.inference_mode():
    y = torch.ones(3)
l = (w * y).sum()
l.backward()
""",
    "inference inplace error": """
with torch.inference_mode():
    y = torch.ones(3)
y.add_(1)
""",
    "set_grad left": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
torch.set_grad_enabled(False)
y = x @ w
g=torch.is_grad_enabled()
torch.set_grad_enabled(True)
""",
    "multithreading off": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.autograd.set_multithreading_enabled(False):
    loss = (x @ w).sum()
    loss.backward()
""",
    "make_fx grad": """
from torch.fx.experimental.proxy_tensor import make_fx
def f(x):
    y = torch.relu(x.tanh()).sum()
    return torch.autograd.grad(y, x)
g = make_fx(f)(torch.randn(3, requires_grad=True))
c = g.code
w = torch.randn(3, requires_grad=True)
l = torch.randn(3)
""",
    "anomaly": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
with torch.autograd.set_detect_anomaly(True):
    y = (x @ w).tanh()
    loss = y.sum()
    loss.backward()
""",
    "anomaly nan": """
torch.autograd.set_detect_anomaly(True)
try:
    w = torch.zeros(3, requires_grad=True)
    y = w.sqrt() * 0
    loss = y.sum()
    loss.backward()
finally:
    torch.autograd.set_detect_anomaly(False)
""",
    "anomaly module nan": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
with torch.autograd.detect_anomaly():
    y = net(x)
    z = torch.sqrt(y * 0)
    z.sum().backward()
""",
    "dataloader": """
from torch.utils.data import DataLoader, TensorDataset
ds = TensorDataset(torch.randn(8, 4), torch.randint(0, 3, (8,)))
net = torch.nn.Linear(4, 3)
losses = []
for a, b in DataLoader(ds, batch_size=4, shuffle=True, num_workers=2):
    loss = torch.nn.functional.cross_entropy(net(a), b)
    loss.backward()
    losses.append(loss.item())
del ds
""",
    "profiler": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
from torch.profiler import profile, ProfilerActivity, record_function
with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
    with record_function('fwd'):
        loss = net(x).pow(2).sum()
    loss.backward()
names = sorted((e.key, e.count) for e in prof.key_averages() if e.key.startswith('aten::') and 'detach' not in e.key)
del prof
""",
    "warnings error": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import warnings
with warnings.catch_warnings():
    warnings.simplefilter('error')
    y = torch.tensor(w)
""",
    "warnings error fine": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
import warnings
with warnings.catch_warnings():
    warnings.simplefilter('error')
    loss = net(x).pow(2).sum()
    loss.backward()
""",
    "warnings error sparse": """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter('error')
    e = torch.nn.Embedding(4, 3, sparse=True)
    s = torch.optim.SGD(e.parameters(), 0.1)
    loss = e(torch.tensor([1])).sum()
    loss.backward()
    s.step()
""",
    "vjp of nn module buffers": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
params = dict(net.named_parameters())
def lossf(p, x): return torch.func.functional_call(net, p, (x,)).pow(2).sum()
g = torch.func.grad(lossf)(params, x)
for k, p in net.named_parameters():
    p.grad = g[k].detach()
opt = torch.optim.SGD(net.parameters(), 0.1)
opt.step()
""",
}


@pytest.mark.parametrize("name", FROM_LOSS)
def test_backward_by_gradtrace_gives_every_gradient_of_plain_pytorch(name: str) -> None:
    """Values, gradients of all nodes, warnings and random numbers are those of the untraced cell."""
    assert_alike(FROM_LOSS[name])


@pytest.mark.parametrize("name", BESIDE_OTHERS)
def test_passes_of_the_cells_own_stand_beside_that_of_gradtrace(name: str) -> None:
    """``autograd.grad`` and what is built on it has run in the cell; the gradients below the loss are all there."""
    assert_alike(BESIDE_OTHERS[name], several=True)


@pytest.mark.parametrize("name", OWN)
def test_a_cell_with_an_end_of_its_own_ends_as_in_plain_pytorch(name: str) -> None:
    """It runs backward itself, or an optimizer, or fails: values, `.grad`, errors and warnings are those of the untraced cell."""
    assert_alike(OWN[name], nodes=None)


@pytest.mark.parametrize(
    "source",
    [
        "parts = [torch.vmap(lambda r: (r @ w).tanh(), chunk_size=2)(x)]",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n"
        "    parts = list(pool.map(lambda i: (x[i] @ w).tanh(), range(5)))",
    ],
    ids=["vmap in chunks", "pool of threads"],
)
def test_what_is_made_out_of_sight_has_its_result_as_rows(source: str) -> None:
    """The order in which threads add up their gradients is PyTorch's own; the sum is that of the plain run."""
    made = "w = torch.randn(4, 3, requires_grad=True)\nx = torch.randn(5, 4)\n"
    report, namespace = run_traced(f"{made}{source}\nloss = torch.cat([part.reshape(-1) for part in parts]).sum()\n")
    x, w = namespace["x"], namespace["w"].detach().requires_grad_()
    (x @ w).tanh().sum().backward()
    torch.testing.assert_close(namespace["w"].grad, w.grad)
    assert report["w"].grad.norm == pytest.approx(float(w.grad.norm()))


# ---- compiled code

COMPILED = """
seen = []
def backend(graph, inputs):
    seen.append(graph.code)
    return graph.forward
x, w = torch.ones(5, 4), torch.ones(4, 3, requires_grad=True)
@torch.compile(backend=backend{options})
def f(x, w):
    h = x @ w
    return h.tanh()
"""
USED = "loss = f(x, w).sum()\nagain = f(x, w).sum()\n"


def namespace_of(source: str) -> dict[str, Any]:
    """Run it plainly, as an earlier cell."""
    module = ModuleType(f"earlier_{next(_numbers)}")
    sys.modules[module.__name__] = module  # dynamo looks a function's globals up there
    module.__dict__["torch"] = torch
    exec(compile(source, "<earlier>", "exec"), module.__dict__)
    return module.__dict__


_numbers = itertools.count()


@pytest.mark.parametrize("options", ["", ", fullgraph=True", ", dynamic=True"])
def test_code_compiled_in_an_earlier_cell_runs_eagerly_while_traced_and_is_not_compiled_again(options: str) -> None:
    """Its inside has rows; afterwards the compiled code is what it was."""
    namespace = namespace_of(COMPILED.format(options=options) + "f(x, w)\n")
    counters = copy.deepcopy(torch._dynamo.utils.counters)
    with trace(namespace=namespace) as run:
        exec(compile(USED, "<cell>", "exec"), namespace)
    assert run.report is not None
    assert {"matmul", "tanh", "sum"} <= {row.op for row in run.report.rows}
    namespace["f"](namespace["x"], namespace["w"])
    assert len(namespace["seen"]) == 1
    assert torch._dynamo.utils.counters == counters
    assert torch._dynamo.eval_frame._stance.stance == "default"


FRESH = """
import sys, torch
from gradmagic.tracing import trace
assert "torch._dynamo" not in sys.modules
with trace(namespace=globals()) as run:
{cell}
{check}
"""
AS_PLAIN = """
assert [code.count("(") for code in seen] == [4], seen  # forward, matmul, tanh, and the tuple
assert run.report["w"].grad is not None
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("cell", "check"),
    [
        pytest.param(COMPILED.format(options="") + USED, AS_PLAIN, marks=pytest.mark.slow),
        (COMPILED.format(options=", fullgraph=True") + USED, AS_PLAIN),
        pytest.param(
            "x, w = torch.ones(5, 4), torch.ones(4, 3, requires_grad=True)\n"
            "(loss,) = [torch.cond(x.sum() > 0, lambda w: (x @ w).sin().sum(), lambda w: w.cos().sum(), (w,))]\n",
            "import math\nassert run.report['w'].grad.values is None\n"
            "assert abs(run.report['w'].grad.max - 5 * math.cos(4)) < 1e-5",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["compiled", "fullgraph", "cond"],
)
def test_dynamo_imported_first_by_the_traced_cell_does_not_compile_the_recorder(
    cell: str, check: str, tmp_path: Path
) -> None:
    """The graph is the one of the untraced cell, compiled once; nothing of gradmagic's is in it."""
    script = tmp_path / "fresh.py"
    script.write_text(FRESH.format(cell=textwrap.indent(cell, "    "), check=check))
    ran = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
def test_torch_jit_trace_takes_down_the_persons_operations_only() -> None:
    """The graph has the operations and lines of the untraced one; only names of values come from Python's frames."""

    def kinds(graph: Any) -> list[tuple[str, str]]:
        return [(node.kind(), node.sourceRange().partition("\n")[0].rpartition(": ")[0]) for node in graph.nodes()]

    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x) * 2
        return torch.relu(y) + torch.softmax(y, 0)

    plain = torch.jit.trace(f, torch.ones(3)).graph
    with trace(backward="none"):
        traced = torch.jit.trace(f, torch.ones(3)).graph
    assert kinds(traced) == kinds(plain)


# ---- modes, tracers


class Logging(TorchDispatchMode):
    """Lists the operations it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_around_a_trace_see_the_cell_and_nothing_of_gradtraces() -> None:
    """A counter of operations around the trace counts those of the cell, and no backward that it did not run."""

    def cell() -> None:
        w = torch.ones(3, 3, requires_grad=True)
        (w @ w).relu().sum()

    def traced() -> None:
        with trace() as run:
            w = torch.ones(3, 3, requires_grad=True)
            loss = (w @ w).relu().sum()
        assert loss.requires_grad
        assert run.report is not None
        assert run.report.root is not None

    seen = []
    for program in (cell, traced):
        with FlopCounterMode(display=False) as flops, Logging() as log:
            program()
        seen.append((flops.get_total_flops(), log.calls))
    assert seen[0] == seen[1]


def test_a_default_device_that_the_cell_sets_stays_set() -> None:
    """`torch.set_default_device` is a mode of its own, and outlives the cell."""
    report, namespace = run_traced(
        "w = torch.ones(2, requires_grad=True)\ntorch.set_default_device('meta')\nv = torch.ones(2)\n"
    )
    try:
        assert namespace["v"].is_meta
        assert torch.ones(2).is_meta
    finally:
        torch.set_default_device(None)
    assert report["v"].device == "meta"
    assert not _get_current_function_mode_stack()


def test_a_trace_function_of_the_persons_sees_the_same_lines() -> None:
    """Coverage and debuggers are told the same lines; frames of the recorder's come on top."""
    source = (
        "import sys\nlines = set()\ndef tracer(frame, event, arg):\n"
        "    if frame.f_code.co_name in ('body', '<gradtrace call>'): lines.add(frame.f_lineno)\n    return tracer\n"
        "def body():\n    w = torch.ones(2, requires_grad=True)\n    return (w * 2).sum()\n"
        "before = sys.gettrace()\nsys.settrace(tracer)\nloss = body()\nsys.settrace(before)\n"
    )
    plain: dict[str, Any] = {"torch": torch}
    exec(compile(source, "<cell>", "exec"), plain)
    report, namespace = run_traced(source)
    assert namespace["lines"] == plain["lines"] == {6, 7, 8}
    assert report["w"].grad.values == (2.0, 2.0)


def test_anomaly_mode_tells_the_persons_lines_when_backward_runs_after_the_trace() -> None:
    """The trace has walked the graph, and has taken its own lines out."""
    with torch.autograd.set_detect_anomaly(True), pytest.warns(UserWarning, match="mode will increase"):
        torch.autograd.detect_anomaly()
    with torch.autograd.set_detect_anomaly(True):
        report, namespace = run_traced(
            "w = torch.ones(2, requires_grad=True)\nh = torch.nn.functional.relu(w)\nloss = h.sum()\n"
        )
        told = "".join(namespace["h"].grad_fn.metadata["traceback_"])
    assert report["h"].grad is not None
    assert "gradmagic" not in told
    assert "gradtrace" not in told
    assert "torch.nn.functional.relu(w)" in told


@pytest.mark.parametrize(
    "target", ["l.backward", "lambda: (w * 3).sum().backward()"], ids=["of the cell", "of its own"]
)
def test_a_backward_that_a_thread_runs_is_disclosed_and_none_is_added(target: str) -> None:
    """`.grad` is that of the thread's backward, as without gradtrace, and nothing is called an error."""
    report, namespace = run_traced(
        "import threading\nw = torch.ones(2, requires_grad=True)\nl = (w * 3).exp().log().sum()\n"
        f"thread = threading.Thread(target={target})\nthread.start()\nthread.join()\n"
    )
    torch.testing.assert_close(namespace["w"].grad, torch.tensor([3.0, 3.0]))
    assert [found.kind for found in report.findings] == ["ran_elsewhere"]
    assert "`w`" in report.findings[0].message
    assert not report.passes


def test_a_gradient_that_was_there_or_is_given_by_hand_is_no_sign_of_a_backward() -> None:
    """Gradtrace adds its own, as always."""
    w = torch.ones(2, requires_grad=True)
    w.grad = torch.ones(2)
    report, namespace = run_traced(
        "v = torch.ones(2, requires_grad=True)\nv.grad = w.grad\nloss = (w * v).sum()\n", w=w
    )
    assert [done.run_by for done in report.passes] == ["gradtrace"]
    assert namespace["v"].grad.tolist() == [2.0, 2.0]
