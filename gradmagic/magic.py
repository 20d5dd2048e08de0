"""``%%gradtrace`` and ``%gradtrace``: the options, the way into and out of a trace, the display."""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"
# IPython's magic decorators, display() and push() carry no type hints.

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import PurePath
from threading import get_ident
from traceback import extract_tb
from types import FrameType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from .awaiting import AwaitTransformer
from .cell import Cell, cell_id, cell_of, earlier_cells, execution_count, pass_on, require_awaited, statement_of
from .defaults import GradTrace
from .options import options_from, require_code, split
from .pairing import derived_names
from .previous import PreviousReports
from .raised import told_briefly
from .settings import DECLARED, Options, pairs_to_check, report_options
from .terminal import allows_color, is_ascii_only

if TYPE_CHECKING:
    from .checks import GradientChecks
    from .comparison import Comparison
    from .function_calls import FunctionWatch
    from .function_checks import FunctionChecks
    from .report import Report
    from .tracing import trace

    _Shown = Report | Comparison | GradientChecks | FunctionChecks


def _options(function: Any) -> Any:
    for each in reversed(DECLARED):  # IPython reads decorators from the bottom to the top
        function = argument(*each.flags, **each.arguments("cell"))(function)
    return function


@magics_class
class GradtraceMagics(Magics):
    """The magics of gradmagic."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        """Bind to a shell."""
        super().__init__(shell)
        self.previous = PreviousReports()
        self.defaults = GradTrace(parent=shell)

    @magic_arguments()
    @_options
    @argument("statement", nargs="*", help="the code to run (%%gradtrace on one line only); -- may stand before it")
    @no_var_expand
    @line_cell_magic
    def gradtrace(self, line: str, cell: str | None = None) -> Any:
        """Run a cell as always, and show the gradient of every tensor it makes.

        Where there is no gradient, the report says why, which line is to blame, and what to write instead.
        If the cell does not call backward itself, it is run from the last scalar::

            %%gradtrace
            y = x * w
            loss = y.pow(2).sum()

            %gradtrace -o report loss = (x * w).pow(2).sum()
        """
        __tracebackhide__ = True
        words, rest = split(line)
        options = options_from(self.gradtrace.parser, words, self.defaults.options())
        require_code(rest, cell)
        shell = self.shell
        before = _named(shell, options.diff) if options.diff else None
        try:
            heading = f"%%gradtrace {line}".rstrip()
            code = statement_of(shell, rest) if cell is None else cell_of(shell, cell, heading)
            written = None if cell is None else f"{heading}\n{cell}"
            job = _Job(
                shell, code, options, self.previous, self.defaults, rest if cell is None else cell, written, before
            )
            return _run_awaiting(job) if require_awaited(shell, code) else _run(job)
        except BaseException as error:  # the cell's own, of any kind: it goes on to the shell
            pass_on(shell, error)
            raise

    @no_var_expand
    @line_magic
    def gradtrace_config(self, line: str) -> None:
        """Show or set what ``%%gradtrace`` does unless its line says otherwise, for the rest of the session.

        Alone it shows the defaults that are not the usual ones::

            %gradtrace_config rows=50 source=True
            %gradtrace_config
            %gradtrace_config reset

        For every session: ``c.GradTrace.rows = 50`` in ``ipython_config.py``. ``%config GradTrace`` lists all of them:
        the options of the magic, and the thresholds of the findings (``spread``, ``dead_share``, ``saturated_share``,
        ``dominates``).
        """
        if line.strip() == "reset":
            self.defaults.reset()
        else:
            try:
                for word in line.split():
                    self.defaults.take(word)
            except ValueError as error:
                raise UsageError(f"%gradtrace_config: {error}") from None
        changed = self.defaults.changed()
        print(" ".join(f"{name}={value}" for name, value in changed.items()) or "the usual defaults")


@dataclass(frozen=True, slots=True)
class _Job:
    """A cell to be traced: compiled, as written below the magic line, and with that line where there is one.

    `before` is the report that its own is compared with, where that was named.
    """

    shell: InteractiveShell
    code: Cell
    options: Options
    previous: PreviousReports
    defaults: GradTrace
    text: str
    written: str | None
    before: Report | None = None


def _named(shell: InteractiveShell, name: str) -> Report:
    """The report of that name, before the cell can bind another one to it.

    Raises:
        UsageError: there is none.
    """
    from .report import Report  # not needed for loading the extension

    found = shell.user_ns.get(name)
    if isinstance(found, Report):
        return found
    raise UsageError(f"--diff: {name!r} is no report; %%gradtrace -o {name} makes one")


def _run(job: _Job) -> Any:
    """Traces the cell; what it raises leaves here after the report is shown."""
    run, screen, watch = _prepared(job)
    finished = False
    try:
        with watch or nullcontext(), run:
            value = job.code.run()
            run.offer(value)
        finished = True
    finally:
        run.close()  # has nothing to do, unless an interrupt came before the first line of the trace's own exit
        _deliver(job, run, screen, finished)
    _conclude(job, run, screen, watch)
    return value if job.code.shown else None


async def _run_awaiting(job: _Job) -> Any:
    """Does what the magic does, for a cell that awaits."""
    __tracebackhide__ = True
    run, screen, watch = _prepared(job)
    finished = False
    left_behind = _LeftBehind(job.shell, run, lambda: _deliver(job, run, screen, finished))
    try:
        try:
            with watch or nullcontext(), left_behind, run:
                value = await job.code.run_awaiting()
                run.offer(value)
            finished = True
        finally:
            run.close()  # as above
            left_behind.deliver()
        _conclude(job, run, screen, watch)
    except BaseException as error:  # the cell's own, of any kind: it goes on to the shell
        pass_on(job.shell, error)
        raise
    return value if job.code.shown else None


def _prepared(job: _Job) -> tuple[trace, _Screen, FunctionWatch | None]:
    # The engine brings PyTorch along: loading the extension stays light without it.
    from .sources import CellSource
    from .tracing import trace

    shell, options = job.shell, job.options
    file = job.code.file
    source = CellSource(file, lambda name: execution_count(shell, name), lambda: earlier_cells(shell), job.written)
    screen = _Screen(shell, options)
    run = trace(
        options.backward,
        zero_grad=options.zero_grad,
        values=options.values,
        live=screen.show if options.live else None,
        namespace=shell.user_ns,
        cell=source,
        thresholds=job.defaults.thresholds(),
        never_root=_derived(job) if options.check is not None else None,
        keep_saved=options.check is not None,
    )
    if not options.gradcheck:
        return run, screen, None
    from .function_calls import FunctionWatch  # only those who check need it

    return run, screen, FunctionWatch(file)


def _derived(job: _Job) -> Callable[[Collection[str]], Collection[str]]:
    """Tells which names are those of derived gradients: one of a single element is a scalar, but no loss."""
    pairs, patterns = pairs_to_check(job.options), tuple(job.defaults.patterns)
    return lambda names: derived_names(names, patterns) | pairs.keys()


class _LeftBehind:
    """Ends the trace of a cell that awaits when the shell gives the cell up, as it does when Ctrl-C meets its loop.

    The person's code may then go on whenever the loop runs again, as without the magic; it is traced no more.
    """

    def __init__(self, shell: InteractiveShell, run: trace, deliver: Callable[[], None]) -> None:
        self._shell = shell
        self._run = run
        self._deliver: Callable[[], None] | None = deliver
        self._thread = get_ident()
        self._frame: FrameType | None = None

    def __enter__(self) -> None:
        self._frame = sys._getframe(1)
        self._shell.events.register("post_execute", self._cell_is_over)

    def __exit__(self, *_: object) -> None:
        if self._frame is not None:
            self._frame = None
            self._shell.events.unregister("post_execute", self._cell_is_over)

    def _cell_is_over(self) -> None:
        """A cell is over: this one, unless it runs in a subshell, or was run by this one."""
        if get_ident() == self._thread and not self._is_running():
            self.__exit__()
            error = KeyboardInterrupt()
            self._run.__exit__(KeyboardInterrupt, error, None)
            self.deliver()

    def _is_running(self) -> bool:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def deliver(self) -> None:
        """Show the report, once."""
        deliver, self._deliver = self._deliver, None
        if deliver is not None:
            deliver()


class _Screen:
    """Where a report is shown: one place, which the report of a running cell and the final one share."""

    def __init__(self, shell: InteractiveShell, options: Options) -> None:
        self._shell = shell
        self._options = options
        self._in_notebook = getattr(shell, "kernel", None) is not None
        self._handle: Any = None
        self._terminal: Any = None
        self.checks: list[GradientChecks | FunctionChecks] = []

    def show(self, report: Report) -> None:
        """Show what was recorded so far, where a place can be drawn over: in a notebook, or in a terminal."""
        report = report.with_options(report_options(self._options))
        if self._in_notebook:
            self._put(report)
        elif sys.stdout.isatty() or self._terminal is not None:
            if self._terminal is None:
                from .render.live import TerminalLive  # rich's own machinery, which only a live report needs

                self._terminal = TerminalLive(*_terminal(self._shell))
            self._terminal.show(report)

    def finish(self, report: Report) -> None:
        """Show the final report, and the pictures of it that were asked for."""
        self.close()
        self._put(report)
        if self._options.graph:
            display(dict(report.graph(depth=self._options.depth, all=self._options.all)._repr_mimebundle_()), raw=True)
        if self._options.plot:
            from .render.plot import bundle  # matplotlib, which only a plot needs

            data, metadata = bundle(report)
            display(data, metadata=metadata, raw=True)

    def check(self, checks: GradientChecks | FunctionChecks, render_text: Callable[..., str]) -> None:
        """Show derived gradients beside PyTorch's, or what `gradcheck` says."""
        self.checks.append(checks)
        display(_bundle(self._shell, checks, render_text), raw=True)

    def compare(self, changes: Comparison | None) -> None:
        """Show what changed, above the report."""
        from .render.changes import NOTHING_YET, render_text  # rich is only needed now

        nothing = {"text/plain": NOTHING_YET}
        display(nothing if changes is None else _bundle(self._shell, changes, render_text), raw=True)

    def close(self) -> None:
        """Give the terminal back."""
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            terminal.close()

    def _put(self, report: Report) -> None:
        from .render.text import render_text  # rich is only needed now

        bundle = _bundle(self._shell, report, render_text)
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif self._options.live and self._in_notebook:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            display(bundle, raw=True)


def _deliver(job: _Job, run: trace, screen: _Screen, finished: bool) -> None:
    """Binds and displays the report. Never raises: the cell's own result or exception is on its way."""
    output = job.options.output
    try:
        screen.close()
        report = run.report
        if report is None:
            raise run.fault or RuntimeError("there is none")
        report = report.with_options(report_options(job.options))
        if output is not None:
            job.shell.push({output: report})
        if finished:
            _compare(job, report, screen)
            _check(job, report, screen)
        if not job.options.quiet:
            screen.finish(report)
    except Exception as error:  # noqa: BLE001 - whatever is wrong in gradmagic must not cost the person the cell
        print(_apology(error, output, made=run.report is not None), file=sys.stderr)


def _conclude(job: _Job, run: trace, screen: _Screen, watch: FunctionWatch | None) -> None:
    """Of a cell that came to its end: checks its custom Functions, and fails it, where that is asked for."""
    if watch is not None:
        _gradcheck(watch, screen)
    if job.options.strict and run.report is not None:
        run.report.raise_for_findings()
        for checks in screen.checks:
            checks.raise_for_wrong()


def _gradcheck(watch: FunctionWatch, screen: _Screen) -> None:
    from .gradchecking import gradchecked  # only those who check need it
    from .render.function_checks import render_text

    try:
        screen.check(gradchecked(watch), render_text)
    except Exception as error:  # noqa: BLE001 - as in `_deliver`: the cell itself has run
        print(f"gradmagic: --gradcheck failed ({told_briefly(error)}). The cell itself ran as always.", file=sys.stderr)


def _compare(job: _Job, report: Report, screen: _Screen) -> None:
    """Shows what changed since the last finished run of the cell, or since another, where that is asked for."""
    cell, name = cell_id(job.shell), job.options.diff
    before = job.before or (job.previous.of(cell, job.text) if name is not None else None)
    job.previous.remember(cell, job.text, report)
    if name is not None:
        screen.compare(replace(report.compare(before), than=name) if before is not None else None)


def _check(job: _Job, report: Report, screen: _Screen) -> None:
    """Shows how the gradients that the person derived compare with PyTorch's, where that is asked for."""
    if job.options.check is not None:
        from .render.checks import render_text  # rich is only needed now

        pairs, patterns = pairs_to_check(job.options), job.defaults.patterns
        screen.check(report.check(pairs, namespace=job.shell.user_ns, patterns=patterns), render_text)


def _apology(error: Exception, output: str | None, *, made: bool) -> str:
    """One line: what went wrong in gradmagic, where, and how to see more."""
    places = extract_tb(error.__traceback__)
    where = f", {ascii(PurePath(places[-1].filename).name)[1:-1]}:{places[-1].lineno}" if places else ""
    again = f"print({output})" if output else "%%gradtrace -o report, then print(report)"
    return (
        f"gradmagic: the report could not be {'shown' if made else 'made'} "
        f"({told_briefly(error)}{where}). The cell itself ran as always."
        + (f" For the details: {again}" if made else "")
    )


def _bundle(shell: InteractiveShell, shown: _Shown, render_text: Callable[..., str]) -> dict[str, Any]:
    """A report or comparison in every form a front end may pick; its text fits the terminal when there is one."""
    bundle = dict(shown._repr_mimebundle_())
    width, color, ascii_only = _terminal(shell)
    is_terminal = sys.stdout.isatty()
    if is_terminal or ascii_only:
        bundle["text/plain"] = render_text(shown, width if is_terminal else None, color, ascii_only)
    return bundle


def _terminal(shell: InteractiveShell) -> tuple[int, bool, bool]:
    """Width of the terminal, whether it shows colours, and whether it is ASCII only."""
    stream = sys.stdout
    color = stream.isatty() and allows_color() and shell.colors.lower() != "nocolor"  # the shell's own switch
    return shutil.get_terminal_size().columns, color, is_ascii_only(stream)


def register(shell: InteractiveShell) -> None:
    """Adds the magics to a shell, and what lets a traced cell await; the second time replaces the first."""
    unregister(shell)
    shell.register_magics(GradtraceMagics)
    ours = shell.magics_manager.registry[GradtraceMagics.__name__]
    shell.configurables.append(ours.defaults)  # for `%config GradTrace`

    def is_there() -> bool:
        return getattr(shell.find_cell_magic("gradtrace"), "__self__", None) is ours

    transformer = AwaitTransformer(shell, "gradtrace", is_there, lambda line: split(line)[1])
    shell.input_transformers_post.append(transformer)


def unregister(shell: InteractiveShell) -> None:
    """Takes the magics out of a shell again, and leaves alone what others have put in their place."""
    transformers = shell.input_transformers_post
    transformers[:] = [each for each in transformers if type(each).__module__ != AwaitTransformer.__module__]
    magics = shell.magics_manager.registry.pop(GradtraceMagics.__name__, None)
    if magics is None:
        return
    for table in shell.magics_manager.magics.values():
        for name in [name for name, function in table.items() if getattr(function, "__self__", None) is magics]:
            del table[name]
    ours = (magics, magics.defaults)
    shell.configurables[:] = [each for each in shell.configurables if not any(each is one for one in ours)]
