"""Tensors that are no plain strided ones, and what else a tensor can be made of: traced as in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from alike import assert_alike
from plain import run_traced

from gradmagic.tracing import trace

FROM_LOSS = {
    "complex": """
w = torch.randn(3, dtype=torch.cfloat, requires_grad=True)
z = w * w.conj()
f = torch.fft.fft(w)
r = torch.view_as_real(f)
c = torch.view_as_complex(r * 2)
loss = z.real.sum() + c.abs().sum() + w.imag.exp().sum() + f.angle().sum()
""",
    "complex cdouble inplace": """
w = torch.randn(3, dtype=torch.cdouble, requires_grad=True)
y = w * 2
y.imag.mul_(3)
y.real[0] = 1.
loss = y.abs().pow(2).sum()
""",
    "complex module": """
l = torch.nn.Linear(3, 2, dtype=torch.cfloat)
loss = l(torch.randn(4, 3, dtype=torch.cfloat)).abs().sum()
""",
    "embedding sparse": """
e = torch.nn.Embedding(10, 3, sparse=True)
out = e(torch.tensor([1, 2, 1]))
loss = out.pow(2).sum()
""",
    "embedding_bag sparse": """
e = torch.nn.EmbeddingBag(10, 3, sparse=True, mode='sum')
loss = e(torch.tensor([[1, 2], [1, 3]])).pow(2).sum()
""",
    "sparse mm": """
i = torch.tensor([[0, 1, 1], [2, 0, 2]])
v = torch.tensor([3., 4., 5.], requires_grad=True)
S = torch.sparse_coo_tensor(i, v, (2, 3))
d = torch.randn(3, 4, requires_grad=True)
y = torch.sparse.mm(S, d)
loss = y.pow(2).sum()
""",
    "sparse coo ops": """
S = torch.randn(3, 4).relu().to_sparse().requires_grad_()
y = (S * 2).coalesce()
z = y.to_dense()
t = torch.sparse.sum(S)
loss = z.sum() + t
""",
    "sparse softmax": """
w = torch.randn(3, 4, requires_grad=True)
S = w.to_sparse()
y = torch.sparse.softmax(S, 1)
loss = y.to_dense().pow(2).sum()
""",
    "csr": """
w = torch.randn(3, 4, requires_grad=True)
S = w.to_sparse_csr()
y = S @ torch.randn(4, 2)
loss = y.pow(2).sum()
""",
    "csr leaf": """
S = torch.randn(3, 4).relu().to_sparse_csr().requires_grad_()
y = S @ torch.randn(4, 2)
loss = y.pow(2).sum()
""",
    "mkldnn": """
w = torch.randn(4, 4, requires_grad=True)
S = w.to_mkldnn()
y=S.relu()
loss = y.to_dense().pow(2).sum()
""",
    "nested jagged": """
a = torch.randn(2, 3, requires_grad=True)
b = torch.randn(4, 3, requires_grad=True)
n = torch.nested.as_nested_tensor([a, b], layout=torch.jagged)
lin = torch.nn.Linear(3, 5)
y = torch.tanh(lin(n))
p = torch.nested.to_padded_tensor(y, 0.)
loss = p.pow(2).sum() + y.values().sum()
""",
    "nested leaf": """
n = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged, requires_grad=True)
y = n * 2
loss = y.values().pow(2).sum()
""",
    "nested leaf strided": """
n = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], requires_grad=True)
y = n * 2
u=y.unbind()
loss = u[0].pow(2).sum()+u[1].exp().sum()
""",
    "nested sdpa": """
q = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(4, 8)], layout=torch.jagged, requires_grad=True)
k=q.unflatten(-1,[2,4]).transpose(1,2)
o=torch.nn.functional.scaled_dot_product_attention(k,k,k)
loss=o.transpose(1,2).values().pow(2).sum()
""",
    "nested encoder": """
l=torch.nn.TransformerEncoderLayer(8,2,16,batch_first=True,dropout=0.)
m=torch.nn.TransformerEncoder(l,2)
x=torch.randn(2,5,8)
mask=torch.tensor([[False]*5,[False]*3+[True]*2])
loss=m(x,src_key_padding_mask=mask).pow(2).sum()
""",
    "quantized": """
w = torch.randn(3, requires_grad=True)
q = torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)
d = q.dequantize()
y = torch.fake_quantize_per_tensor_affine(w, 0.1, 0, -128, 127)
loss = y.sum()
""",
    "quantized dynamic": """
net = torch.nn.Sequential(torch.nn.Linear(4,4))
q = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=torch.qint8)
y = q(torch.randn(2,4))
w = torch.ones(4, requires_grad=True)
loss=(y*w).sum()
""",
    "meta to_empty": """
with torch.device('meta'):
    net = torch.nn.Linear(3, 2)
net.to_empty(device='cpu')
for p in net.parameters(): torch.nn.init.ones_(p)
loss = net(torch.randn(5, 3)).pow(2).sum()
""",
    "default device": """
torch.set_default_device('meta')
try:
    w = torch.ones(3, requires_grad=True)
    l = (w * 2).sum()
finally:
    torch.set_default_device(None)
v=torch.ones(2,requires_grad=True)
loss=v.sum()
""",
    "default dtype": """
torch.set_default_dtype(torch.float64)
try:
    w = torch.ones(3, requires_grad=True)
    loss = (w * 2.5).exp().sum()
finally:
    torch.set_default_dtype(torch.float32)
""",
    "fake mixed": """
from torch._subclasses.fake_tensor import FakeTensorMode
v = torch.ones(2, requires_grad=True)
with FakeTensorMode() as m:
    w = torch.randn(3, requires_grad=True)
    y = w * 2
loss = (v*2).sum()
""",
    "fake real input": """
from torch._subclasses.fake_tensor import FakeTensorMode
v = torch.ones(2, requires_grad=True)
with FakeTensorMode() as m:
    y = v * 2
loss = (v*2).sum()
""",
    "fake from": """
from torch._subclasses.fake_tensor import FakeTensorMode
v = torch.ones(2, requires_grad=True)
m=FakeTensorMode()
f=m.from_tensor(v)
with m:
    y = f * 2
    s=y.sum()
loss = (v*2).sum()
""",
    "subclass": """
class Sub(torch.Tensor): pass
w = torch.randn(3).as_subclass(Sub).requires_grad_()
y = w * 2
z = torch.relu(y) + y[0]
loss = z.sum()
""",
    "subclass with __torch_function__": """
class Sub(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        _calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})
_calls = []
w = torch.randn(3).as_subclass(Sub).requires_grad_()
y = w * 2
z = torch.relu(y) + y[0]
loss = z.sum()
n = list(_calls)
""",
    "no tensor, but with __torch_function__": """
class Meta:
    def __init__(self, data, unit): self.data_ = torch.as_tensor(data); self.unit = unit
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        units = [a.unit for a in args if isinstance(a, Meta)]
        args = [getattr(a, "data_", a) for a in args]
        return Meta(func(*args, **(kwargs or {})), units[0])
    def __mul__(self, o): return torch.mul(self, o)
w = torch.ones(3, requires_grad=True)
m = torch.mul(Meta(w * 1, "kg"), 2)
loss = torch.sum(m).data_
""",
    "subclass that disables __torch_function__": """
class S(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl
w = S(torch.ones(3)).requires_grad_()
y = w * 2
loss = y.sum()
""",
    "logging tensor": """
from torch.testing._internal.logging_tensor import LoggingTensor, capture_logs
with capture_logs() as logs:
    w = LoggingTensor(torch.ones(3), requires_grad=True)
    y = w * 2
    l = y.sum()
n = list(logs)
v = torch.ones(2, requires_grad=True)
loss = v.sum()
""",
    "param subclass": """
class P(torch.nn.Parameter): pass
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = P(torch.ones(3))
    def forward(self, x): return x * self.w
net = Net()
loss = net(torch.ones(2, 3)).sum()
""",
    "uninit param": """
lin = torch.nn.LazyLinear(3)
conv = torch.nn.LazyConv1d(2, 1)
y = lin(torch.randn(2, 4))
z = conv(torch.randn(2, 3, 5))
loss = y.sum() + z.sum()
""",
    "buffer": """
b = torch.nn.Buffer(torch.ones(3))
m = torch.nn.Module()
m.b = b
w = torch.ones(3, requires_grad=True)
loss=(w * m.b).sum()
""",
    "numpy": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import numpy as np
a = np.asarray(x)
b = x.numpy() * np.float32(2)
y = (x * np.float32(2.0)) @ w
z = np.float64(3.0) * y
k = y.detach().numpy().sum()
u = torch.from_numpy(b)
m = np.add(x, x)
loss = z.sum() * k + (u @ w).sum()
""",
    "dlpack": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
d = torch.utils.dlpack.to_dlpack(x)
u = torch.from_dlpack(x)
loss = (u @ w).sum()
del d
""",
    "save load": """
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4)
import io, copy, pickle
b = io.BytesIO()
torch.save(net.state_dict(), b)
b.seek(0)
sd = torch.load(b)
net2 = copy.deepcopy(net)
net2.load_state_dict(sd)
net3 = pickle.loads(pickle.dumps(net))
t = pickle.loads(pickle.dumps(torch.ones(3, requires_grad=True)))
loss = net2(x).sum() + net3(x).sum() + net(x).sum() + t.sum()
""",
    "pickle nonleaf": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import pickle
y = x @ w
c = pickle.loads(pickle.dumps(y))
loss = y.sum()
""",
    "package": """
import io, torch.package
net = torch.nn.Linear(3, 2)
b = io.BytesIO()
with torch.package.PackageExporter(b) as e:
    e.extern("**")
    e.save_pickle("m", "net.pkl", net)
b.seek(0)
_im = torch.package.PackageImporter(b)
net2 = _im.load_pickle("m", "net.pkl")
loss = net2(torch.ones(1, 3)).sum()
del e
""",
    "set_device decorator": """
from torch.utils._device import set_device
@set_device('meta')
def f():
    return torch.ones(3)
m = f()
w = torch.ones(3, requires_grad=True)
loss = w.sum()
""",
}

OWN = {
    "backward of a complex loss raises": """
w = torch.randn(3, dtype=torch.cfloat, requires_grad=True)
l = (w * w).sum()
l.backward()
""",
    "embedding sparse step": """
e = torch.nn.Embedding(10, 3, sparse=True)
opt = torch.optim.SparseAdam(list(e.parameters()))
for _ in range(3):
    opt.zero_grad()
    loss = e(torch.tensor([1, 2, 1])).pow(2).sum()
    loss.backward()
    opt.step()
""",
    "embedding sparse sgd": """
e = torch.nn.Embedding(10, 3, sparse=True)
opt = torch.optim.SGD(e.parameters(), 0.1)
for _ in range(2):
    loss = e(torch.tensor([1, 2, 1])).pow(2).sum()
    loss.backward()
    opt.step()
""",
    "embedding sparse accumulate": """
e = torch.nn.Embedding(10, 3, sparse=True)
l1 = e(torch.tensor([1, 2, 1])).pow(2).sum()
l1.backward()
loss = e(torch.tensor([1, 5])).pow(2).sum()
loss.backward()
g=e.weight.grad
""",
    "meta": """
net = torch.nn.Linear(3, 2, device='meta')
x = torch.randn(5, 3, device='meta')
y = net(x)
loss = y.pow(2).sum()
loss.backward()
""",
    "meta with": """
with torch.device('meta'):
    net = torch.nn.Linear(3, 2)
    x = torch.randn(5, 3)
loss = net(x).pow(2).sum()
loss.backward()
""",
    "fake": """
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    w = torch.randn(3, requires_grad=True)
    y = w * 2
    l = y.sum()
    l.backward()
v = torch.ones(2, requires_grad=True)
loss = v.sum()
""",
    "subclass with __torch_function__, backward in the cell": """
class Sub(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        _calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})
_calls = []
w = torch.randn(3).as_subclass(Sub).requires_grad_()
y = w * 2
loss = y.sum()
loss.backward()
g = w.grad
n = list(_calls)
""",
    "subclass with __torch_dispatch__": """
from torch.utils._pytree import tree_map
class Wrap(torch.Tensor):
    @staticmethod
    def __new__(cls, elem):
        return torch.Tensor._make_wrapper_subclass(cls, elem.shape, dtype=elem.dtype, device=elem.device, requires_grad=elem.requires_grad)
    def __init__(self, elem): self.elem = elem
    def __repr__(self): return f"Wrap({self.elem})"
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        _ops.append(str(func))
        un = lambda t: t.elem if isinstance(t, Wrap) else t
        wr = lambda t: Wrap(t) if isinstance(t, torch.Tensor) else t
        return tree_map(wr, func(*tree_map(un, args), **tree_map(un, kwargs or {})))
_ops = []
w = Wrap(torch.ones(3)).requires_grad_()
y = w * 2
z = y.exp()
ops_forward = list(_ops)
v = torch.ones(3, requires_grad=True)
l = z.sum()
l.backward()
loss = v.sum()
""",
    "subclass with __torch_dispatch__ that counts backward": """
from torch.utils._pytree import tree_map
class Wrap(torch.Tensor):
    @staticmethod
    def __new__(cls, elem):
        return torch.Tensor._make_wrapper_subclass(cls, elem.shape, dtype=elem.dtype, device=elem.device, requires_grad=elem.requires_grad)
    def __init__(self, elem): self.elem = elem
    def __repr__(self): return f"Wrap({self.elem})"
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        _ops.append(str(func))
        un = lambda t: t.elem if isinstance(t, Wrap) else t
        wr = lambda t: Wrap(t) if isinstance(t, torch.Tensor) else t
        return tree_map(wr, func(*tree_map(un, args), **tree_map(un, kwargs or {})))
_ops = []
w = Wrap(torch.ones(3)).requires_grad_()
y = w * 2
z = y.exp()
loss=z.sum()
del y,z
loss.backward()
n = list(_ops)
""",
    "two tensor": """
from torch.testing._internal.two_tensor import TwoTensor
w = TwoTensor(torch.randn(3), torch.randn(3)).requires_grad_()
y = w * 2
loss = y.exp().sum()
loss.backward()
""",
    "two tensor module": """
from torch.testing._internal.two_tensor import TwoTensor
lin = torch.nn.Linear(3, 2)
lin.weight = torch.nn.Parameter(TwoTensor(lin.weight.detach(), lin.weight.detach() * 2))
y = lin(torch.randn(4, 3))
l = y.pow(2).sum()
l.backward()
v = torch.ones(2)
""",
    "masked": """
from torch.masked import masked_tensor
w = masked_tensor(torch.randn(3), torch.tensor([True, False, True]), requires_grad=True)
y = w * 2
l = y.sum()
l.backward()
""",
    "dtensor": """
import os
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor, Replicate, Shard
from torch.distributed.device_mesh import init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
try:
    mesh = init_device_mesh("cpu", (1,))
    w = distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)]).requires_grad_()
    y = w * 2
    loss = y.to_local().pow(2).sum()
    z = (w @ distribute_tensor(torch.randn(3, 2), mesh, [Replicate()])).sum().full_tensor()
    loss = loss + z
    loss.backward()
    g = w.grad.to_local()
finally:
    dist.destroy_process_group()
del mesh
""",
    "numpy mult left": """
import numpy as np
w = torch.ones(3, requires_grad=True)
y = np.ones(3, dtype=np.float32) * w
""",
    "deepcopy nonleaf raises": """
w = torch.randn(4, 3, requires_grad=True)
x = torch.randn(5, 4)
import copy
y = x @ w
c = copy.deepcopy(y)
""",
}


@pytest.fixture(autouse=True)
def _others_logs_may_be_odd(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a LoggingTensor logs has other arguments than its format; a test would fail because pytest listens."""
    monkeypatch.setattr(type(caplog.handler), "handleError", lambda *_: None)


@pytest.mark.parametrize("name", FROM_LOSS)
def test_backward_by_gradtrace_gives_every_gradient_of_plain_pytorch(name: str) -> None:
    """Values, gradients of all nodes, warnings and random numbers are those of the untraced cell."""
    assert_alike(FROM_LOSS[name])


@pytest.mark.parametrize("name", OWN)
def test_a_cell_with_an_end_of_its_own_ends_as_in_plain_pytorch(name: str) -> None:
    """It runs backward itself, or an optimizer, or fails: values, `.grad`, errors and warnings are those of the untraced cell."""
    assert_alike(OWN[name], nodes=None)


def test_a_sparse_gradient_is_measured_by_its_coalesced_values() -> None:
    """`embedding(sparse=True)` looks up row 1 twice: two stored rows, whose values are added up."""
    report, namespace = run_traced(
        "e = torch.nn.Embedding(10, 3, sparse=True)\nloss = e(torch.tensor([1, 2, 1])).sum()\n"
    )
    gradient = report["e.weight"].grad
    assert namespace["e"].weight.grad.is_sparse
    assert gradient.values == (2.0, 2.0, 2.0, 1.0, 1.0, 1.0)
    assert gradient.numel == 6


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("w = torch.ones(3, requires_grad=True, device='meta')\nloss = (w * 2).sum()\nloss.backward()\n", True),
        (
            "from torch._subclasses.fake_tensor import FakeTensorMode\nwith FakeTensorMode():\n"
            "    w = torch.ones(3, requires_grad=True)\n    loss = (w * 2).sum()\n",
            True,
        ),
        (OWN["subclass with __torch_dispatch__ that counts backward"], True),
    ],
    ids=["meta", "fake", "opaque subclass"],
)
def test_a_gradient_without_numbers_is_a_gradient_and_no_nan(source: str, kept: bool) -> None:
    """It flowed, `.grad` is there, and the row says why it shows nothing."""
    report, namespace = run_traced(source)
    row = report["w"]
    assert row.reason is None
    assert not row.grad.is_known
    assert "without numbers" in row.note
    assert "NaN" not in str(report)
    assert (namespace["w"].grad is not None) is kept
    assert not {"nan_gradient", "nan_value", "not_traced"} & {finding.kind for finding in report.findings}


def test_a_subclass_that_says_what_it_is_made_of_is_measured_by_its_parts() -> None:
    """PyTorch's own `TwoTensor`: the gradient of both parts together."""
    report, _ = run_traced(
        "from torch.testing._internal.two_tensor import TwoTensor\n"
        "w = TwoTensor(torch.ones(2), torch.ones(2)).requires_grad_()\nloss = (w * 3).sum()\nloss.backward()\n"
    )
    assert report["w"].grad.values == (3.0, 3.0, 3.0, 3.0)


def test_a_ragged_dimension_and_a_symbolic_one_are_minus_one() -> None:
    """Shapes in the report are plain numbers, so that every export can hold them."""
    report, _ = run_traced(
        "n = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged, requires_grad=True)\n"
        "loss = (n * 2).values().sum()\n"
    )
    assert report["n"].shape == (2, -1, 3)


def test_substituted_parameters_of_a_functional_call_have_rows() -> None:
    """The module's own take no part; those given in their place have the gradients."""
    report, namespace = run_traced(
        "net = torch.nn.Linear(3, 2)\nweight = torch.ones(2, 3, requires_grad=True)\n"
        "bias = torch.zeros(2, requires_grad=True)\n"
        "out = torch.func.functional_call(net, {'weight': weight, 'bias': bias}, (torch.ones(1, 3),))\nloss = out.sum()\n"
    )
    assert report["weight"].grad.values == (1.0,) * 6
    assert report["bias"].grad.values == (1.0, 1.0)
    assert report["out"].module == "net"
    assert namespace["net"].weight.grad is None


def test_autocast_shows_in_the_dtype_of_the_rows() -> None:
    """The parameter stays float32, what the layer gives is bfloat16."""
    report, _ = run_traced(
        "net = torch.nn.Linear(3, 2)\nwith torch.autocast('cpu', dtype=torch.bfloat16):\n    h = net(torch.ones(1, 3))\n"
        "loss = h.float().sum()\n"
    )
    assert (report["h"].dtype, report["net.weight"].dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_another_device_gives_the_gradients_that_it_gives_untraced(device: str) -> None:
    """On a machine that has one."""
    if not getattr(torch, device).is_available():
        pytest.skip(f"there is no {device} here")
    report, namespace = run_traced(
        f"w = torch.ones(3, device='{device}', requires_grad=True)\nh = w * 2\nloss = h.sum()\n"
    )
    assert report["w"].device.startswith(device)
    assert report["w"].grad.values == (2.0, 2.0, 2.0)
    assert namespace["h"].grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("how", ["of two tensors", "of a module's parameters"])
def test_a_swap_that_pytorch_refuses_because_of_the_trace_is_said_to_be_that(how: str) -> None:
    """PyTorch swaps no tensor that anything refers to weakly; the same cell runs without the magic."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.raises(RuntimeError, match=r"weakref|swap"), trace(namespace={}) as run:
            if how == "of two tensors":
                a, b = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
                torch.utils.swap_tensors(a, b)
            else:
                model = torch.nn.Linear(2, 2)
                model(torch.ones(2))
                model.half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert run.report is not None
    assert [finding.kind for finding in run.report.findings] == ["swap_refused"]
    assert "gradtrace" in run.report.findings[0].message
