"""Findings -> the text of an exception."""

from __future__ import annotations

from collections.abc import Iterable

from ..records import Finding
from .marks import SIGNS
from .markup import clean_block, marked_up, plain


def findings_text(findings: Iterable[Finding]) -> str:
    """A paragraph for each: its sign and sentence, what to write instead, and its kind, by which it can be ignored."""
    return "\n".join(map(_paragraph, findings))


def sentence(text: str) -> str:
    """Text for an exception: what cannot be printed is spelled out."""
    return plain(marked_up(text))


def _paragraph(finding: Finding) -> str:
    told = f"{SIGNS[finding.severity]} {sentence(finding.message)} [{finding.kind}]"
    return told + "".join(f"\n  → {line}" for line in clean_block(finding.hint).split("\n") if line)
