"""An IPython shell inside the test process, and what a cell did to it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

HEADING = "%%gradtrace -q"


@dataclass(frozen=True)
class Ran:
    """What a person sees of one cell, and what it leaves in the shell."""

    stdout: str
    stderr: str
    result: str
    error: str
    out: str
    underscores: str
    names: frozenset[str]


class Session:
    """A shell and the cells that ran in it."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell

    def fresh(self) -> Session:
        """Back to ``In [1]``, with nothing in the namespace."""
        self.shell.reset(new_session=False)
        self.shell.execution_count = 1
        if self.shell.history_manager is not None:
            for history in (self.shell.history_manager.input_hist_raw, self.shell.history_manager.input_hist_parsed):
                history[:] = [""]
        self.shell.compile.reset_compiler_flags()
        return self

    def run(self, cell: str) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            result = self.shell.run_cell(cell, store_history=True)
        names, error = self.shell.user_ns, result.error_before_exec or result.error_in_exec
        return Ran(
            out.getvalue(),
            err.getvalue(),
            repr(result.result),
            f"{type(error).__name__}: {error}" if error else "",
            repr(names["Out"]),
            repr([names.get("_"), names.get("__"), names.get("___")]),
            frozenset(name for name in names if not name.startswith("_")),
        )

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """A shell with gradmagic loaded; the interpreter is left as it was."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    main, hooks = sys.modules["__main__"], (sys.displayhook, sys.excepthook)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    try:
        shell.run_line_magic("load_ext", "gradmagic")
        import_module("gradmagic.tracing")
        gc.freeze()  # the shell collects garbage at each reset; this keeps all of PyTorch out of it
        yield Session(shell)
    finally:
        gc.unfreeze()
        atexit.unregister(shell.atexit_operations)
        shell.atexit_operations()
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = main
        sys.displayhook, sys.excepthook = hooks


def twins(shell: Session, body: str, before: str = "%xmode Context") -> tuple[Ran, Ran]:
    """The cell with a comment line in place of the magic, and with the magic; everything else is equal."""
    heading = HEADING + "\n"
    runs = []
    for cell in (f"# {heading}{body}", heading + body):
        shell.fresh().run(before)
        runs.append(shell.run(cell))
    return runs[0], runs[1]
