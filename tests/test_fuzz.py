"""Random programs, traced and untraced: all they show is the same to the last bit, and the report is sound."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import linecache
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from alike import norm_of, rounded
from hypothesis import HealthCheck, Phase, given, settings
from plain import norms_of
from programs import programs

from gradmagic.guest import guest_of
from gradmagic.report import Report
from gradmagic.tracing import CellSource, trace

FILE = "<program>"


@dataclass
class Run:
    """All that a program shows, and what it leaves."""

    namespace: dict[str, Any]
    stdout: str = ""
    warned: list[tuple[str, str, str, int]] = field(default_factory=list)
    error: list[Any] = field(default_factory=list)
    random: bytes = b""
    norms: list[float] = field(default_factory=list)
    """Of the gradient that reached each node, where somebody listened."""
    report: Report | None = None


def execute(source: str, around: Any) -> Run:
    """Run a program inside the context that `around` makes of its namespace."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    run = Run({"torch": torch, "__name__": "program"})
    out = io.StringIO()
    torch.default_generator.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out):
        warnings.simplefilter("always")
        try:
            with around(run):
                exec(compile(source, FILE, "exec"), run.namespace)
        except BaseException as error:  # noqa: BLE001 - whatever a program raises
            run.error = list(described(error))
    run.stdout = out.getvalue()
    run.warned = [(each.category.__name__, str(each.message), each.filename, each.lineno) for each in caught]
    run.random = torch.get_rng_state().numpy().tobytes()
    return run


def described(error: BaseException | None) -> Iterator[Any]:
    """Type, text and the lines of the program for an exception and all it is linked to."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        yield type(error).__name__, text_of(error), [frame.lineno for frame in frames if frame.filename == FILE]
        error = error.__cause__ or error.__context__


def text_of(error: BaseException) -> str:
    """The text of an exception, which may have none."""
    try:
        return str(error)
    except Exception as refused:  # noqa: BLE001 - a program's own
        return repr(refused)


# ---- what is compared


def state(value: Any, plain: bool) -> Any:
    """What can be known of a variable, as something to compare. A guest gradient counts as what it makes way for."""
    kind = type(value)
    if issubclass(kind, torch.Tensor):
        return state_of_tensor(value, plain)
    if issubclass(kind, torch.nn.Module):
        return {name: state(each, plain) for name, each in sorted(vars(value).items())}
    if issubclass(kind, torch.optim.Optimizer):
        return state(list(value.state.values()), plain)
    if issubclass(kind, dict):
        # Hooks are kept under numbers that count on through the process.
        return [(key if type(key) is str else "", state(item, plain)) for key, item in value.items()]
    if kind in (list, tuple):
        return [state(item, plain) for item in value]
    return value if kind in (int, float, str, bool) else kind.__name__


def state_of_tensor(value: torch.Tensor, plain: bool) -> Any:
    """Its bits and history, its gradient and the number of its hooks."""
    try:
        value.is_leaf  # noqa: B018 - it raises for a view that a change of its base has made invalid
    except RuntimeError as error:
        return str(error)
    gradient = None
    if value.is_leaf:
        guest = None if plain else guest_of(value)
        gradient = guest.makes_way_for() if guest is not None else value.grad
    hooks = [hook for hook in (value._backward_hooks or {}).values() if type(hook).__module__ != "gradmagic.guest"]
    after = len(value._post_accumulate_grad_hooks or {})
    return (*looks(value), None if gradient is None else looks(gradient), len(hooks), after, sorted(value.__dict__))


def looks(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor's bits and all that autograd knows of it."""
    bare = tensor.detach().as_subclass(torch.Tensor)
    bits = b"" if bare.is_meta or bare.numel() > 1_000_000 else bare.numpy().tobytes()
    node = tensor.grad_fn if not tensor.is_inference() else None
    about = tensor.requires_grad, tensor.is_leaf, node.name() if node is not None else None, tensor._is_view()
    version = None if tensor.is_inference() else tensor._version
    return bits, str(bare.dtype), tuple(bare.shape), bare.stride(), about, version, type(tensor).__name__


def variables(run: Run, plain: bool) -> dict[str, Any]:
    """Every variable of the program."""
    hidden = ("torch", "Twice", "Blind", "kept")
    with torch._C.DisableTorchFunctionSubclass():
        return {k: state(v, plain) for k, v in run.namespace.items() if k not in hidden and not k.startswith("__")}


# ---- the ways to run a program


@contextlib.contextmanager
def untouched(run: Run) -> Iterator[None]:
    yield


@contextlib.contextmanager
def traced(run: Run) -> Iterator[None]:
    tracing = trace(namespace=run.namespace, cell=CellSource(FILE, lambda name: 1 if name == FILE else None))
    try:
        with tracing:
            yield
    finally:
        assert tracing.fault is None, tracing.fault
        run.report = tracing.report


@contextlib.contextmanager
def listening(run: Run) -> Iterator[None]:
    """Plain PyTorch with an ordinary prehook on every node of each backward."""
    original = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        handles = listen([tensors] if isinstance(tensors, torch.Tensor) else tensors, run.norms)
        try:
            original(tensors, *args, **kwargs)
        finally:
            for _, handle in handles:
                handle.remove()

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = original


def listen(roots: Any, norms: list[float]) -> list[Any]:
    """Note the norm of each gradient that reaches a node below some roots.

    The hooks' handles come with their nodes: that of a leaf that is a root itself lives only while something holds it.
    """

    def note(leaf: torch.Tensor | None, gradients: Any) -> None:
        norms.extend(norm_of(gradient, leaf) for gradient in gradients if gradient is not None)

    pending = [torch.autograd.graph.get_gradient_edge(root).node for root in roots if root.requires_grad]
    handles, seen = [], {}
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        handles.append((node, node.register_prehook(partial(note, getattr(node, "variable", None)))))
        pending.extend(parent for parent, _ in node.next_functions)
    return handles


# ---- the check


def check(source: str) -> None:
    """A program does traced what it does untraced, and its report holds together."""
    plain = execute(source, untouched)
    ours = execute(source, traced)
    assert ours.error == plain.error
    assert ours.stdout == plain.stdout
    assert ours.warned == plain.warned
    assert ours.random == plain.random
    assert variables(ours, plain=False) == variables(plain, plain=True)
    assert ours.report is not None
    check_report(ours.report, source)
    check_gradients(ours.report, source)
    again = execute(source, traced).report
    assert again is not None
    assert without_times(again) == without_times(ours.report)
    check_later_backward(ours, plain)


def check_report(report: Report, source: str) -> None:
    """A reason for each row without a gradient and for no other; lines that exist; and it can be shown in every way."""
    count = source.count("\n")
    for row in report.rows:
        assert (row.grad is None) == (row.reason is not None), row
        places = [place for place in (row.location, row.culprit) if place is not None and place.file == FILE]
        assert all(1 <= place.line <= count for place in places), row
        assert row.culprit is None or row.culprit.file == FILE, row
    assert not [finding for finding in report.findings if finding.kind == "not_traced"], report.findings
    assert str(report)
    assert "<" in report.to_html()
    json.loads(report.to_json())
    assert len(list(csv.reader(io.StringIO(report.to_csv())))) == 1 + len(report.rows)


def check_gradients(report: Report, source: str) -> None:
    """The gradient of every node of every backward is in the report, with plain PyTorch's norm to the last bit."""
    passes = [each for each in report.passes if each.function == "backward"]
    if len(passes) != len(report.passes) or not passes:
        return
    truth = execute(source, listening)
    last = passes[-1]
    if last.run_by == "gradtrace":
        try:
            root = eval(last.root, truth.namespace)  # noqa: S307 - a name in the random program
        except (NameError, SyntaxError, RuntimeError, AttributeError, LookupError):
            return  # it has no name
        handles = listen([root], truth.norms)
        with contextlib.suppress(RuntimeError):
            root.backward()
        del handles
    if any(each.error for each in passes):
        return
    ours, plain = rounded(norms_of(report)), rounded(Counter(truth.norms))
    assert ours == plain, (ours - plain, plain - ours)


def without_times(report: Report) -> dict[str, Any]:
    """A report as data that does not depend on the clock; as text, for NaN is not equal to itself."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return [strip(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)

    return strip(report.to_dict())


def check_later_backward(ours: Run, plain: Run) -> None:
    """The next cell says ``loss.backward()``."""
    results = []
    for run in (ours, plain):
        try:
            run.namespace["loss"].backward()
            results.append(None)
        except Exception as error:  # noqa: BLE001 - as above
            results.append((type(error).__name__, text_of(error)))
    assert results[0] == results[1]
    assert variables(ours, plain=False) == variables(plain, plain=True)


QUIET = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # the phase that explains a failure traces every line
)


@pytest.fixture(autouse=True)
def _warn_always() -> Iterator[None]:
    """PyTorch shows some warnings once a process, which would tell the second run of a program from the first."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.real
@settings(QUIET, max_examples=60, derandomize=True)
@given(programs())
def test_a_random_program_does_traced_what_it_does_untraced(source: str) -> None:
    """Variables, `.grad`, random stream, output, warnings, errors; and each gradient is in the report."""
    check(source)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(QUIET, max_examples=2_000, derandomize=True)
@given(programs())
def test_two_thousand_random_programs_do_traced_what_they_do_untraced(source: str) -> None:
    """The same, for longer."""
    check(source)


FOUND = {
    "a view of unbind whose base was changed refuses even a look at it": """
w = torch.ones(2, 3, requires_grad=True)
y = w * 2
a, b = y.unbind(0)
with torch.no_grad():
    y += 1
loss = y.sum()
""",
    "such a view is what an operation fails on": """
w = torch.ones(2, 3, requires_grad=True)
y = w * 2
a, b = y.unbind(0)
with torch.no_grad():
    y += 1
a[0]
""",
    "such a view is still of use where nothing asks for its history": """
w = torch.ones(2, 3, requires_grad=True)
a, b = (w * 2).unbind(0)
c = a.detach()
c.copy_(b)
loss = (a * c).sum() + w.sum()
""",
    "a tensor is squeezed in place and changed, after the cell's own backward": """
h = torch.relu(torch.ones((), requires_grad=True))
h.sum().backward()
h.unsqueeze_(0).squeeze_(0)
h += 1
loss = h * 2
""",
    "a tensor becomes a leaf after the cell's own backward": """
w = torch.ones(3, requires_grad=True)
h = w * 2
h.sum().backward()
h.detach_()
h.requires_grad_()
(h * 3).sum().backward()
""",
    "a tensor becomes a leaf after the cell's own backward and a change in place": """
w = torch.ones(3, requires_grad=True)
h = w * 2
h.sum().backward()
h += 1
h.detach_()
""",
    "retain_grad is called between two passes": """
w = torch.ones(3, requires_grad=True)
h = w * 2
h.sum().backward(retain_graph=True)
h.retain_grad()
h.sum().backward()
kept_by_me = h.grad.clone()
""",
    "a pass is asked for a tensor that is not on its way": """
a = torch.randn(3, requires_grad=True)
b = a + a
c = torch.relu(b)
try:
    b.sum().backward(inputs=[c])
except RuntimeError as error:
    print(error)
loss = b.sum() + c.sum()
""",
    "backward starts from a leaf": """
a = torch.randn(3, requires_grad=True)
a.backward(torch.ones_like(a))
loss = a.sum()
""",
    "a non-leaf is given a gradient by hand before a pass": """
w = torch.ones(3, requires_grad=True)
h = w * 2
h.grad = torch.full((3,), 7.0)
h.sum().backward()
mine = h.grad.clone()
""",
}
"""What random programs have shown to go wrong once."""


@pytest.mark.parametrize("name", FOUND)
def test_a_program_that_went_wrong_once_does_traced_what_it_does_untraced(name: str) -> None:
    """Each was shrunk from a random one."""
    check(FOUND[name])


def test_the_last_tensor_is_the_last_though_it_has_the_id_of_one_that_is_gone() -> None:
    """Python gives ids again; the report goes by when a tensor was made."""
    source = """
w = torch.ones(3, requires_grad=True)
a = w * 1
for _ in range(100):
    gone = w * 2
    kept = [w * 3 for _ in range(3)]
    old = id(gone)
    del gone
    last = w * 4
    if id(last) == old:
        break
"""
    report = execute(source, traced).report
    assert report is not None
    assert "`last`" in report.findings[0].message


def test_a_module_is_known_though_it_has_the_id_of_one_that_is_gone() -> None:
    """Made anew in each round: what no gradient reaches is the parameters of the last one."""
    source = """
x = torch.ones(2, 3, requires_grad=True)
ids = set()
for _ in range(100):
    m = None
    m = torch.nn.LayerNorm(3)
    f = m(x)
    if id(m) in ids:
        break
    ids.add(id(m))
loss = x.sum()
"""
    report = execute(source, traced).report
    assert report is not None
    assert [finding.kind for finding in report.findings] == ["unused"]
    assert "`m.weight` and `m.bias`" in report.findings[0].message
