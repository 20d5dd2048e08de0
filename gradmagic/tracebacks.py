"""Tracebacks without gradmagic's own frames, as they are without a trace. Neither torch nor IPython here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import FrameType, TracebackType

_PACKAGE = __name__.partition(".")[0] + "."


def linked(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that its display shows with it: causes, contexts, members of a group."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def relink(error: BaseException) -> None:
    """Takes the frames of gradmagic, and those PyTorch adds to call a recorder, out of a traceback."""
    kept = _frames_of_the_user(error.__traceback__)
    for link, following in pairwise([*kept, None]):
        if link is not None and link.tb_next is not following:
            link.tb_next = following
    head = kept[0] if kept else None
    if head is not error.__traceback__:
        BaseException.with_traceback(error, head)  # a class of the user's may have overridden the method


def _frames_of_the_user(tb: TracebackType | None) -> list[TracebackType]:
    kept: list[TracebackType] = []
    for link in links(tb):
        if is_ours(link.tb_frame):
            continue
        if len(kept) > 1 and _is_override(kept[-1]) and kept[-2].tb_frame.f_code is link.tb_frame.f_code:
            # A function of PyTorch's own Python starts a second time under a recorder; the first goes.
            del kept[-2:]
        kept.append(link)
    return kept


def links(tb: TracebackType | None) -> Iterator[TracebackType]:
    """The steps of a traceback, the outermost first."""
    while tb is not None:
        yield tb
        tb = tb.tb_next


def is_ours(frame: FrameType) -> bool:
    """Whether a frame of gradmagic stands between the caller and the traced code, or between that and PyTorch."""
    return str(frame.f_globals.get("__name__")).startswith(_PACKAGE)


def _is_override(link: TracebackType) -> bool:
    frame = link.tb_frame
    return frame.f_code.co_name == "handle_torch_function" and frame.f_globals.get("__name__") == "torch.overrides"
