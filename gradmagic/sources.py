"""From a position in running code to the line, the expression and the name it is bound to. No torch here.

CPython keeps, for every instruction, the span of source it was compiled from (PEP 657). A *site* is such a
position; a *path* is the chain of sites from the innermost frame outwards. Everything is resolved lazily, once
a path, after the cell has run.
"""

from __future__ import annotations

import ast
import linecache
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import NamedTuple

from .bindings import Binding, Position, through_c
from .handing import Calls
from .history import EarlierCell
from .records import Called, Location, Source
from .sites import Site, positions
from .source_tree import COMPREHENSIONS, TEXT_LIMIT, SourceTree, Span


@dataclass(frozen=True, slots=True)
class CellSource:
    """The traced notebook cell, or whatever else is traced as a whole: a script, a function.

    Attributes:
        file: the file name its code was compiled under.
        number_of: gives the execution count of the notebook cell compiled under a file name, or None.
        earlier: gives the cells that ran before, the oldest first.
        text: the cell as the person wrote it, or None where that is unknown; the code may have been transformed.
        lines: its first and last line in the file; None for all of it.
        called: a word for it: ``cell``, ``script``, ``function``.
        again: how it is traced with options that hints write as for the magic; None for the magic itself.
    """

    file: str
    number_of: Callable[[str], int | None]
    earlier: Callable[[], Sequence[EarlierCell]] = tuple
    text: str | None = None
    lines: tuple[int, int] | None = None
    called: Called = "cell"
    again: Callable[[str], str] | None = None


class BoundName(NamedTuple):
    """A name a result is bound to.

    Attributes:
        name: the name, as written.
        contested: where it is bound, when a loop inside the call made several results of which only the last is
            handed on; else None.
        unfinished: where it is bound, when an exception came through there, so that the last round bound nothing.
    """

    name: str
    contested: Site | None
    unfinished: Site | None = None


class _Step(NamedTuple):
    """What becomes of a result at one site: its names there, its place in what is returned, and see `BoundName`."""

    names: tuple[str, ...]
    returned: Position | None
    in_loop: bool
    unfinished: Site | None


class _LibraryRun:
    """How a function of a library ran (see `bindings.Run`)."""

    def __init__(self, calls: Calls, code: CodeType, tree: SourceTree) -> None:
        self._calls = calls
        self._code = code
        self._tree = tree

    def hands_on(self, call: ast.Call) -> int | None:
        return self._calls.hands_on(self._code, self._tree, call)

    def ran(self, statement: ast.AST) -> bool:
        return self._calls.ran(self._code, self._tree, statement)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor that was not seen at its birth comes from, as far as the source tells."""

    location: Location
    expression: str
    names: tuple[str, ...]
    callee: str
    tree: SourceTree
    node: ast.expr


@cache
def _standard_library() -> tuple[str, ...]:
    """Folders of Python's own modules. To ask for them takes 0.2 ms, once a traced cell."""
    paths = sysconfig.get_paths()
    return tuple({paths["stdlib"], paths["platstdlib"]})


class Sources:
    """Looks up code positions; parsed sources are cached for as long as this object lives."""

    def __init__(self, cell: CellSource | None, own_file: str | None, libraries: Sequence[str]) -> None:
        """Prepare the look-up.

        Args:
            cell: the traced cell, when there is one.
            own_file: the file whose lines count as the traced code.
            libraries: folders whose frames are never the person's code (torch, gradmagic).
        """
        self.cell = cell
        self._written = cell.text.split("\n") if cell is not None and cell.text is not None else None
        """The lines of the cell as the person wrote them, where that is known."""
        self._own_file = own_file
        self._libraries = tuple(folder.rstrip("/\\") for folder in libraries)
        self._standard = _standard_library()
        self._trees: dict[str | CodeType, SourceTree | None] = {}
        self._checked: set[str] = set()
        self._nodes: dict[Site, tuple[SourceTree | None, ast.AST | None]] = {}
        self._locations: dict[Site, Location] = {}
        self._same: dict[tuple[CodeType, Span], Site] = {}
        self._firsts: dict[Site, Site] = {}
        """For each site the first that has the same span; see `canonical`."""
        self._on_path: dict[Sequence[Site], tuple[Site | None, Site | None]] = {}
        """See `_looked_through`."""
        self._foreign: dict[str, bool] = {}
        self._calls = Calls(self.tree)
        self._unfinished: set[tuple[CodeType, Span]] = set()
        self._bindings: dict[tuple[Site, Position], tuple[list[str], Position | None, bool]] = {}
        self._steps: dict[tuple[Site, str | None, Position], _Step | None] = {}

    def stopped_by(self, traceback: TracebackType | None) -> None:
        """An exception ended the code: what stood on its way was not finished, and bound nothing."""
        while traceback is not None:
            site = Site(traceback.tb_frame.f_code, traceback.tb_lasti)
            self._unfinished.add((site.code, site.span))
            traceback = traceback.tb_next
        self._steps.clear()

    def recorded_on(self, paths: Iterable[Sequence[Site]]) -> None:
        """Something was recorded on these paths, and so within the calls along them."""
        self._calls.note((site.code, site.span) for site in {site for path in set(paths) for site in path})

    # ---- what stands at a site

    def is_library(self, code: CodeType) -> bool:
        """Whether the code belongs to torch, gradmagic or the standard library rather than to the person."""
        name = code.co_filename
        if name not in self._foreign:
            self._foreign[name] = self._belongs_to_library(name)
        return self._foreign[name]

    def _belongs_to_library(self, name: str) -> bool:
        if name == self._own_file:
            return False
        if name.startswith("<frozen "):
            return True
        inside = name in self._libraries or any(
            name.startswith(folder + sep) for folder in self._libraries for sep in "/\\"
        )
        standard = any(name.startswith(folder) for folder in self._standard) and "site-packages" not in name
        return inside or standard

    def is_own(self, code: CodeType) -> bool:
        """Whether the code stands in the traced cell (or in the file that entered the trace)."""
        return code.co_filename == self._own_file

    def person_site(self, path: Sequence[Site]) -> Site | None:
        """The innermost site that is the person's code; the outermost one where there is none."""
        return self._looked_through(path)[0]

    def own_line(self, path: Sequence[Site]) -> int | None:
        """The traced cell's own line that was running, or None."""
        site = self._looked_through(path)[1]
        return self.line(site) if site is not None else None

    def _looked_through(self, path: Sequence[Site]) -> tuple[Site | None, Site | None]:
        """The innermost sites of the person's code, and of the traced code; asked several times a row."""
        found = self._on_path.get(path)
        if found is None:
            persons = next((site for site in path if not self.is_library(site.code)), path[-1] if path else None)
            own = next((site for site in path if site.code.co_filename == self._own_file), None)
            found = self._on_path[path] = persons, own
        return found

    def canonical(self, path: Sequence[Site]) -> tuple[Site, ...]:
        """A path by its spans of source.

        Python 3.11 reports one call at two offsets (PRECALL and CALL), before and after it has specialised the code.
        """
        firsts = self._firsts
        for site in path:
            if site not in firsts:
                firsts[site] = self._same.setdefault((site.code, site.span), site)
        return tuple([firsts[site] for site in path])

    def line(self, site: Site) -> int:
        """Line of a site in its file."""
        tree, node = self.node(site)
        if tree is not None and node is not None:
            return tree.line_of(node)
        return site.span[0] or site.code.co_firstlineno

    def expression(self, site: Site) -> str:
        """Source text of a site: the expression if it can be told apart, else the line."""
        tree, node = self.node(site)
        if tree is not None and node is not None:
            return tree.text(self._visible(tree, node))
        line = site.span[0] or 0
        return linecache.getline(site.code.co_filename, line).strip()[:TEXT_LIMIT]

    @staticmethod
    def _visible(tree: SourceTree, node: ast.AST) -> ast.AST:
        """What to show for a node: the assignment for ``y[0] = 0``, the iterated value for a loop."""
        if isinstance(node, (ast.For, ast.AsyncFor)):
            return node.iter
        if isinstance(node, COMPREHENSIONS):
            return node.generators[0].iter
        if isinstance(getattr(node, "ctx", None), ast.Store):
            return tree.statement_of(node)
        return node

    def location(self, site: Site) -> Location:
        """Where a site stands, with its expression."""
        found = self._locations.get(site)
        if found is None:
            found = self._locations[site] = self._located(site)
        return found

    def _located(self, site: Site) -> Location:
        file = site.code.co_filename
        tree, node = self.node(site)
        return Location(
            file=file,
            line=self.line(site),
            function=_function_name(site.code),
            cell=self.cell_number(file),
            own=self.is_own(site.code),
            text=self.expression(site),
            statement=tree.statement_text(node) if tree is not None and node is not None else "",
            span=self._span(tree, self._visible(tree, node), file) if tree is not None and node is not None else None,
        )

    def _span(self, tree: SourceTree, node: ast.AST, file: str) -> tuple[int, int, int, int] | None:
        """Where a node stands in the traced code; None elsewhere, and where the person has written something else."""
        span = tree.span_of(node) if file == self._own_file else None
        if span is None or self._written is None:
            return span
        ran, written = self._lines(file), self._written
        lines = range(span[0] - 1, span[2])
        same = all(line < len(written) and ran[line].rstrip("\r\n") == written[line].rstrip("\r") for line in lines)
        return span if same else None

    def traced(self, line: int) -> Source | None:
        """The traced code as the person wrote it: the cell, or else the ``with`` block that begins on a line."""
        if self.cell is not None and self.cell.lines is not None:
            first, last = self.cell.lines
            text = "".join(self._lines(self.cell.file)[first - 1 : last])
            return Source(text.rstrip("\n"), first) if text else None
        if self.cell is not None:
            text = self.cell.text or "".join(self._lines(self.cell.file))
            return Source(text.rstrip("\n")) if text else None
        tree = self._whole(self._own_file) if self._own_file is not None else None
        blocks = (node for node in ast.walk(tree.tree) if isinstance(node, (ast.With, ast.AsyncWith))) if tree else ()
        block = next((node for node in blocks if node.lineno <= line <= node.body[0].lineno), None)
        if block is None or tree is None:
            return None
        return Source("\n".join(tree.lines[block.lineno - 1 : block.end_lineno]), block.lineno)

    def earlier_cells(self) -> Sequence[EarlierCell]:
        """The cells that ran before the traced one, the oldest first; none where there is no notebook."""
        return self.cell.earlier() if self.cell is not None else ()

    def cell_number(self, file: str) -> int | None:
        """Execution count of the notebook cell with this file name, or None for a real file."""
        return self.cell.number_of(file) if self.cell is not None else None

    def node(self, site: Site) -> tuple[SourceTree | None, ast.AST | None]:
        """The syntax at a site, with the tree it belongs to."""
        found = self._nodes.get(site)
        if found is None:
            tree = self.tree(site.code)
            found = self._nodes[site] = (tree, tree.node_at(site.span)) if tree is not None else (None, None)
        return found

    def tree(self, code: CodeType) -> SourceTree | None:
        """The parsed source around a code object: its function alone in a file, the whole of a cell."""
        if code.co_filename == self._own_file or code.co_name == "<module>":
            return self._whole(code.co_filename)
        if code not in self._trees:
            self._trees[code] = self._piece(code) or self._whole(code.co_filename)
        return self._trees[code]

    def _whole(self, file: str) -> SourceTree | None:
        if file not in self._trees:
            lines = self._lines(file)
            self._trees[file] = SourceTree.parse(lines) if lines else None
        return self._trees[file]

    def _piece(self, code: CodeType) -> SourceTree | None:
        # Parsing torch/nn/functional.py whole takes 0.2 s, a function of it well under a millisecond.
        if code.co_name.startswith("<"):
            return None
        lines = self._lines(code.co_filename)
        ends = [end or 0 for _, end, _, _ in positions(code)]
        return SourceTree.parse(lines, code.co_firstlineno, max(ends)) if lines and ends else None

    def _lines(self, file: str) -> list[str]:
        """A file's lines as they are now: since an earlier trace it may have been edited, and loaded anew."""
        if file not in self._checked:
            self._checked.add(file)
            linecache.checkcache(file)
        return linecache.getlines(file)

    # ---- names

    def names(self, path: Sequence[Site], position: Position) -> list[BoundName]:
        """Names that statements along `path` bind the result to, from the innermost frame outwards.

        A result that a function returns is followed to what the caller assigns it to.
        """
        found: list[BoundName] = []
        rounds: Site | None = None
        callee: str | None = None
        for site in path:
            key = site, callee, position
            if key not in self._steps:
                self._steps[key] = self._step(*key)
            step = self._steps[key]
            if step is None:
                break
            if step.names:
                contested = site if rounds is not None else None
                found += [BoundName(name, contested, step.unfinished) for name in step.names]
            if step.returned is None:
                break
            if step.in_loop and rounds is None:
                rounds = site
            callee, position = site.code.co_name, step.returned
        return found

    def _step(self, site: Site, callee: str | None, position: Position) -> _Step | None:
        """What becomes of a result at one site; all operations of a function go on from there in the same way."""
        tree, node = self.node(site)
        held = through_c(node, callee, position) if node is not None else None
        if tree is None or node is None or held is None:
            return None
        names, returned, in_loop = self._binding(site, held, tree, node)
        unfinished = site if (site.code, site.span) in self._unfinished else None
        return _Step(() if self.is_library(site.code) else tuple(names), returned, in_loop, unfinished)

    def is_handed_to(self, path: Sequence[Site], index: int) -> bool:
        """Whether the functions below `path[index]` return the result, one to the other, up to there."""
        callee: str | None = None
        position: Position | None = ()
        for site in path[:index]:
            tree, node = self.node(site)
            position = through_c(node, callee, position) if node is not None and position is not None else None
            if tree is None or node is None or position is None:
                return False
            callee = site.code.co_name
            position = self._binding(site, position, tree, node)[1]
        return position is not None

    def _binding(
        self, site: Site, position: Position, tree: SourceTree, node: ast.AST
    ) -> tuple[list[str], Position | None, bool]:
        """What is bound at a site; asked again for every operation below it, so it is remembered."""
        key = (site, position)
        if key not in self._bindings:
            run = _LibraryRun(self._calls, site.code, tree) if self.is_library(site.code) else None
            binding = Binding(tree, node, position, run)
            names, returned = binding.resolve()
            self._bindings[key] = names, returned, binding.in_loop
        return self._bindings[key]

    def is_target(self, path: Sequence[Site]) -> bool:
        """Whether the innermost site is what an assignment assigns to."""
        _, node = self.node(path[0]) if path else (None, None)
        return isinstance(getattr(node, "ctx", None), ast.Store)

    def callee(self, site: Site) -> str | None:
        """What is called at a site, as written (``model.encoder``), when it is a plain dotted name."""
        tree, node = self.node(site)
        if tree is None or not isinstance(node, ast.Call):
            return None
        text = tree.text(node.func)
        return text if _is_reference(node.func) else None

    def loop_variables(self) -> frozenset[str]:
        """Names that ``for`` loops of the traced code bind."""
        tree = self._whole(self._own_file) if self._own_file is not None else None
        loops = [node for node in ast.walk(tree.tree) if isinstance(node, (ast.For, ast.AsyncFor))] if tree else []
        return frozenset(node.id for loop in loops for node in ast.walk(loop.target) if isinstance(node, ast.Name))

    # ---- tensors that were not seen at their birth

    def origin_of_argument(self, path: Sequence[Site], index: int, given: int) -> Origin | None:
        """Where argument `index` of the call at `path` comes from, when it was made by unseen code.

        Args:
            path: sites of the operation that received the tensor.
            index: which of the operation's positional arguments it is.
            given: how many positional arguments the operation received (to tell ``x.sum()`` from ``torch.sum(x)``).
        """
        site = self._calling_site(path)
        tree, node = self.node(site) if site is not None else (None, None)
        if site is None or tree is None or node is None:
            return None
        argument = _argument(node, index, given)
        if isinstance(argument, ast.Call):
            names, _ = Binding(tree, argument, ()).resolve()
            return self._origin(tree, argument, site.code, tuple(names))
        if argument is None or not _is_reference(argument):
            return None
        found = self._origin_of_name(argument, site, tree, node)
        return found or self._origin(tree, argument, site.code, (tree.text(argument),))

    def _calling_site(self, path: Sequence[Site]) -> Site | None:
        """The person's site, when the torch call stands right there and not deeper in a library."""
        # A function of PyTorch that is written in Python is on the path itself, with what hands it to a mode.
        between = 2 if path and path[0].code.co_name == "handle_torch_function" else 0
        site = path[between] if len(path) > between else None
        return site if site is not None and not self.is_library(site.code) else None

    def argument(self, path: Sequence[Site], index: int, given: int) -> str:
        """Source text of argument `index` of the innermost call at `path`; empty where it cannot be told."""
        tree, node = self.node(path[0]) if path else (None, None)
        argument = _argument(node, index, given) if node is not None and index >= 0 else None
        return tree.text(argument) if tree is not None and argument is not None else ""

    def origin_in_cell(self, name: str) -> Origin | None:
        """The last statement at the top level of the traced cell that binds `name` to a value."""
        if self._own_file is None or self.cell is None:
            return None
        tree = self._whole(self._own_file)
        if tree is None:
            return None
        return self._assigned(tree, tree.tree, name, None, None)

    def _origin_of_name(self, argument: ast.expr, site: Site, tree: SourceTree, before: ast.AST) -> Origin | None:
        """The last statement before a node, in the same scope, that binds the argument's name to a value."""
        if not isinstance(argument, ast.Name):
            return None
        return self._assigned(tree, tree.scope_of(before), argument.id, before, site.code)

    def _assigned(
        self, tree: SourceTree, scope: ast.AST, name: str, before: ast.AST | None, code: CodeType | None
    ) -> Origin | None:
        limit = getattr(before, "lineno", None)
        found: ast.expr | None = None
        for node in tree.in_scope(scope):
            if not isinstance(node, ast.Assign) or (limit is not None and node.lineno >= limit):
                continue
            values = (_value_bound(target, node.value, name) for target in node.targets)
            value = next((value for value in values if value is not None), None)
            if value is not None and (found is None or node.lineno > found.lineno):
                found = value
        return self._origin(tree, found, code, (name,)) if found is not None else None

    def _origin(self, tree: SourceTree, node: ast.expr, code: CodeType | None, names: tuple[str, ...]) -> Origin:
        file = code.co_filename if code is not None else self._own_file or ""
        text = tree.text(node)
        callee = tree.text(node.func) if isinstance(node, ast.Call) and _is_reference(node.func) else ""
        location = Location(
            file=file,
            line=tree.line_of(node),
            function=_function_name(code) if code is not None else None,
            cell=self.cell_number(file),
            own=file == self._own_file,
            text=text,
            statement=tree.statement_text(node),
            span=self._span(tree, node, file),
        )
        return Origin(location, text, names, callee, tree, node)


def _value_bound(target: ast.expr, value: ast.expr, name: str) -> ast.expr | None:
    """What an assignment to `target` gives `name` its value from: in ``a, b = f(), g()`` the element."""
    if isinstance(target, (ast.Tuple, ast.List)):
        values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
        own = values if len(values) == len(target.elts) else [value] * len(target.elts)
        found = (_value_bound(part, given, name) for part, given in zip(target.elts, own, strict=True))
        return next((given for given in found if given is not None), None)
    return value if isinstance(target, ast.Name) and target.id == name else None


def _function_name(code: CodeType) -> str | None:
    """``Net.forward`` for a method, None at the top level."""
    parts = [part for part in code.co_qualname.split(".") if not part.startswith("<")]
    return ".".join(parts) or None


def _is_reference(node: ast.expr) -> bool:
    """Whether an expression is a name, an attribute or an index of one, without any call."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return isinstance(node, ast.Name)


def _argument(node: ast.AST, index: int, given: int) -> ast.expr | None:
    if isinstance(node, ast.BinOp):
        return (node.left, node.right)[index] if index < 2 else None
    if isinstance(node, ast.Call):
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute) and given == len(arguments) + 1:
            arguments.insert(0, node.func.value)
        return arguments[index] if index < len(arguments) else None
    if isinstance(node, (ast.Subscript, ast.Attribute)) and index == 0:
        return node.value
    return node.operand if isinstance(node, ast.UnaryOp) and index == 0 else None


def library_folders(*modules: ModuleType) -> list[str]:
    """Folders of packages whose frames are not the person's code; of a module that is in no package, its file."""
    files = [(module.__file__, hasattr(module, "__path__") or "." in module.__name__) for module in modules]
    return [str(Path(file).parent if in_package else file) for file, in_package in files if file]
