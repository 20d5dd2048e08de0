"""One call, three times on equal inputs: in plain PyTorch, traced, and traced while the block itself runs backward.

Whatever a person could tell from outside is compared to the last bit.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from plain import norms_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import gradmagic
from gradmagic.report import Report
from gradmagic.tracing import CellSource

_NOWHERE = CellSource("<block>", lambda _: None)
"""To parse this file anew for each of a hundred thousand traces would take most of the time."""

Call = partial[Any]
"""Runs something on the inputs that are bound to it.

One that is given ``variables``, a dict, puts its own there: they are compared too, also after an error, and name rows.
"""


@dataclass
class Seen:
    """What one run shows from outside."""

    output: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    """By name: what the call was given and has made of it, and the parameters and buffers of modules among it."""
    leaves: dict[str, Any] = field(default_factory=dict)
    """The ``.grad`` of each of these that has one."""
    random: bytes = b""
    warnings: list[tuple[Any, ...]] = field(default_factory=list)
    error: tuple[Any, ...] | None = None
    nodes: Counter[float | str] = field(default_factory=Counter)
    """Norm of the gradient of each output of each autograd node between the loss and the leaves."""


@dataclass
class Comparison:
    """What differs between the runs of one call, in words; empty when nothing does."""

    differences: list[str]
    nodes: int
    seen: int
    """Nodes that the report counts."""
    raises: bool
    not_traced: tuple[str, ...]
    undetermined: list[str] = field(default_factory=list)
    """What differs between the runs, but also from one plain run to the next."""


class SideBySide:
    """Compares the runs of one call."""

    def __init__(
        self, make: Callable[[], Call], undefined: bool = False, runs_passes: bool = False, again: int = 0
    ) -> None:
        """Prepare.

        Args:
            make: gives the call, each time on fresh and equal inputs.
            undefined: whether the values it returns are whatever the memory held.
            runs_passes: whether the call itself runs ``autograd.grad``: the report has its gradients, too.
            again: how many more plain runs are to tell whether what differs is determined at all. Kernels that add up
                in no fixed order (atomics on CUDA) give other bits each time.
        """
        self._make = make
        self._undefined = undefined
        self._runs_passes = runs_passes
        self._again = again
        self._first = Seen(), Seen()

    def compare(self) -> Comparison:
        """Run it three times. What differs is run once more: some warnings are given only once in a process."""
        found = self._once()
        if any("warnings" in difference for difference in found.differences):
            found = self._once()
        if found.differences and self._again:
            self._sort_out(found)
        return found

    def _sort_out(self, found: Comparison) -> None:
        """What differs in a respect in which plain runs differ as well says nothing."""
        wanted = {_respect(told) for told in found.differences}
        vary = self._varying(wanted)
        found.undetermined = [told for told in found.differences if _respect(told) in vary]
        found.differences = [told for told in found.differences if _respect(told) not in vary]

    def _varying(self, wanted: set[str]) -> set[str]:
        """Those of some respects in which plain runs differ from one another."""
        vary: set[str] = set()
        for _ in range(self._again):
            if vary == wanted:
                break
            if torch.cuda.is_initialized():
                torch.randint(256, (2**20,), dtype=torch.uint8, device="cuda")  # other leavings in memory
            pairs = list(zip(self._first, self._plain(), strict=True))
            names = {one.name for one in fields(Seen) for a, b in pairs if getattr(a, one.name) != getattr(b, one.name)}
            vary |= names & wanted
        return vary

    def _once(self) -> Comparison:
        forward, both = self._first = self._plain()
        guest, report = self._traced(runs_backward=False)
        own, own_report = self._traced(runs_backward=True)
        differences = [
            *self._compare("guest: ", guest, self._as_guest(forward, both)),
            *self._compare("own: ", own, both),
            *_compare_errors(report, forward, both),
        ]
        faults = []
        for made in (report, own_report):
            if made is None:
                differences.append("no report")
                continue
            faults += _faults(made, both)
        seen = report.coverage.seen if report is not None else 0
        return Comparison(differences, both.nodes.total(), seen, both.error is not None, tuple(faults))

    def _compare(self, run: str, traced: Seen, plain: Seen) -> Iterator[str]:
        if self._runs_passes:
            traced.nodes &= plain.nodes
        for one in fields(Seen):
            ours, theirs = getattr(traced, one.name), getattr(plain, one.name)
            if ours != theirs:
                yield f"{run}{one.name}: {_shortly(ours, theirs)}"

    def _as_guest(self, forward: Seen, both: Seen) -> Seen:
        """Random stream and warnings as after the block alone, gradients as after backward."""
        failed = forward.error is None and both.error is not None
        return Seen(
            forward.output,
            forward.inputs,
            forward.leaves if failed else both.leaves,
            forward.random,
            forward.warnings,
            forward.error,
            both.nodes,
        )

    def _plain(self) -> tuple[Seen, Seen]:
        call, sizes = self._fresh()
        forward, both = Seen(), Seen()
        value = loss = None
        with _listening(forward):
            value, loss = _forward(call)
        self._look(forward, value, call, sizes)
        both.error = forward.error
        if loss is not None:
            nodes = _Nodes(loss)
            with _listening(both):
                _backward(loss)
            both.nodes = nodes.norms()
        self._look(both, value, call, sizes)
        both.warnings = forward.warnings + both.warnings
        return forward, both

    def _traced(self, runs_backward: bool) -> tuple[Seen, Report | None]:
        call, sizes = self._fresh()
        seen = Seen()
        variables = call.keywords.get("variables")
        run = gradmagic.trace(cell=_NOWHERE if variables is None else None, namespace=variables)
        value = loss = None
        with _listening(seen), run:
            value, loss = _forward(call)
            run.offer(loss)
            if runs_backward and loss is not None:
                _backward(loss)
        self._look(seen, value, call, sizes)
        if run.report is not None:
            seen.nodes = Counter(map(_number, norms_of(run.report).elements()))
        return seen, run.report

    def _fresh(self) -> tuple[Call, dict[str, int]]:
        """The call, and the number of elements of each tensor it is given, by name."""
        call = self._make()
        sizes = {}
        for name, tensor in _tensors((call.args, call.keywords)):
            tensor.grad = None
            sizes[name] = tensor.numel()
        torch.default_generator.manual_seed(1)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(1)
        return call, sizes

    def _look(self, seen: Seen, value: Any, call: Call, sizes: dict[str, int]) -> None:
        seen.random = random_state()
        parts, structure = pytree.tree_flatten(value)
        seen.output = (str(structure), [image(part, self._undefined) for part in parts])
        for name, tensor in _tensors((call.args, call.keywords)):
            # What `out=` was given may have been resized just before the operation raised: its memory holds anything.
            seen.inputs[name] = image(tensor, tensor.numel() != sizes.get(name, tensor.numel()))
            if tensor.requires_grad and tensor.is_leaf:
                seen.leaves[name] = image(tensor.grad)


def random_state() -> bytes:
    """Where the random streams are, that of the CPU and that of the current GPU."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]
    return b"".join(state.numpy().tobytes() for state in states)


def fresh(run: Callable[..., Any], given: Any) -> Call:
    """A function's call on a copy of what it is given. An input with a history becomes a leaf."""
    memo: dict[int, Any] = {}
    for tensor in pytree.tree_leaves(given):
        if isinstance(tensor, Tensor) and (not tensor.is_leaf or tensor.layout is not torch.strided):
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return partial(run, *copy.deepcopy(given, memo))


def assert_nothing_differs(side_by_side: SideBySide) -> Comparison:
    """All three runs show the same, and everything was traced."""
    found = side_by_side.compare()
    assert found.differences == []
    assert found.not_traced == ()
    return found


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a value with its name, those of modules included."""
    for path, part in pytree.tree_flatten_with_path(value)[0]:
        name = pytree.keystr(path)
        if isinstance(part, Tensor):
            yield name, part
        elif isinstance(part, nn.Module):
            state = [*part.named_parameters(), *part.named_buffers()]
            yield from ((f"{name}.{key}", tensor) for key, tensor in state if not nn.parameter.is_lazy(tensor))


def image(value: Any, undefined: bool = False) -> Any:
    """Everything about a value that a person can tell, as something that can be compared."""
    if not isinstance(value, Tensor):
        return repr(value)
    about = (
        type(value).__name__,
        str(value.dtype),
        str(value.device),
        str(value.layout),
        value.requires_grad,
        value.is_leaf,
        value.grad_fn.name() if value.grad_fn is not None else None,
        value._version if not value.is_inference() else None,
        value._is_view(),
    )
    with torch.no_grad():
        return (*about, *_contents(value.detach(), undefined))


def _contents(value: Tensor, undefined: bool) -> tuple[Any, ...]:
    if value.layout is torch.sparse_coo:
        return (tuple(value.shape), *(_contents(part, undefined) for part in (value._indices(), value._values())))
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (value.crow_indices(), value.col_indices(), value.values())
        return (tuple(value.shape), *(_contents(part, undefined) for part in parts))
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (value.ccol_indices(), value.row_indices(), value.values())
        return (tuple(value.shape), *(_contents(part, undefined) for part in parts))
    if value.is_nested:
        return tuple(_contents(part, undefined) for part in value.unbind())
    place = (
        tuple(value.shape),
        value.stride(),
        value.storage_offset(),
        value.is_conj(),
        value.is_neg(),
        value._is_zerotensor(),
    )
    if undefined or value.is_meta:
        return place
    plain = torch.empty(value.shape, dtype=value.dtype).copy_(value)
    return (*place, plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def _forward(call: Call) -> tuple[Any, Tensor | None]:
    value = call()
    return value, scalar_of(value)


def _backward(loss: Tensor) -> None:
    loss.backward()


def scalar_of(value: Any) -> Tensor | None:
    """One number that all differentiable outputs go into, each element with a weight of its own."""
    terms = []
    for output in pytree.tree_leaves(value):
        if isinstance(output, Tensor) and output.requires_grad:
            dense = output if output.layout is torch.strided else output.to_dense()
            weights = torch.linspace(0.5, 1.5, dense.numel(), dtype=dense.dtype, device=dense.device)
            weighted = dense * weights.reshape(dense.shape)
            terms.append((torch.view_as_real(weighted) if weighted.is_complex() else weighted).sum())
    return sum(terms[1:], terms[0]) if terms else None


class _Nodes:
    """Every autograd node below a number, and the norms of the gradients that reach them."""

    def __init__(self, loss: Tensor) -> None:
        self._norms: list[float] = []
        self._leaves: list[Tensor] = []
        pending, seen = [loss.grad_fn], {}
        while pending:
            node = pending.pop()
            if node is None or id(node) in seen:
                continue
            seen[id(node)] = node
            node.register_prehook(partial(self._note, getattr(node, "variable", None)))
            pending.extend(parent for parent, _ in node.next_functions)

    def _note(self, leaf: Tensor | None, gradients: tuple[Tensor | None, ...]) -> None:
        if leaf is not None:
            self._leaves.append(leaf)
        else:
            self._norms += [_norm(gradient) for gradient in gradients if gradient is not None]

    def norms(self) -> Counter[float | str]:
        """After backward: all norms; that of a leaf is its ``.grad``'s, which has a memory layout of its own."""
        leaves = [_norm(leaf.grad) for leaf in self._leaves if leaf.grad is not None]
        return Counter(map(_number, self._norms + leaves))


def _norm(gradient: Tensor) -> float:
    """Norm of the gradient in memory of its own: a sum depends on the order of its terms, and so on their layout.

    In float32 at least, which is what a report gives.
    """
    gradient = gradient.detach().clone().to(torch.promote_types(gradient.dtype, torch.float32))
    if gradient.layout is torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout is not torch.strided:
        gradient = gradient.values()
    return float(torch.linalg.vector_norm(gradient))


def _respect(told: str) -> str:
    """In what two runs differ: ``output`` for ``own: output: 3 instead of 4``."""
    return told.partition(": ")[2].partition(":")[0]


def _number(norm: float) -> float | str:
    return norm if norm == norm else "nan"


class _listening:
    """Notes the warnings and the exception of a block; the exception ends here."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._catching = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        self._caught = self._catching.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, kind: object, error: BaseException | None, where: Any) -> bool:
        self._catching.__exit__(None, None, None)
        self._seen.warnings = [(str(w.message), w.category, w.filename, w.lineno) for w in self._caught or ()]
        if error is not None:
            self._seen.error = (type(error), str(error), _lines(where))
        return isinstance(error, Exception)


def _lines(where: Any) -> list[tuple[str, int | None, str]]:
    """Every line of the traceback but those of the runs themselves: gradmagic must not have left one of its own."""
    frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(where)]
    return [frame for frame in frames if frame[2] not in ("_plain", "_traced")]


def _shortly(ours: Any, theirs: Any) -> str:
    if isinstance(ours, Counter):
        return f"extra {dict(ours - theirs)}, missing {dict(theirs - ours)}"
    if isinstance(ours, bytes):
        return "differs"
    if isinstance(ours, dict):
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        ours, theirs = ({name: images.get(name) for name in names} for images in (ours, theirs))
    return f"{str(ours)[:600]} instead of {str(theirs)[:600]}"


def _faults(report: Report, plain: Seen) -> list[str]:
    """What could not be traced, but for tensors that PyTorch refuses the person likewise, with the same error."""
    told = [finding.detail.splitlines() for finding in report.findings if finding.kind == "not_traced"]
    refused = f"{plain.error[0].__name__}: {plain.error[1]}" if plain.error is not None else ""
    told_words = [(line, line.partition(": ")[2].removesuffix("…")) for lines in told for line in lines]
    return [line for line, words in told_words if not (words and refused.startswith(words))]


def _compare_errors(report: Report | None, forward: Seen, both: Seen) -> Iterator[str]:
    """An error of gradtrace's own backward is the one that backward raises in plain PyTorch."""
    if report is None or forward.error is not None:
        return
    expected = f"{both.error[0].__name__}: {both.error[1]}" if both.error is not None else None
    found = report.passes[-1].error if report.passes else None
    if found != expected:
        yield f"guest: error in the report {found!r} instead of {expected!r}"
