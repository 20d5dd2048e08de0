"""Faults of the cell stay the cell's own: the same error, the same state, a report of what there was, nothing left."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_fuzz import FILE, Run, execute, untouched, variables
from test_interrupts import world

from gradmagic.tracing import CellSource, trace

HEAD = """
import sys, torch.nn as nn
w = torch.ones(2, 2, requires_grad=True)
y = w * 3
"""
FAILING = {
    "memory": "z = y + 1\nbytearray(2 ** 62)",
    "an operation that is refused its memory": "z = y.expand(2 ** 40, 2, 2).contiguous()",
    "the exit of the process": "z = y + 1\nsys.exit(3)",
    "a closed generator": "raise GeneratorExit('mine')",
    "an interrupt": "raise KeyboardInterrupt",
    "a hook": "def hook(g):\n    raise ValueError('hook')\ny.register_hook(hook)\ny.sum().backward()",
    "the exit of the process in a hook": "y.register_hook(lambda g: sys.exit(4))\ny.sum().backward()",
    "an interrupt in a hook": "def hook(g):\n    raise KeyboardInterrupt\ny.register_hook(hook)\ny.sum().backward()",
    "a hook of a module": "m = nn.Linear(2, 2)\nm.register_forward_hook(lambda *a: 1 / 0)\nm(y)",
    "a custom forward": "class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n"
    "        raise MemoryError('forward')\nF.apply(y)",
    "a custom backward": "class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n"
    "        return x.clone()\n    @staticmethod\n    def backward(ctx, g):\n        raise ValueError('backward')\n"
    "F.apply(y).sum().backward()",
    "packing a saved tensor": "with torch.autograd.graph.saved_tensors_hooks(lambda t: 1 / 0, lambda t: t):\n    z = y.exp()",
    "unpacking a saved tensor": "with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 1 / 0):\n"
    "    z = y.exp()\nz.sum().backward()",
    "a parametrization": "class P(nn.Module):\n    def forward(self, x):\n        if x.sum() > 0: raise ValueError('P')\n"
    "        return x\nm = nn.Linear(2, 2)\nwith torch.no_grad(): m.weight.fill_(-1.0)\n"
    "nn.utils.parametrize.register_parametrization(m, 'weight', P())\n"
    "with torch.no_grad(): m.parametrizations.weight.original.fill_(1.0)\nm(y)",
    "the __torch_function__ of a subclass": "class S(torch.Tensor):\n    @classmethod\n"
    "    def __torch_function__(cls, func, types, args=(), kwargs=None):\n        raise ValueError('no')\n"
    "s = torch.ones(2).as_subclass(S)\ns + 1",
    "recursion": "def f(x): return f(x * 1)\nf(y)",
    "text": "class E(Exception):\n    def __str__(self): raise ValueError('no text')\nz = y + 1\nraise E",
    "text in a hook": "class E(Exception):\n    def __str__(self): raise ValueError('no text')\n"
    "def hook(g): raise E\ny.register_hook(hook)\ny.sum().backward()",
    "a chain": "try:\n    y @ torch.ones(7)\nexcept RuntimeError as error:\n    raise ValueError('after') from error",
    "a context": "try:\n    1 / 0\nfinally:\n    y @ torch.ones(7)",
    "a group": "raise ExceptionGroup('g', [ValueError('a'), TypeError('b')])",
}
RUNNING = {
    "a subclass without repr": "class S(torch.Tensor):\n    def __repr__(self, *a, **k): raise ValueError('repr')\n"
    "s = torch.ones(2).as_subclass(S)\nt = s * y",
    "a subclass without hash and comparison": "class S(torch.Tensor):\n    def __hash__(self): raise ValueError('hash')\n"
    "    def __eq__(self, other): raise ValueError('eq')\ns = torch.ones(2).as_subclass(S)\nt = s * y",
    "a subclass without shape": "class S(torch.Tensor):\n    @property\n    def shape(self): raise ValueError('shape')\n"
    "s = torch.ones(2).as_subclass(S)\nt = s * y",
    "a subclass without attributes": "class S(torch.Tensor):\n    def __getattr__(self, name): raise ValueError(name)\n"
    "s = torch.ones(2).as_subclass(S)\nt = s * y",
    "a module without modules": "class M(nn.Linear):\n    def named_modules(self, *a, **k): raise ValueError('mine')\n"
    "    def named_parameters(self, *a, **k): raise ValueError('mine')\nm = M(2, 2)\nz = m(y)",
    "a module that lies": "class M(nn.Linear):\n    def named_modules(self, *a, **k): return [1, ('a', 2, 3), None]\n"
    "    def named_parameters(self, *a, **k): return 'nonsense'\nm = M(2, 2)\nz = m(y)",
    "a module of other names": "class M(nn.Linear):\n    def named_modules(self, *a, **k): return [(None, self)]\n"
    "    def named_parameters(self, *a, **k): return [(None, self.weight), (3, 4)]\nm = M(2, 2)\nz = m(y)",
    "a module without attributes": "class M(nn.Module):\n    def __getattr__(self, name): raise ValueError(name)\n"
    "    def forward(self, x): return x * 2\nm = M.__new__(M)\nobject.__setattr__(m, 'kept', [y])",
    "an object without a class": "class O:\n    @property\n    def __class__(self): raise ValueError('class')\no = O()",
    "an object of another class": "class O:\n    __class__ = torch.Tensor\no = O()",
    "an object without comparison": "class O:\n    def __eq__(self, other): raise ValueError('eq')\n"
    "    def __bool__(self): raise ValueError('bool')\n    def __len__(self): raise ValueError('len')\no = [O(), {'k': O()}]",
    "an object without attributes": "class O:\n    def __getattr__(self, name): raise ValueError(name)\n"
    "    def __getattribute__(self, name): raise ValueError(name)\no = O()",
    "a root that is not a number": "loss = (y - y).log().sum() * 0",
    "a root that is infinite": "loss = (y - y).log().sum()",
    "a hundred million elements": "m = torch.ones(10 ** 4, 10 ** 4, device='meta', requires_grad=True)\nn = (m * 2).sum()",
    "a hundred million elements of one": "e = torch.ones(1).expand(10 ** 8)\nf = e[:3] * y.sum()",
    "no elements": "z = y[:0] * 2\ns = z.sum()\nt = torch.empty(0, 3, requires_grad=True) * 2",
    "no dimension": "z = torch.tensor(2.0, requires_grad=True) ** 2",
    "64 dimensions": "z = torch.ones([1] * 64, requires_grad=True) * 2",
    "variables that are gone": "z = y.exp()\nv = z.sum()\ndel w, y, z",
    "a function of torch that is replaced": "was = torch.relu\ntorch.relu = lambda x: x * 2\nz = torch.relu(y)\ntorch.relu = was",
    "torch without a name": "del torch\nz = y * 2",
    "torch out of sight": "kept = {k: sys.modules.pop(k) for k in ('torch', 'torch.nn')}\nz = y * 2\nsys.modules.update(kept)",
    "errors that are caught": "for i in range(3):\n    try: y @ torch.ones(7)\n    except RuntimeError as error: print(error)",
    "a mode of its own": "from torch.overrides import TorchFunctionMode\nclass M(TorchFunctionMode):\n"
    "    def __torch_function__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))\n"
    "mode = M()\nmode.__enter__()\nz = y * 2",
    "gradients that stay off": "guard = torch.no_grad()\nguard.__enter__()\nz = y * 2",
    "a hook in gradtrace's backward without text": "class E(Exception):\n    def __str__(self): raise ValueError('no text')\n"
    "def hook(g): raise E\nz = y * 2\nz.register_hook(hook)",
}


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Traced; whether the recorder is gone afterwards is noted."""
    tracing = trace(namespace=run.namespace, cell=CellSource(FILE, lambda name: 1 if name == FILE else None))
    try:
        with tracing:
            recorder = tracing._state.recorder  # type: ignore[union-attr]
            run.recorder = weakref.ref(recorder)  # type: ignore[attr-defined]
            del recorder
            yield
    finally:
        assert tracing.fault is None, tracing.fault
        run.report = tracing.report


def leave_modes() -> None:
    """What a cell has entered and not left."""
    while torch.overrides._get_current_function_mode_stack():
        torch.overrides._pop_mode()
    torch.set_grad_enabled(True)


def both(source: str) -> tuple[Run, Run]:
    """A cell untraced and traced; what both leave of the world is the same."""
    runs, worlds = [], []
    for around in (untouched, watched):
        before = world()
        runs.append(execute(HEAD + source + "\n", around))
        after = world()
        worlds.append([name for name in before if before[name] != after[name]])
        leave_modes()
    assert worlds[0] == worlds[1]
    return runs[0], runs[1]


def assert_same(plain: Run, ours: Run) -> None:
    """What a person sees and has; the report is there in every form, and holds nothing of the trace."""
    assert (ours.error, ours.stdout, ours.warned, ours.random) == (
        plain.error,
        plain.stdout,
        plain.warned,
        plain.random,
    )
    assert variables(ours, plain=False) == variables(plain, plain=True)
    assert ours.report is not None
    assert "y" in {row.name for row in ours.report.rows}
    assert str(ours.report) and ours.report.to_html() and ours.report.to_json() and ours.report.to_csv()  # noqa: PT018 - all
    ours.namespace.clear()
    gc.collect()
    assert ours.recorder() is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", FAILING)
def test_what_fails_in_a_cell_fails_as_without_gradmagic(what: str) -> None:
    """The error, its lines, its chain and every variable; the report shows what was made until then."""
    plain, ours = both(FAILING[what])
    assert plain.error
    if what == "recursion":  # a recorder needs some of the frames that Python allows
        assert ours.error[0][0] == plain.error[0][0] == "RecursionError"
        ours.error = plain.error
    assert_same(plain, ours)


@pytest.mark.parametrize("what", RUNNING)
def test_what_is_odd_in_a_cell_runs_as_without_gradmagic(what: str) -> None:
    """Whatever gradmagic looks at may raise or lie."""
    plain, ours = both(RUNNING[what])
    assert not plain.error
    assert_same(plain, ours)


def test_a_root_that_is_not_a_number_has_its_gradients_and_the_finding() -> None:
    """NaN flows as any other number."""
    _, ours = both(RUNNING["a root that is infinite"])
    assert ours.report is not None
    assert ours.report.root is not None
    assert ours.report.root_value == -math.inf
    assert ours.report["w"].grad is not None
