"""Report -> every form that a front end may pick, put in words once."""

from __future__ import annotations

from ..report import Report
from .build import build_view
from .html import html_of
from .markdown import markdown_of
from .text import text_of


def render_bundle(report: Report) -> dict[str, str]:
    """Plain text, 100 columns wide, an HTML fragment, and Markdown for where no HTML is read (LaTeX), by MIME type."""
    view = build_view(report)
    return {"text/plain": text_of(view, width=100), "text/html": html_of(view), "text/markdown": markdown_of(view)}
