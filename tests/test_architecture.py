"""DESIGN, "The house": imports point one way, each foreign world has its files, functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gradmagic

PACKAGE = Path(gradmagic.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
LONGEST = 60

LAYERS = (
    {"records", "curves", "raised", "terminal", "tracebacks", "stored", "numbering"},
    {
        "statistics",
        "answers",
        "sites",
        "sources",
        "modules",
        "namespace",
        "places",
        "bindings",
        "handing",
        "source_tree",
        "dataflow",
        "history",
        "pairing",
        "verdicts",
        "uses",
        "reshapings",
        "diagnosis",
    },
    {"recorder", "repeats", "entries", "tensors", "tasks", "calls", "operations", "paths", "changes"},
    {
        "graph",
        "walk",
        "gathering",
        "guest",
        "keeping",
        "births",
        "accumulation",
        "failures",
        "fused",
        "optimizers",
        "passes",
        "journal",
    },
    {"backward"},
    {"rows", "exports", "report", "reading", "scalars", "naming", "observed", "ending", "ledger", "matching"}
    | {"comparison", "loss_scale", "checks", "known", "mistakes", "checking"}
    | {"function_calls", "function_checks", "gradchecking", "trials", "differences", "random_streams"},
    {"render"},
    {"tracing", "decorating", "asserting", "live", "compiled"},
    {
        "pytest_plugin",
        "defaults",
        "script",
        "settings",
        "late",
        "delivery",
        "command",
        "__main__",
        "cell",
        "awaiting",
        "options",
        "previous",
        "magic",
    },
)
"""A module imports from its own layer and from those above it in this list (and in no circle)."""


class _Imports(ast.NodeVisitor):
    """Every import statement, with whether it runs when the module is imported."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
        self._at_import = True

    def visit_Import(self, node: ast.Import) -> None:
        self.found.append((node, self._at_import))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.append((node, self._at_import))

    def visit_If(self, node: ast.If) -> None:
        """What stands under TYPE_CHECKING is read by type checkers alone."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self._at_import = self._at_import, False
        self.generic_visit(node)
        self._at_import = before


@cache
def imports_of(module: str) -> tuple[tuple[str, bool], ...]:
    """The absolute names a module imports, each with whether it does so at its own import."""
    visitor = _Imports()
    visitor.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return tuple((name, at_import) for node, at_import in visitor.found for name in _names(module, node))


def _names(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    if node.level == 0:
        yield node.module or ""
        return
    is_package = MODULES[module].name == "__init__.py"
    here = ["gradmagic", *module.split(".")] if module != "__init__" else ["gradmagic"]
    base = here[: len(here) - node.level + is_package] if module != "__init__" else here
    if node.module:
        yield ".".join([*base, node.module])
    else:
        yield from (".".join([*base, alias.name]) for alias in node.names)


def own_imports(module: str, at_import: bool | None = None) -> set[str]:
    """The modules of gradmagic that a module imports, without the package's name; "" is the package root."""
    return {
        name.removeprefix("gradmagic").removeprefix(".")
        for name, early in imports_of(module)
        if name.split(".", 1)[0] == "gradmagic" and at_import in (None, early)
    }


def foreign_imports(module: str) -> set[str]:
    """Top-level names of everything else that a module imports, anywhere."""
    return {name.split(".", 1)[0] for name, _ in imports_of(module)} - {"gradmagic"}


def layer_of(module: str) -> int:
    top = module.split(".", 1)[0]
    return next(index for index, layer in enumerate(LAYERS) if top in layer)


def inner_modules() -> list[str]:
    return [module for module in MODULES if module != "__init__"]


def test_every_module_has_a_place_in_the_order() -> None:
    """A new module is put into LAYERS on purpose."""
    known = set().union(*LAYERS)
    assert {module.split(".")[0] for module in inner_modules()} - known == set()


@pytest.mark.parametrize("module", inner_modules())
def test_imports_point_one_way(module: str) -> None:
    """Nothing imports from a layer below its own, but for what draws itself on request."""
    late_allowed = {"render"} if module in ("report", "comparison", "checks", "function_checks") else set()
    wrong = {
        name
        for name in own_imports(module)
        if name and layer_of(name) > layer_of(module) and name.split(".")[0] not in late_allowed
    }
    assert wrong == set()


@pytest.mark.parametrize("module", inner_modules())
def test_nobody_imports_the_package_root(module: str) -> None:
    """The root is for people; inside, each name comes from where it lives."""
    assert "" not in own_imports(module)


def test_the_report_imports_render_only_when_it_draws() -> None:
    """Render imports the report; the other way goes through function bodies."""
    assert not any(name.startswith("render") for name in own_imports("report", at_import=True))


def test_there_are_no_circles() -> None:
    """Following imports never leads back (those inside functions of report.py are for drawing)."""
    done: set[str] = set()
    for module in inner_modules():
        _walk(module, (), done)


def _walk(module: str, trail: tuple[str, ...], done: set[str]) -> None:
    assert module not in trail, f"a circle: {' -> '.join([*trail, module])}"
    if module in done or module not in MODULES:
        return
    for name in sorted(own_imports(module, at_import=True)):
        _walk(name, (*trail, module), done)
    done.add(module)


@pytest.mark.parametrize("module", [name for name in inner_modules() if name.startswith("diagnosis.")])
def test_diagnosis_judges_records_alone(module: str) -> None:
    """Pure functions over records: no torch, no shell, nothing else of the package."""
    assert own_imports(module) <= {"records", "curves"} | {name for name in MODULES if name.startswith("diagnosis")}
    assert foreign_imports(module).isdisjoint({"torch", "IPython", "rich", "jinja2"})


DATA = ("records", "report", "exports", "reading", "scalars")
"""Rooms of the report that write it and read it."""


@pytest.mark.parametrize(
    "module",
    [name for name in inner_modules() if name in DATA or name.split(".")[0] == "render"],
)
def test_records_report_and_render_know_neither_torch_nor_the_shell(module: str) -> None:
    """A report can be read and drawn where neither is installed."""
    assert foreign_imports(module).isdisjoint({"torch", "IPython"})


def test_only_render_knows_rich_jinja_and_pygments() -> None:
    """The terminal and HTML are render's worlds."""
    users = {module for module in inner_modules() if foreign_imports(module) & {"rich", "jinja2", "pygments"}}
    assert {module.split(".")[0] for module in users} == {"render"}


def test_only_cell_magic_and_its_options_know_the_shell() -> None:
    """What the options raise is the shell's own error."""
    users = {module for module in inner_modules() if "IPython" in foreign_imports(module)}
    assert users == {"cell", "magic", "options"}


def test_source_code_is_read_without_torch() -> None:
    """Sources turn code positions into names: strings and syntax trees only."""
    for module in ("sources", "sites", "bindings", "handing", "source_tree", "namespace"):
        if module in MODULES:
            assert "torch" not in foreign_imports(module), module


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(file: Path) -> None:
    """None over 60 lines, docstring included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_hold_no_mutable_state(file: Path) -> None:
    """No list or set that code could fill stands at the top level; tables are dicts or tuples."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    mutable = (ast.List, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp)
    found = [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, mutable)
    ]
    assert [text for text in found if not text.startswith("__all__")] == []
