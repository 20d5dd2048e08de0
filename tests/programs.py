"""Random small PyTorch programs as source text, for hypothesis: what people write, in orders that nobody would."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st

Shape = tuple[int, ...]

SHAPES: list[Shape] = [(3,), (2, 3), (3, 3), (), (1,), (2, 1, 3)]
NAMES = list("abcdef")
LEAVES = [
    "torch.randn({s}, requires_grad=True)",
    "torch.randn({s})",
    "torch.nn.Parameter(torch.randn({s}))",
    "torch.ones({s}, requires_grad=True)",
    "torch.rand({s}).requires_grad_()",
    "torch.zeros({s}, dtype=torch.float64, requires_grad=True)",
]
SAME_SHAPE = [
    "torch.relu({x})",
    "{x}.tanh()",
    "torch.sigmoid({x})",
    "{x} * 2",
    "-{x}",
    "{x} ** 2",
    "{x}.exp()",
    "{x}.sqrt()",
    "torch.log({x})",
    "{x}.abs()",
    "{x}.clone()",
    "{x}.detach()",
    "{x}.data",
    "{x}.contiguous()",
    "torch.nn.functional.softmax({x}, dim=-1)",
    "torch.nn.functional.dropout({x}, 0.5)",
    "torch.nn.functional.gelu({x})",
    "{x}.cumsum(-1)",
    "{x}.sort(-1).values",
    "{x}.clamp(min=0)",
    "{x} + torch.rand_like({x})",
    "torch.where({x} > 0, {x}, {x} * 0.1)",
    "1 / {x}",
    "torch.tensor({x}.tolist())",
    "{x} * {x}.sum().item()",
    "torch.utils.checkpoint.checkpoint(torch.sin, {x}, use_reentrant=False)",
    "torch.func.grad(lambda t: (t * t).sum())({x})",
    "torch.func.vmap(torch.sin)({x}.reshape(1, -1)).reshape({x}.shape)",
    "Twice.apply({x})",
    "Blind.apply({x})",
    "torch.stack([{x}, {x}.sin()]).mean(0)",
    "sum([{x}, {x}, {x}])",
    "(lambda t: t.sin() * t)({x})",
    "{x} + {x}.var() if {x}.numel() > 1 else {x}",
    "torch.nn.functional.layer_norm({x}, {x}.shape)",
    "({x} > 0).float()",
    "{x}.double().float()",
    "torch.nn.functional.relu({x}.clone(), inplace=True)",
    "torch.nn.functional.normalize({x}, dim=-1)",
    "{x}.flip(-1) if {x}.dim() else {x}",
    "{x}.expand(2, *{x}.shape)[1]",
    "{x}.unsqueeze(0).squeeze(0)",
    "torch.nn.init.ones_({x}.detach().clone())",
]
BOTH = [
    "{x} + {y}",
    "{x} - {y}",
    "{x} * {y}",
    "{x} / {y}",
    "torch.maximum({x}, {y})",
    "torch.addcmul({x}, {x}, {y})",
    "torch.where({y} > 0, {x}, {y})",
    "torch.lerp({x}, {y}, 0.3)",
]
TO_SCALAR = [
    "{x}.sum()",
    "{x}.mean()",
    "{x}.norm()",
    "{x}.max()",
    "{x}.prod()",
    "{x}.logsumexp(-1).sum()",
    "{x}.square().mean().sqrt()",
    "torch.nn.functional.mse_loss({x}, torch.zeros_like({x}))",
    "{x}.flatten()[0]",
    "{x}.abs().amax()",
]
IN_PLACE = [
    "{x} += 1",
    "{x} *= {y}",
    "{x} -= {y}",
    "{x}.mul_(2)",
    "{x}.add_({y})",
    "{x}.relu_()",
    "{x}.zero_()",
    "{x}.copy_({y})",
    "{x}.clamp_(min=0)",
    "{x}.exp_()",
    "{x}[...] = {y}",
    "{x}[{x} > 0] = 0.5",
    "{x}.detach_()",
    "{x}.data.mul_(0.5)",
    "{x}.data = {x}.data * 2",
    "{x}.fill_(0.3)",
    "torch.mul({x}, 2, out={x})",
    "{x}.masked_fill_({x} > 0, 1.0)",
    "{x}.detach().add_(1)",
    "{x}.view(-1).mul_(2)",
    "{x}.flatten()[0:1].add_(1)",
    "{x}.requires_grad_()",
    "{x}.requires_grad_(False)",
    "{x}.requires_grad = True",
    "{x}.normal_()",
    "{x}.unsqueeze_(0).squeeze_(0)",
    "{x}.retain_grad()",
    "{x}.register_hook(lambda g: g * 2)",
    "{x}.register_hook(lambda g: g.clamp(-1, 1))",
    "{x}.grad = torch.ones_like({x}) if {x}.is_leaf else None",
]
PASSES = [
    "{x}.sum().backward()",
    "{x}.mean().backward(retain_graph=True)",
    "{x}.sum().backward(create_graph=True)",
    "{x}.backward(torch.ones_like({x}), retain_graph=True)",
    "torch.autograd.backward([{x}.sum(), {x}.mean()])",
    "{x}.sum().backward(inputs=[{y}])",
    "gs = torch.autograd.grad({x}.sum(), [{y}], allow_unused=True, retain_graph=True); print(gs[0] is None)",
    "gs = torch.autograd.grad({x}.square().sum(), [{y}], create_graph=True); gs[0].sum().backward()",
    "gs = torch.autograd.grad({x}.sum(), {y})",
]
CLEARING = [
    "if {x}.is_leaf: {x}.grad = None",
    "if {x}.is_leaf and {x}.grad is not None: {x}.grad.zero_()",
    "if {x}.is_leaf and {x}.grad is not None: print({x}.grad.sum().item())",
    "if {x}.is_leaf and {x}.grad is not None: {x}.data -= 0.1 * {x}.grad",
]
HEAD = """\
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, g): return g * 2
class Blind(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return None
"""


class Writer:
    """Writes one program, and knows the shape of every tensor that its names hold."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.depth = 0
        self.shapes: dict[str, Shape] = {}
        self.made = 0
        """How many functions and modules there are."""
        self.in_block = False

    # ---- choices

    def pick(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def name(self) -> str:
        """A name that may be bound to any shape: inside a block only one that is not bound outside."""
        free = [name for name in NAMES if not self.in_block or name not in self.shapes]
        return self.pick(free or ["fresh"])

    def tensor(self) -> str:
        return self.pick(list(self.shapes))

    def fitting(self, shape: Shape) -> str:
        """A tensor that can be broadcast to a shape; a number's tensor where there is none."""
        found = [name for name, other in self.shapes.items() if _fits(other, shape)]
        return self.pick(found) if found else "torch.ones(())"

    # ---- writing

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def bind(self, name: str, expression: str, shape: Shape) -> None:
        self.add(f"{name} = {expression}")
        self.forget(name)
        self.shapes[name] = shape

    def forget(self, name: str) -> None:
        for key in [key for key in self.shapes if key == name or key.startswith((f"{name}[", f"{name}."))]:
            del self.shapes[key]

    @contextmanager
    def block(self, head: str, shapes: dict[str, Shape] | None = None) -> Any:
        """What is bound inside is gone afterwards, as far as the program knows."""
        self.add(head)
        before, was_in = dict(self.shapes), self.in_block
        self.depth += 1
        self.shapes, self.in_block = dict(self.shapes if shapes is None else shapes), shapes is None
        yield
        self.depth -= 1
        self.shapes, self.in_block = before, was_in

    def guarded(self, line: str) -> None:
        """Mostly an error ends here; else it ends the program."""
        if self.draw(st.integers(0, 11)) == 11:
            self.add(line)
            return
        self.add("try:")
        self.add(f"    {line}")
        self.add("except RuntimeError as error:")
        self.add("    print(type(error).__name__, error)")

    # ---- statements

    def leaf(self) -> None:
        shape = self.pick(SHAPES)
        self.bind(self.name(), self.pick(LEAVES).format(s=shape), shape)

    def same(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        target = x if self.draw(st.booleans()) else self.name()
        self.bind(target, self.pick(SAME_SHAPE).format(x=x), shape)

    def both(self) -> None:
        x = self.tensor()
        y = self.fitting(self.shapes[x])
        self.bind(self.name(), self.pick(BOTH).format(x=x, y=y), self.shapes[x])

    def scalar(self) -> None:
        self.bind(self.name(), self.pick(TO_SCALAR).format(x=self.tensor()), ())

    def matmul(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        if not shape or shape[-1] != 3:
            return self.both()
        square = [name for name, other in self.shapes.items() if other == (3, 3)]
        return self.bind(self.name(), f"{x} @ {self.pick([*square, f'torch.eye(3, dtype={x}.dtype)'])}", shape)

    def view(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        count = int(torch.Size(shape).numel())
        ways: list[tuple[str, Shape]] = [
            (".reshape(-1)", (count,)),
            (".unsqueeze(0)", (1, *shape)),
            (".view_as({x})", shape),
        ]
        if shape:
            ways += [
                ("[0]", shape[1:]),
                ("[..., :1]", (*shape[:-1], 1)),
                (".transpose(0, -1)", (*shape[-1:], *shape[1:-1], *shape[:1]) if len(shape) > 1 else shape),
            ]
            ways += [
                (".select(-1, 0)", shape[:-1]),
                (".narrow(0, 0, 1)", (1, *shape[1:])),
                (".expand(2, *{x}.shape)", (2, *shape)),
            ]
            ways += [
                ("[[0, 0]]", (2, *shape[1:])),
                (".unbind(0)[-1]", shape[1:]),
                (".chunk(2, -1)[0]", (*shape[:-1], (shape[-1] + 1) // 2)),
            ]
            ways += [
                (".sum(-1)", shape[:-1]),
                (".max(-1).values", shape[:-1]),
                (".mean(0, keepdim=True)", (1, *shape[1:])),
            ]
        text, result = self.pick(ways)
        self.bind(self.name(), x + text.format(x=x), result)

    def several(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        if not shape or shape[0] < 2:
            return self.scalar()
        first, second = self.name(), "q"
        self.add(
            f"{first}, {second} = {self.pick([f'{x}[0], {x}[1]', f'{x}.unbind(0)[:2]', f'({x}.sin(), {x}.cos())[0][:2]'])}"
        )
        self.forget(first)
        self.shapes[first] = self.shapes[second] = shape[1:]
        return None

    def container(self) -> None:
        x, y = self.tensor(), self.tensor()
        kind = self.pick(
            [
                "hs = [{x}, {y} * 2]",
                "hs = [{y} + i for i in range(2)]",
                "d = {{'k': {x}, 'l': {y}.exp()}}",
                "box = type('Box', (), {{}})(); box.t = {x} + 0",
            ]
        )
        shapes = {"h": {"hs[0]": x, "hs[1]": y}, "d": {"d['k']": x, "d['l']": y}, "b": {"box.t": x}}[kind[0]]
        shapes = {"hs[0]": y, "hs[1]": y} if " for " in kind else shapes
        found = {key: self.shapes[source] for key, source in shapes.items()}
        self.add(kind.format(x=x, y=y))
        self.forget(kind.split(" ")[0])
        self.shapes.update(found)

    def in_place(self) -> None:
        x = self.tensor()
        self.guarded(self.pick(IN_PLACE).format(x=x, y=self.fitting(self.shapes[x])))

    def run_pass(self) -> None:
        self.guarded(self.pick(PASSES).format(x=self.tensor(), y=self.tensor()))

    def clearing(self) -> None:
        self.guarded(self.pick(CLEARING).format(x=self.tensor()))

    def delete(self) -> None:
        names = [name for name in self.shapes if name.isidentifier()]
        if self.in_block or len(names) < 2:
            return self.same()
        x = self.pick(names)
        self.add(f"del {x}")
        return self.forget(x)

    def alias(self) -> None:
        x = self.tensor()
        self.bind(self.name(), x, self.shapes[x])

    def module(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        if not shape or shape[-1] != 3:
            return self.same()
        self.made += 1
        kind = self.pick(
            [
                "Linear(3, 3)",
                "LayerNorm(3)",
                "Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())",
                "Dropout(0.5)",
                "GRU(3, 3)",
            ]
        )
        m = f"m{self.made}"
        self.add(f"{m} = torch.nn.{kind}.to({x}.dtype)")
        call = f"{m}({x}.reshape(-1, 3))[0].reshape({x}.shape)" if kind[0] == "G" else f"{m}({x})"
        self.guarded(f"{x} = {call}")
        if self.draw(st.booleans()):
            self.add(f"for p in {m}.parameters(): p.requires_grad_(False)")
        return None

    def optimizer(self) -> None:
        x, y = self.tensor(), self.tensor()
        kind = self.pick(["SGD", "Adam"])
        self.add(f"ps = [t for t in {{id(t): t for t in ({x}, {y})}}.values() if t.is_leaf and t.requires_grad]")
        self.add(f"opt = torch.optim.{kind}(ps or [torch.nn.Parameter(torch.zeros(2))], lr=0.1)")
        for line in self.draw(
            st.lists(st.sampled_from(["opt.zero_grad()", "opt.step()", f"{x}.mean().backward()"]), max_size=4)
        ):
            self.guarded(line)

    def loop(self) -> None:
        with self.block(f"for i in range({self.draw(st.integers(1, 3))}):"):
            self.body()

    def branch(self) -> None:
        with self.block(f"if {self.tensor()}.sum() > 0:"):
            self.body()
        with self.block("else:"):
            self.body()

    def without_grad(self) -> None:
        head = self.pick(["no_grad()", "set_grad_enabled(False)", "enable_grad()", "inference_mode()"])
        with self.block(f"with torch.{head}:"):
            if head == "inference_mode()":
                # PyTorch 2.13 crashes at a hook on a view that was changed in place here.
                self.pick([self.same, self.both, self.view, self.scalar])()
            else:
                self.body()

    def function(self) -> None:
        x, y = self.tensor(), self.tensor()
        shape = self.shapes[x]
        self.made += 1
        f = f"f{self.made}"
        with self.block(f"def {f}(u, v):", {"u": shape, "v": self.shapes[y]}):
            self.body()
            result = self.pick([name for name in self.shapes if name.isidentifier()])
            result_shape = self.shapes[result]
            self.add(f"return {result}")
        for _ in range(self.draw(st.integers(1, 2))):
            self.bind(self.name(), f"{f}({x}, {y})", result_shape)
            if x not in self.shapes or y not in self.shapes or self.shapes[x] != shape:
                break

    def show(self) -> None:
        self.add(
            self.pick(
                [
                    "print({x}.sum().item())",
                    "torch.manual_seed(7)",
                    "print(torch.rand(1).item())",
                    "print({x}.shape, {x}.requires_grad)",
                ]
            ).format(x=self.tensor())
        )

    def fail(self) -> None:
        line = self.pick(
            ["{x} @ torch.ones(7, 7)", "raise ValueError('boom')", "{x}.view(7)", "1 / 0", "undefined_name"]
        )
        self.guarded(line.format(x=self.tensor()))

    def body(self) -> None:
        simple = [self.same, self.both, self.in_place, self.view, self.scalar, self.matmul]
        more = (
            []
            if self.depth > 2
            else [self.loop, self.branch, self.without_grad, self.run_pass, self.module, self.several]
        )
        for _ in range(self.draw(st.integers(1, 3))):
            self.pick(simple + more)()

    def write(self) -> str:
        self.leaf()
        often = [self.same, self.both, self.view, self.in_place, self.matmul, self.leaf, self.scalar]
        seldom = [self.several, self.container, self.run_pass, self.clearing, self.delete, self.alias, self.module]
        seldom += [self.optimizer, self.loop, self.branch, self.without_grad, self.function, self.show, self.fail]
        for _ in range(self.draw(st.integers(1, 14))):
            self.pick(often + often + seldom)()
        self.end()
        return HEAD + "\n".join(self.lines) + "\n"

    def end(self) -> None:
        """Mostly a loss of everything there is, and sometimes backward from it."""
        ending = self.draw(st.integers(0, 7))
        if ending == 7:
            return
        self.add("loss = " + " + ".join(f"{name}.sum()" for name in self.shapes))
        if ending == 6:
            self.guarded("loss.backward()")


def _fits(shape: Shape, target: Shape) -> bool:
    try:
        return tuple(torch.broadcast_shapes(shape, target)) == target
    except RuntimeError:
        return False


@st.composite
def programs(draw: Callable[[Any], Any]) -> str:
    """The source of one program."""
    return Writer(draw).write()
