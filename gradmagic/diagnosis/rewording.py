"""What the diagnosis says of a cell, said of a script or a function."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ..records import Called, Finding

_CELL = re.compile(r"\b([Tt]he|[Tt]his|traced) cell\b(?!s)")
_MAGIC = re.compile(r"%%gradtrace (.+)")


def finding_for(finding: Finding, called: Called, again: Callable[[str], str] | None) -> Finding:
    """A finding about what is `called` so; `again` writes what the magic would be asked with these options."""
    magic = _MAGIC.fullmatch(finding.hint)
    hint = again(magic[1]) if magic is not None and again is not None else sentence_for(finding.hint, called)
    return replace(finding, message=sentence_for(finding.message, called), hint=hint)


def sentence_for(sentence: str, called: Called) -> str:
    """A sentence about what is `called` so; the person's own code stands between backquotes and stays."""
    parts = sentence.split("`")
    parts[::2] = [_CELL.sub(rf"\1 {called}", part) for part in parts[::2]]
    return "`".join(parts)
