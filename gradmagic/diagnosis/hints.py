"""The code to write instead: the person's own line with one part of it exchanged."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass

from ..records import Location

_NAMESPACES = frozenset({"torch", "F", "nn", "np", "numpy", "functional", "optim", "math"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an expression: its source, and where in the expression it stands."""

    text: str
    start: int
    end: int


def operands(expression: str) -> list[Piece]:
    """What an operation works on: ``x`` and ``1`` of ``x.sum(1)``, ``torch.sum(x, 1)`` and ``x + 1``."""
    node = _parsed(expression)
    if isinstance(node, ast.BinOp):
        parts: list[ast.expr] = [node.left, node.right]
    elif isinstance(node, ast.Call):
        parts = [*([node.func.value] if is_method(node) else []), *node.args]  # type: ignore[attr-defined]  # a method's
    elif isinstance(node, ast.UnaryOp):
        parts = [node.operand]
    elif isinstance(node, (ast.Attribute, ast.Subscript)):
        parts = [node.value]
    elif isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    else:
        parts = []
    return [_piece(expression, part) for part in parts]


def keyword(expression: str, name: str) -> str | None:
    """Source of a keyword argument of a call, or None."""
    node = _parsed(expression)
    for given in node.keywords if isinstance(node, ast.Call) else ():
        if given.arg == name:
            return _piece(expression, given.value).text
    return None


def is_method(node: ast.Call) -> bool:
    """Whether a call is ``x.sum()`` rather than ``torch.sum(x)``."""
    if not isinstance(node.func, ast.Attribute):
        return False
    root: ast.expr = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return not (isinstance(root, ast.Name) and root.id in _NAMESPACES)


def exchanged(expression: str, piece: Piece, new: str) -> str:
    """The expression with a part exchanged."""
    return expression[: piece.start] + new + expression[piece.end :]


def in_statement(location: Location, new: str) -> str:
    """The whole statement at a place with its expression exchanged; the bare expression where it has none."""
    if not location.text or location.text not in location.statement:
        return new
    closed = (f"= {location.text}", f"return {location.text}")
    whole = location.statement.endswith(closed) or f"({location.text})" in location.statement
    return location.statement.replace(location.text, new if whole else in_brackets(new), 1)


def occurrences(part: str, statement: str) -> list[Piece]:
    """Where an expression stands in a statement, however it is written there."""
    tree, wanted = _statement(statement), _parsed(part)
    if tree is None or wanted is None:
        return []
    same = ast.dump(wanted)
    return [_piece(statement, node) for node in ast.walk(tree) if isinstance(node, ast.expr) and ast.dump(node) == same]


def in_brackets(text: str) -> str:
    """A text that can stand before ``.clamp()`` or beside an operator."""
    closed = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)
    return text if isinstance(_parsed(text), closed) else f"({text})"


def without_call(statement: str, method: str) -> str:
    """A statement without ``.detach()``; unchanged where it holds none."""
    return re.sub(rf"\.{method}\(\)", "", statement, count=1)


def with_keyword(statement: str, function: str, given: str) -> str:
    """A statement in which the call of a function (``grad``) is given one more keyword; empty where there is no such call."""
    node = _statement(statement)
    for call in ast.walk(node) if node is not None else ():
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == function:
            whole = _piece(statement, call)
            return f"{statement[: whole.end - 1]}, {given}{statement[whole.end - 1 :]}"
    return ""


def without_last_call(expression: str, methods: Collection[str]) -> str:
    """``x`` for ``x.long()``, when the method is one of these; else empty."""
    node = _parsed(expression)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
        return _piece(expression, node.func.value).text
    return ""


def stacked(text: str) -> str:
    """``torch.stack([a, b])`` for ``[a, b]``, rows of rows too; empty for anything else."""
    node = _parsed(text)
    return _stacked(node) if isinstance(node, (ast.List, ast.Tuple, ast.ListComp)) else ""


def _stacked(node: ast.expr) -> str:
    if isinstance(node, (ast.List, ast.Tuple)):
        return f"torch.stack([{', '.join(_stacked(element) for element in node.elts)}])"
    if isinstance(node, ast.ListComp):
        return f"torch.stack({ast.unparse(node)})"
    return f"torch.tensor({ast.unparse(node)})" if isinstance(node, ast.Constant) else ast.unparse(node)


def comparison_made_smooth(expression: str) -> str | None:
    """``torch.sigmoid(a - b)`` for ``a > b``; None for other comparisons."""
    node = _parsed(expression)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    low, high = operands(expression)
    if isinstance(node.ops[0], (ast.Lt, ast.LtE)):
        low, high = high, low
    elif not isinstance(node.ops[0], (ast.Gt, ast.GtE)):
        return None
    difference = low.text if high.text in ("0", "0.0") else f"{in_brackets(low.text)} - {in_brackets(high.text)}"
    return f"torch.sigmoid({difference})"


def augmented(statement: str) -> tuple[str, str] | None:
    """Target and plain form of ``y += 1``: ``y`` and ``y = y + 1``."""
    node = _statement(statement)
    if not isinstance(node, ast.AugAssign):
        return None
    target, value = ast.unparse(node.target), ast.unparse(node.value)
    sign = _SIGNS.get(type(node.op), "+")
    value = f"({value})" if isinstance(node.value, (ast.BinOp, ast.IfExp, ast.BoolOp, ast.Compare)) else value
    return target, f"{target} = {target} {sign} {value}"


_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.MatMult: "@",
}  # fmt: skip


def out_of_place(location: Location) -> str:
    """A line that changes a tensor in place, written so that it makes a new one; empty where that takes more than a line."""
    statement = location.statement or location.text
    plain = augmented(statement)
    if plain is not None:
        return "" if "[" in plain[0] else plain[1]
    node = _statement(statement)
    value = getattr(node, "value", None)
    if isinstance(node, (ast.Assign, ast.Expr)) and isinstance(value, ast.Call):
        return _call_out_of_place(node, value, statement)
    return ""


_IN_PLACE_ONLY = frozenset({"zero_", "fill_", "copy_", "set_", "normal_", "uniform_", "random_", "bernoulli_"})
"""Methods without a sibling that makes a new tensor."""


def _call_out_of_place(node: ast.stmt, call: ast.Call, statement: str) -> str:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    out = next((given.value for given in call.keywords if given.arg == "out"), None)
    if isinstance(out, ast.Name) and isinstance(node, ast.Expr):
        return f"{out.id} = " + re.sub(rf",\s*out\s*=\s*{out.id}\b", "", statement)
    if any(given.arg == "inplace" for given in call.keywords):
        return re.sub(r",\s*inplace\s*=\s*True|inplace\s*=\s*True\s*,?\s*", "", statement)
    if not name.endswith("_") or name.endswith("__") or name in _IN_PLACE_ONLY:
        return ""
    changed = re.sub(rf"\b{re.escape(name)}\(", f"{name[:-1]}(", statement, count=1)
    if isinstance(node, ast.Assign):
        return changed
    receiver = call.func.value if is_method(call) else (call.args[0] if call.args else None)  # type: ignore[attr-defined]  # a method's
    return f"{ast.unparse(receiver)} = {changed}" if isinstance(receiver, ast.Name) else ""


def update_in_place(statement: str) -> str:
    """``with torch.no_grad(): w -= lr * w.grad`` for ``w = w - lr * w.grad``; empty for other statements."""
    node = _statement(statement)
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        return ""
    target, value = node.targets[0].id, node.value
    if isinstance(value, ast.BinOp) and isinstance(value.left, ast.Name) and value.left.id == target:
        sign = _SIGNS.get(type(value.op))
        if sign in ("+", "-"):
            return f"{target} {sign}= {ast.unparse(value.right)}"
    return f"{target}.copy_({ast.unparse(value)})"


def leaf_anew(statement: str) -> str:
    """``x = (x / 2).detach().requires_grad_()`` for ``x = x / 2``; empty for other statements."""
    target, sign, value = statement.partition(" = ")
    return f"{target} = {in_brackets(value)}.detach().requires_grad_()" if sign else ""


def leaf_at_last(statement: str) -> str:
    """``w = (torch.randn(3) * 0.01).requires_grad_()`` for ``w = torch.randn(3, requires_grad=True) * 0.01``."""
    node = _statement(statement)
    value = getattr(node, "value", None)
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or value is None:
        return ""
    plain = _WithoutRequest()
    inner = ast.unparse(plain.visit(value))
    target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    if plain.parameter:
        return f"{target} = {plain.parameter}({inner})"
    return f"{target} = {inner if _is_call(inner) else f'({inner})'}.requires_grad_()"


def _is_call(text: str) -> bool:
    return isinstance(_parsed(text), ast.Call)


class _WithoutRequest(ast.NodeTransformer):
    """Takes ``requires_grad=True``, ``.requires_grad_()`` and ``nn.Parameter(...)`` out of an expression."""

    def __init__(self) -> None:
        self.parameter = ""

    def visit_Call(self, node: ast.Call) -> ast.expr:  # ast's own naming
        self.generic_visit(node)
        node.keywords = [given for given in node.keywords if given.arg != "requires_grad"]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "requires_grad_" and isinstance(node.func, ast.Attribute):
            return node.func.value
        if name == "Parameter" and node.args:
            self.parameter = ast.unparse(node.func)
            return node.args[0]
        return node


def _parsed(expression: str) -> ast.expr | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of an odd escape Python has warned when it ran the code
            return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _statement(text: str) -> ast.stmt | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return None
    return body[0] if len(body) == 1 else None


def _piece(expression: str, node: ast.expr) -> Piece:
    data = expression.encode()
    start, end = node.col_offset, node.end_col_offset or 0
    return Piece(data[start:end].decode(), len(data[:start].decode()), len(data[:end].decode()))
