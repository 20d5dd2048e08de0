"""`trace`: recorder -> backward -> diagnosis -> Report, in that order."""

from __future__ import annotations

import difflib
import inspect
import linecache
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import typing_extensions  # PyTorch requires it: its decorator stands around what PyTorch has deprecated
from torch import Tensor

from . import modules as _our_module
from .accumulation import given_unseen
from .backward import Ledger, RootChoice, choose_root, freed_below, is_scalar
from .calls import straighten
from .compiled import RunningEagerly
from .diagnosis.facts import NoRoot
from .diagnosis.rewording import finding_for, sentence_for
from .ending import Ending
from .fused import FusedCalls
from .history import History
from .keeping import retain
from .live import Clock
from .namespace import Namespace, look_through
from .optimizers import OptimizerWatch
from .places import Path
from .raised import told, told_briefly
from .recorder import Recorder
from .records import RANK, USUAL, Coverage, Thresholds
from .report import Report
from .rows import Assembler, Assembly
from .sources import CellSource, Sources, library_folders
from .stored import behind_modes, free_to_wait, is_capturing, out_of_sight, shape_of
from .tasks import TaskRecorder

__all__ = ["CellSource", "trace"]

_EXPRESSION_FILE = "--backward"
_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class trace:  # noqa: N801  # reads as a verb, like torch.no_grad
    """Trace the torch code inside a ``with`` block and report every tensor's gradient.

    Example:
        >>> with gradmagic.trace() as run:
        ...     w = torch.tensor([2.0], requires_grad=True)
        ...     loss = (w * 3).sum()
        >>> run.report["w"].grad.values
        (3.0,)

    When the block is left, backward runs from the root (unless the block ran it), and `report` is there, also when
    the block raised. An exception of the block always goes on.

    Attributes:
        report: the `Report`, after the block; None when gradmagic itself failed.
        fault: what failed then.
    """

    def __init__(  # noqa: PLR0913 - but one can only be given by name
        self,
        backward: str = "auto",
        *,
        zero_grad: bool = False,
        values: bool = False,
        live: Callable[[Report], None] | None = None,
        namespace: Mapping[str, Any] | None = None,
        cell: CellSource | None = None,
        thresholds: Thresholds = USUAL,
        never_root: Callable[[Collection[str]], Collection[str]] | None = None,
        keep_saved: bool = False,
    ) -> None:
        """Prepare a trace.

        Args:
            backward: ``auto`` (the last scalar, unless the block runs backward itself), ``none``, or an expression
                that is evaluated after the block.
            zero_grad: clear the ``.grad`` of the leaves used, first.
            values: take statistics of every tensor's own values too, so that the first NaN or infinity is found.
            live: called with a report of what was recorded so far, after a pass of the block itself, at most twice a
                second and for a tenth of the time. Of the findings it has only the errors; the rest is judged last.
            namespace: where names are looked up afterwards; the caller's variables by default.
            cell: the notebook cell that runs inside, for line numbers; by default the caller's own file.
            thresholds: from where on what vanishes, explodes, is dead or saturated is worth a finding.
            never_root: of the names of all tensors, those of tensors that ``auto`` does not choose as the root.
            keep_saved: keep ``.grad`` also on tensors that nothing but the graph holds, since an operation has saved
                them for backward: `Report.check` compares them too then. Takes as much memory as they do.
        """
        self.report: Report | None = None
        self.fault: Exception | None = None
        self._backward = backward
        self._zero_grad = zero_grad
        self._values = values
        self._live = live
        self._namespace = namespace
        self._cell = cell
        self._thresholds = thresholds
        self._never_root = never_root
        self._keep_saved = keep_saved
        self._offered: object = None
        self._state: _Running | None = None

    def offer(self, value: object) -> None:
        """Hand in the value of the last expression: the first candidate for the root."""
        self._offered = value

    def __enter__(self) -> Self:
        """Start recording.

        Raises:
            RuntimeError: when this very trace is running already.
        """
        self.start(sys._getframe(1))
        return self

    def start(self, frame: FrameType) -> None:
        """Start recording what runs within a frame: the magic's, a script's.

        Raises:
            RuntimeError: when this very trace is running already.
        """
        if self._state is not None:
            raise RuntimeError("this trace is running already; make a new one for a nested block")
        ledger = Ledger(self._zero_grad)
        variables = _Variables(self._namespace, frame)
        kind = TaskRecorder if frame.f_code.co_flags & _ASYNC else Recorder
        recorder = kind(frame.f_back, ledger.interceptors(), variables.now, self._values)
        recorder.keeps_saved = self._keep_saved
        ledger.watch(recorder)
        own_file = self._cell.file if self._cell is not None else frame.f_code.co_filename
        sources = Sources(self._cell, own_file, library_folders(torch, _our_module, typing_extensions))
        self._state = _Running(recorder, ledger, sources, variables, frame.f_lineno, self._thresholds)
        self._state.never_root = self._never_root
        if self._live is not None:
            ledger.after_pass = _Live(self._state, self._live).after_pass
        try:
            self._state.enter()
        except BaseException:  # an interrupt, before the block has begun
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop recording, run backward if nobody has, and make the report."""
        state = self._state
        if state is None:
            return
        try:
            state.leave()
            straighten(traceback)
            offered = self._offered if _is_tensor(self._offered) else None
            self._finish(_Finish(state, self._backward, state.variables.now(), offered, error, traceback))
        finally:
            try:
                self.close()
            except BaseException:  # an interrupt: what it has kept from being done is done now
                self.close()
                raise

    def close(self) -> None:
        """Leave nothing behind, however the block ended. Does nothing when it was left as it should be."""
        if self._state is not None:
            self._state.release()
            self._state = self._offered = None

    def _finish(self, finish: _Finish) -> None:
        error = finish.error
        try:
            self.report = finish.report()
        except Exception as fault:  # noqa: BLE001 - a fault of ours must neither hide the person's error nor break their code
            self.fault = fault
            if error is None and self._cell is None:  # the magic tells it in its own way
                what = f"gradmagic could not make its report ({told_briefly(fault)}); the code itself ran as always"
                warnings.warn(what, RuntimeWarning, stacklevel=3)
        if finish.interrupt is not None:
            raise finish.interrupt


class _Live:
    """Shows what was recorded so far, now and then."""

    def __init__(self, state: _Running, show: Callable[[Report], None]) -> None:
        self._state = state
        self._show: Callable[[Report], None] | None = show
        self._clock = Clock()

    def after_pass(self) -> None:
        """A pass has run: look, if it is time."""
        if self._show is None or is_capturing() or not self._clock.is_due():
            return
        began = self._clock.now()
        try:
            finish = _Finish(self._state, "none", self._state.variables.now(), None, None, None)
            self._show(finish.so_far())
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not stop the cell; what runs on is not shown
            self._show = None
            self._state.recorder.fault("live report", fault)
        self._clock.looked(began)


class _Variables:
    """The person's variables: a namespace, or those of the frame that entered the trace."""

    def __init__(self, namespace: Mapping[str, Any] | None, frame: FrameType) -> None:
        self._namespace = namespace
        self._frame = frame if namespace is None else None

    def now(self) -> Mapping[str, Any]:
        """What they hold at this moment."""
        if self._namespace is not None:
            return self._namespace
        return {**self._frame.f_globals, **self._frame.f_locals} if self._frame is not None else {}

    def release(self) -> None:
        """Let go of them."""
        self._namespace = self._frame = None


class _Running:
    """What lives while the block runs."""

    def __init__(
        self,
        recorder: Recorder,
        ledger: Ledger,
        sources: Sources,
        variables: _Variables,
        line: int,
        thresholds: Thresholds,
    ) -> None:
        self.recorder = recorder
        self.ledger = ledger
        self.sources = sources
        self.line = line
        """Where the trace was entered."""
        self.thresholds = thresholds
        self.never_root: Callable[[Collection[str]], Collection[str]] | None = None
        self.start = time.perf_counter()
        self.eagerly = RunningEagerly()
        self.variables = variables
        self.optimizers = OptimizerWatch(recorder, ledger.book)
        self.fused = FusedCalls(recorder)
        self.grad_mode = torch.is_grad_enabled()

    def enter(self) -> None:
        """Begin to record."""
        self.eagerly.start()
        self.optimizers.start()
        self.fused.start(self.variables.now())
        self.recorder.start()

    def leave(self) -> None:
        """Stop recording. Once more does no harm, and finishes what an interrupt kept from being done."""
        self.recorder.stop()
        self.fused.stop()
        self.optimizers.stop()
        self.ledger.hang_up()
        self.eagerly.stop()

    def release(self) -> None:
        """Let go of everything that only mattered until the report was made."""
        self.leave()
        linecache.cache.pop(_EXPRESSION_FILE, None)
        self.ledger.release()
        self.recorder.release()
        self.variables.release()


class _Finish:
    """After the block: the root, backward, the rows, the findings."""

    def __init__(
        self,
        state: _Running,
        backward: str,
        variables: Mapping[str, Any],
        offered: object,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = state
        self._backward = backward
        self._variables = variables
        self._offered = offered
        self.error = error
        self._traceback = traceback
        self._cut_root: int | None = None
        self._why: NoRoot | None = None
        self._candidates: tuple[Tensor, ...] = ()
        self._guest = False
        self.interrupt: KeyboardInterrupt | None = None

    def report(self) -> Report:
        """Everything that is left to do, in order."""
        with out_of_sight():  # a mode of the person's around us has no business with our calls
            namespace = self._look()
        try:
            self._run_backward(namespace)
        except KeyboardInterrupt as caught:
            self.interrupt = caught  # goes on to the person once the report is made
        with out_of_sight(), free_to_wait():
            self._state.ledger.book.end_turn()
            report = self._assembled(namespace)
        return report  # noqa: RET504 - from inside the `with`, an interrupt could come before its exit

    def so_far(self) -> Report:
        """What was recorded until now, while the block runs on."""
        with out_of_sight(), free_to_wait():
            report = self._assembled(self._look())
        errors = [finding for finding in report.findings if finding.severity == "error"]
        return replace(report, findings=errors, running=True)

    def _assembled(self, namespace: Namespace) -> Report:
        state = self._state
        history = History(state.sources.earlier_cells)
        state.recorder.settle()
        state.sources.stopped_by(self._traceback)
        assembler = Assembler(state.recorder, state.ledger, state.optimizers, state.sources, namespace, history)
        return self._finished(assembler.assemble(self._ending()), namespace)

    def _ending(self) -> Ending:
        return Ending(
            error=self.error,
            traceback=self._traceback,
            grad_mode=self._state.grad_mode,
            optimizers=self._state.optimizers,
            thresholds=self._state.thresholds,
            no_root=self._why,
            cut_root=self._cut_root,
        )

    def _look(self) -> Namespace:
        """Names in the person's namespace; tensors there that unseen code made in this block become rows."""
        recorder = self._state.recorder
        recorder.look_again()
        namespace = look_through(
            self._variables, _is_tensor, _is_module, _is_trainer, self._state.sources.loop_variables()
        )
        nowhere = Path((), None)
        for tensor in namespace.found:
            recorder.take_in(tensor, nowhere, recorder.made_here)
        return namespace

    # ---- backward

    def _run_backward(self, namespace: Namespace) -> None:
        ledger = self._state.ledger
        retain(self._state.recorder)
        if self.error is not None:
            self._why = None if ledger.log.count else NoRoot("cell_failed")
            return
        if self._backward == "none" or (self._backward == "auto" and ledger.ran_by_cell):
            return
        with out_of_sight():
            unseen = given_unseen(self._state.recorder) if self._backward == "auto" else None
        if unseen is not None:
            self._why = NoRoot("ran_elsewhere", namespace.name_of(unseen) or "A leaf")
            return
        choice = self._choose(namespace)
        if choice.root is None:
            return
        self._candidates = choice.candidates
        used = self._used_by_grad(choice.root, namespace)
        if used is not None:
            self._why = used
            return
        with behind_modes():
            ledger.run(choice.root)
        self._guest = ledger.log.kept[-1].error is None

    def _choose(self, namespace: Namespace) -> RootChoice:
        if self._backward != "auto":
            return RootChoice(self._evaluate(namespace))
        offered = self._offered if isinstance(self._offered, Tensor) else None
        with out_of_sight():
            choice = choose_root(offered, namespace.tensors, self._state.recorder, self._never(namespace))
        if choice.root is None:
            self._why = self._why_no_root(namespace)
        return choice

    def _never(self, namespace: Namespace) -> set[int]:
        """Ids of the tensors that are not chosen because of all their names."""
        if self._state.never_root is None:
            return set()
        names = set(self._state.never_root(namespace_names(namespace)))
        return {key for key, own in namespace.tensors.items() if names.issuperset(own)}

    def _evaluate(self, namespace: Namespace) -> Tensor | None:
        """The tensor that ``--backward`` names, checked."""
        expression = self._backward
        try:
            with self._recording_expression(expression) as code:
                value = eval(code, dict(self._variables))  # noqa: S307  # the person's own expression
        except Exception as error:  # noqa: BLE001 - the person's expression: told in a finding
            near = tuple(difflib.get_close_matches(expression, namespace_names(namespace), 2))
            self._why = NoRoot("not_found", expression, detail=told(error), near=near)
            return None
        if isinstance(value, Tensor) and is_scalar(value):
            return value
        if not isinstance(value, Tensor):
            self._why = NoRoot("not_a_tensor", expression)
        elif not value.requires_grad:
            self._why = NoRoot("root_without_graph", expression)
        elif value.numel() != 1:
            self._why = NoRoot("not_scalar", expression, shape_of(value))
        else:
            return value
        return None

    @contextmanager
    def _recording_expression(self, expression: str) -> Iterator[Any]:
        """Record what the expression makes; its source is known to linecache while it is looked up."""
        linecache.cache[_EXPRESSION_FILE] = (len(expression), None, [expression + "\n"], _EXPRESSION_FILE)
        code = compile(expression.strip(), _EXPRESSION_FILE, "eval")
        self._state.recorder.start()
        try:
            yield code
        finally:
            self._state.recorder.stop()

    def _used_by_grad(self, root: Tensor, namespace: Namespace) -> NoRoot | None:
        """``autograd.grad`` frees the graph like backward does; running into that would be our error, not theirs."""
        recorder, log = self._state.recorder, self._state.ledger.log
        place = recorder.place_of(root)
        with out_of_sight():
            loss = (log.used_up(place) if place is not None else None) or freed_below(recorder, log, root)
        if loss is None or loss.path is None:
            return None
        site = self._state.sources.person_site(loss.path.sites)
        where = str(self._state.sources.location(site)) if site is not None else ""
        return NoRoot("graph_used_up", namespace.name_of(root) or "the loss", where=where, by=loss.function)

    def _why_no_root(self, namespace: Namespace) -> NoRoot:
        recorder = self._state.recorder
        elsewhere = self._made_elsewhere(namespace)
        if elsewhere is not None:
            return NoRoot("made_elsewhere", elsewhere)
        asking = [place for place in recorder.places if place.requires_grad]
        if not asking:
            return NoRoot("nothing_differentiable" if recorder.places else "nothing_made")
        last = self._offered if isinstance(self._offered, Tensor) else None
        for tensor, _ in recorder.alive() if last is None else ():
            if recorder.made_here(tensor) and namespace.name_of(tensor):
                last = tensor
        if last is None or last.grad_fn is None or last.numel() == 1:
            self._cut_root = self._scalar_without_graph(namespace)
            computed = self._cut_root is not None or not all(place.is_leaf for place in asking)
            return NoRoot("no_root" if computed else "nothing_computed")
        return NoRoot("no_scalar", namespace.name_of(last) or self._expression_of(last), shape_of(last))

    def _made_elsewhere(self, namespace: Namespace) -> str | None:
        """A name that the cell binds to a scalar of an earlier cell, or of a thread: those number their own nodes."""
        here, sources = self._state.recorder.made_here, self._state.sources
        scalars = (tensor for tensor in namespace.found if is_scalar(tensor) and not here(tensor))
        names = (namespace.name_of(tensor) or "" for tensor in scalars)
        return next((name for name in names if name.isidentifier() and sources.origin_in_cell(name) is not None), None)

    def _scalar_without_graph(self, namespace: Namespace) -> int | None:
        """Place of the last number that this block made and that would be the loss, had its way not been cut."""
        found = None
        for tensor, entry in self._state.recorder.alive():
            place = entry.place
            made = place is not None and place.adopted is None
            if made and tensor.dim() == 0 and tensor.is_floating_point() and not tensor.requires_grad:
                found = place if (namespace.name_of(tensor) or "").isidentifier() else found
        return found.index if found is not None else None

    def _expression_of(self, tensor: Tensor) -> str:
        place = self._state.recorder.place_of(tensor)
        site = self._state.sources.person_site(place.path.sites) if place is not None else None
        return self._state.sources.expression(site) if site is not None else "the last expression"

    # ---- the report

    def _finished(self, assembly: Assembly, namespace: Namespace) -> Report:
        ledger = self._state.ledger
        findings = sorted(assembly.findings, key=lambda finding: RANK[finding.severity])
        rows = assembly.rows
        cell = self._state.sources.cell
        if cell is not None and cell.called != "cell":
            findings = [finding_for(finding, cell.called, cell.again) for finding in findings]
            rows = [replace(row, note=sentence_for(row.note, cell.called)) for row in rows]
        root = rows[assembly.root] if assembly.root is not None else None
        return Report(
            rows=rows,
            root=root,
            root_value=assembly.passes[-1].value if assembly.passes else None,
            passes=assembly.passes,
            ledger=assembly.ledger,
            pass_count=ledger.log.count,
            findings=findings,
            coverage=_coverage(ledger),
            candidates=self._candidate_names(namespace),
            seconds=time.perf_counter() - self._state.start,
            guest=self._guest,
            scale=assembly.scale,
            default_dtype=str(torch.get_default_dtype()).removeprefix("torch."),
            source=self._state.sources.traced(self._state.line),
            called=cell.called if cell is not None else "cell",
        )

    def _candidate_names(self, namespace: Namespace) -> tuple[str, ...]:
        """Other scalars that are no mere part of the root."""
        recorder, newest = self._state.recorder, self._state.ledger.log.last
        reached = newest.reached if newest is not None else set()
        names = []
        for tensor in self._candidates:
            place = recorder.place_of(tensor)
            if place is not None and place.index not in reached:
                names.append(namespace.name_of(tensor) or "")
        return tuple(name for name in names if name)


def _coverage(ledger: Ledger) -> Coverage:
    nodes = ledger.log.nodes
    return Coverage(seen=nodes.seen, named=nodes.named, inner=nodes.inner, complete=ledger.log.complete)


def namespace_names(namespace: Namespace) -> list[str]:
    """Every tensor's name."""
    return [name for names in namespace.tensors.values() for name in names]


# By the type: an object of the person's can have a ``__class__`` that lies, or raises.


def _is_tensor(value: object) -> bool:
    return issubclass(type(value), Tensor)


def _is_trainer(value: object) -> bool:
    return issubclass(type(value), (torch.optim.Optimizer, torch.amp.GradScaler))


def _is_module(value: object) -> bool:
    return issubclass(type(value), torch.nn.Module)
