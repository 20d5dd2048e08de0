"""Loading is light, and unloading leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from shells import Session, session

import gradmagic

LOAD = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.run_line_magic("load_ext", "gradmagic")
print(json.dumps(sorted(set(sys.modules) - before)))
"""
IMPORT = """
import json, sys
before = set(sys.modules)
import gradmagic
print(json.dumps(sorted(set(sys.modules) - before)))
"""
SHOW = """
import random
before = random.getstate()
from gradmagic.report import Report
print(Report())
assert "gradtrace" in Report().to_html()
assert random.getstate() == before
"""
UNTOUCHED = """
import builtins, json, sys, threading
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

WATCHED = (torch, torch.Tensor, torch._C.TensorBase, torch.autograd, torch.autograd.graph, torch.autograd.Function,
    torch.nn.functional, torch.nn.Module, torch.nn.Parameter, torch.optim.Optimizer, torch.overrides, builtins)

def seen():
    attributes = {(each.__name__, name): id(value) for each in WATCHED for name, value in vars(each).items()}
    hooks = {name: len(value) for name, value in vars(torch.nn.modules.module).items() if name.startswith("_global_")
        and hasattr(value, "__len__")}
    modes = len(_get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack())
    return attributes, hooks, modes, sys.gettrace(), sys.getprofile(), threading.active_count(), sys.meta_path[:]

shell = InteractiveShell.instance()
shell.run_cell("1").raise_error()
loaded, before = set(sys.modules), seen()
shell.run_line_magic("load_ext", "gradmagic")
assert seen() == before
print(json.dumps(sorted(set(sys.modules) - loaded)))
"""
LOADED = ((True, True), True, 2, 1)


def imported(code: str) -> set[str]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(ran.stdout.splitlines()[-1])}


def test_loading_the_extension_imports_nothing_heavy() -> None:
    """PyTorch, rich and jinja2 come with the first trace; matplotlib and pandas only when asked for."""
    assert imported(LOAD).isdisjoint({"torch", "numpy", "rich", "jinja2", "matplotlib", "pandas"})


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Not even IPython."""
    assert imported(IMPORT).isdisjoint({"torch", "numpy", "rich", "jinja2", "matplotlib", "pandas", "IPython"})


def test_loading_the_extension_touches_nothing_of_torch() -> None:
    """A cell without the magic runs the same functions as before: none is replaced, no mode or hook is there."""
    ran = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, check=True)
    added = json.loads(ran.stdout.splitlines()[-1])
    assert [name for name in added if name.partition(".")[0] in ("torch", "numpy")] == []
    assert "gradmagic.magic" in added


def test_showing_the_first_report_of_a_process_draws_no_random_number() -> None:
    """Python's own stream, of which rich takes a number when it is imported, goes on as without the magic."""
    subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)


def test_public_names_are_there() -> None:
    """Every name of the public contract can be had, and is listed."""
    for name in gradmagic.__all__:
        assert getattr(gradmagic, name) is not None
        assert name in dir(gradmagic)


def test_version_is_that_of_the_installed_package() -> None:
    """One place says the version: the package's metadata."""
    assert gradmagic.__version__ == version("gradmagic")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="nosuch"):
        gradmagic.nosuch  # noqa: B018 - the access is the test


@pytest.fixture
def shell() -> Iterator[Session]:
    with session() as opened:
        yield opened


def traces(shell: Session) -> tuple[bool, bool]:
    magics = shell.shell.magics_manager.magics
    return "gradtrace" in magics["line"], "gradtrace" in magics["cell"]


def registered(shell: Session) -> tuple[object, ...]:
    """What of gradmagic is in the shell (IPython itself loads magics of its own as it goes)."""
    manager = shell.shell.magics_manager
    ours = [each for each in shell.shell.configurables if type(each).__module__.startswith("gradmagic")]
    transformers = shell.shell.input_transformers_post
    return traces(shell), "GradtraceMagics" in manager.registry, len(ours), len(transformers)


def test_unloading_leaves_nothing_registered(shell: Session) -> None:
    """The shell is as it was before %load_ext; loading again brings the same back."""
    assert registered(shell) == LOADED
    for _ in range(2):
        shell.run("%unload_ext gradmagic")
        assert registered(shell) == ((False, False), False, 0, 0)
        shell.run("%load_ext gradmagic")
        assert registered(shell) == LOADED
    shell.run("%unload_ext gradmagic")
    assert "Cell magic `%%gradtrace` not found" in shell.run("%%gradtrace\n1").stderr


def test_loading_twice_is_fine(shell: Session) -> None:
    """The second %load_ext says that it is loaded; calling the hook itself again changes nothing."""
    assert shell.run("%load_ext gradmagic").error == ""
    gradmagic.load_ipython_extension(shell.shell)
    assert registered(shell) == LOADED


def test_reloading_works(shell: Session) -> None:
    """%reload_ext gives a magic that runs."""
    assert shell.run("%reload_ext gradmagic").error == ""
    assert registered(shell) == LOADED
    assert shell.run("%%gradtrace -q\n3").result == "3"


def test_unloading_leaves_a_magic_of_the_same_name_alone(shell: Session) -> None:
    """What the person has put in its place stays."""
    shell.shell.register_magic_function(lambda line: line, "line", "gradtrace")
    shell.run("%unload_ext gradmagic")
    assert traces(shell) == (True, False)
    assert shell.run("%gradtrace mine").result == "'mine'"
