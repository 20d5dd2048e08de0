"""PyTorch's own databases, run traced and untraced: ``python tests/databases.py --samples 10 --dtype float32``.

Prints what differs and the counts, as JSON. It is a process of its own because the databases set global switches.
"""

from __future__ import annotations

import argparse
import json
import linecache
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy
import torch
from side_by_side import SideBySide, fresh, scalar_of
from torch import Tensor
from torch.utils import _pytree as pytree

Given = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What an operator is given: its input, and the further arguments."""
Variant = Callable[..., Any]


@dataclass
class Counts:
    """What was run, and what came of it."""

    operators: int = 0
    samples: int = 0
    runs: int = 0
    raising: int = 0
    nodes: int = 0
    seen: int = 0
    mismatches: int = 0
    crashes: int = 0
    not_traced: int = 0
    nondeterministic: int = 0
    seconds: float = 0
    told: list[str] = field(default_factory=list)
    undetermined: list[str] = field(default_factory=list)
    """The runs that differ, but so do plain runs of the same: equal they are not, nor is anything proved."""

    def take(self, name: str, side_by_side: SideBySide) -> None:
        """Run one sample in one variant."""
        self.runs += 1
        try:
            found = side_by_side.compare()
        except Exception as error:  # noqa: BLE001 - the next sample is still to be run; counted as a crash
            self.crashes += 1
            self.tell([f"{name}: crash: {type(error).__name__}: {error}"])
            return
        self.nodes += found.nodes
        self.seen += found.seen
        self.raising += found.raises
        self.mismatches += bool(found.differences)
        self.not_traced += bool(found.not_traced)
        self.nondeterministic += bool(found.undetermined)
        self.undetermined += [name] if found.undetermined else []
        self.tell([f"{name}: {text}" for text in found.differences])
        self.tell([f"{name}: not traced: {text}" for text in found.not_traced])

    def tell(self, lines: list[str]) -> None:
        """Take down what differs, and show it at once: a run of everything takes long."""
        self.told += lines
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def operators() -> list[Any]:
    """Every operator of PyTorch's own database that supports autograd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import __file__ as file
        from torch.testing._internal.common_methods_invocations import op_db
    # Many operators are lambdas there. What their source says is not the matter here, and to parse all of it is slow.
    linecache.cache[file] = (0, None, [], file)
    return [op for op in op_db if op.supports_autograd]


def run_operator(op: Any, dtype: torch.dtype, options: argparse.Namespace, counts: Counts) -> None:
    """Run some samples of an operator, and as many that must raise, in every variant or the one that is wanted."""
    full_name = f"{op.full_name} {str(dtype).removeprefix('torch.')}"
    undefined = op.name.startswith(("empty", "new_empty"))
    variants = [(name, variant) for name, variant in _variants(op) if options.variant in (None, name)]
    for kind, samples in (
        ("", _samples(op, dtype, options.device)),
        ("error ", _failing_samples(op, options.device)),
    ):
        for number, given in _spread(samples, options.samples):
            counts.samples += 1
            for name, variant in variants:
                side_by_side = SideBySide(partial(fresh, variant, given), undefined, name == "double backward", 500)
                counts.take(f"{full_name} {kind}{number} {name}", side_by_side)


def _samples(op: Any, dtype: torch.dtype, device: str) -> Iterator[Given]:
    _seed()
    for sample in op.sample_inputs(device, dtype, requires_grad=True):
        yield sample.input, sample.args, sample.kwargs


def _failing_samples(op: Any, device: str) -> Iterator[Given]:
    _seed()
    for failing in op.error_inputs(device) if op.error_inputs_func is not None else ():
        sample = failing.sample_input
        yield sample.input, sample.args, sample.kwargs


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def _spread(samples: Iterator[Given], most: int) -> list[tuple[int, Given]]:
    """Some of many, from the first to the last, with their numbers."""
    found = list(samples if most > 1 else islice(samples, 1))
    chosen = range(len(found)) if len(found) <= most else [index * len(found) // most for index in range(most)]
    return [(number, found[number]) for number in chosen]


def _variants(op: Any) -> Iterator[tuple[str, Variant]]:
    yield "function", partial(_function, op.op)
    if op.method_variant is not None:
        yield "method", partial(_function, op.method_variant)
    if op.inplace_variant is not None:
        yield "in place", partial(_in_place, op.inplace_variant)
    yield "inference", partial(_inference, op.op)
    if op.supports_gradgrad:
        yield "double backward", partial(_double_backward, op.op)
    if op.supports_out:
        yield "out", partial(_out, op.op)
        yield "out, no_grad", partial(_out_without_gradient, op.op)


def _function(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return run(given, *args, **kwargs)


def _in_place(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    changed = pytree.tree_map_only(Tensor, torch.clone, given)
    return run(changed, *args, **kwargs), changed


def _inference(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return run(given, *args, **kwargs)


def _double_backward(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    loss = scalar_of(run(given, *args, **kwargs))
    inputs = pytree.tree_leaves((given, args, kwargs))
    leaves = [part for part in inputs if isinstance(part, Tensor) and part.requires_grad]
    return torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)


def _out(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        out = pytree.tree_map_only(Tensor, torch.zeros_like, run(given, *args, **kwargs))
    return run(given, *args, **kwargs, out=out)


def _out_without_gradient(run: Variant, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return _out(run, given, args, kwargs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="at most so many samples of each operator")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64", "complex64"])
    parser.add_argument("--variant", help="only this one, such as function or 'in place'")
    parser.add_argument("--first", type=int, default=0, help="leave out so many operators at the start")
    parser.add_argument("--step", type=int, default=1, help="take one of so many operators")
    parser.add_argument("--device", default="cpu", help="where the samples lie, such as cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no operator after so long")
    parser.add_argument("--only", help="just the operator of this name")
    return parser.parse_args()


def main() -> None:
    """Run the operators and print the counts."""
    options = _options()
    torch.set_num_threads(1)
    counts = Counts()
    began = time.perf_counter()
    for op in operators()[options.first :: options.step]:
        if options.only in (None, op.name, op.full_name) and time.perf_counter() - began < options.seconds:
            counts.operators += 1
            for dtype in (getattr(torch, name) for name in options.dtype):
                if op.supports_dtype(dtype, torch.device(options.device).type):
                    run_operator(op, dtype, options, counts)
            if options.device != "cpu":
                torch.accelerator.synchronize()  # an error on the device ends the run: after it every call fails alike
    counts.seconds = round(time.perf_counter() - began, 1)
    print(json.dumps(asdict(counts), indent=1))


if __name__ == "__main__":
    main()
