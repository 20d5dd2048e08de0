"""What becomes of a program's report: it is printed to stderr, and written to files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from .late import LateTrace
from .raised import told_briefly
from .report import Report, ReportOptions
from .terminal import allows_color, is_ascii_only, width_of

FORMATS = ("json", "html", "csv")


class Delivery:
    """Prints and writes the report of one program, in the process that was asked for it."""

    def __init__(
        self, stream: TextIO | None, files: Sequence[tuple[str, str]], options: ReportOptions, quiet: bool
    ) -> None:
        """Note where the report shall go.

        Args:
            stream: where it is printed, or None.
            files: format and path of each file; the program may go to another folder, so the paths count from here.
            options: how it is shown.
            quiet: print no report.
        """
        self._stream = stream
        self._files = [(kind, Path(path).absolute()) for kind, path in files]
        self._options = options
        self._quiet = quiet
        self._process = os.getpid()

    def refused(self) -> Iterator[str]:
        """For each file that could not be written, a sentence that says why."""
        for kind, path in self._files:
            folder = path.parent
            if path.is_dir():
                yield f"--{kind}: {str(path)!r} is a folder; give it the name of a file"
            elif not folder.is_dir():
                yield f"--{kind}: there is no folder {str(folder)!r}"
            elif not os.access(path if path.exists() else folder, os.W_OK):
                yield f"--{kind}: {str(path)!r} may not be written"

    def deliver(self, late: LateTrace) -> None:
        """Print and write the report. Never raises: the program's own end is on its way."""
        if os.getpid() != self._process:
            return  # a fork of the program, which runs to the end of it too
        try:
            report = _report_of(late).with_options(self._options)
            if not self._quiet:
                self.say(_none_because(late) or self._drawn(report))
        except Exception as error:  # noqa: BLE001 - whatever is wrong in gradmagic must not cost the person the run
            self.say(
                f"gradmagic: the report could not be made or shown ({told_briefly(error)}). The script ran as always."
            )
            return
        for kind, path in self._files:
            self._write(report, kind, path)

    def say(self, text: str) -> None:
        """Print a text, if anybody still listens."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def _drawn(self, report: Report) -> str:
        from .render.text import render_text  # rich is only needed now

        if self._stream is None:
            return ""
        color = self._stream.isatty() and allows_color()
        return render_text(report, width_of(self._stream), color, is_ascii_only(self._stream))

    def _write(self, report: Report, kind: str, path: Path) -> None:
        try:
            text = {"json": report.to_json, "html": report.to_html, "csv": report.to_csv}[kind]()
            path.write_text(text, encoding="utf-8", newline="")
        except Exception as error:  # noqa: BLE001 - as above
            self.say(f"gradmagic: --{kind}: {str(path)!r} could not be written ({told_briefly(error)})")


def _report_of(late: LateTrace) -> Report:
    fault = late.fault or (late.trace.fault if late.trace is not None else None)
    if fault is not None:
        raise fault
    report = late.trace.report if late.trace is not None else None
    return report if report is not None else Report(called="script")


def _none_because(late: LateTrace) -> str:
    if late.missed:
        return (
            "gradtrace: PyTorch was first imported in a thread, so nothing was traced; import it in the script itself."
        )
    if late.trace is None:
        return "gradtrace: no tensor was made or used here: the script did not import torch."
    return ""
