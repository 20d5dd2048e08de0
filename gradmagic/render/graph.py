"""The graph of a report's tensors as an object that a notebook draws. Graphviz lays it out."""

from __future__ import annotations

import shutil
import subprocess
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib import import_module
from importlib.util import find_spec

from .dot import dot_text
from .mermaid import mermaid_text
from .network import GraphView
from .numbers import plural

MISSING = 'to draw a graph takes Graphviz: pip install "gradmagic[graph]", or the graphviz package of your system'
SECONDS = 60
"""After so many Graphviz is stopped; 500 nodes take it less than two."""


@dataclass(frozen=True)
class TensorGraph:
    """The tensors of a report, what was made from what, and the gradients that came back along the edges.

    A notebook draws it by itself. Where Graphviz is missing, JupyterLab (4.1 and later) draws the Mermaid text.

    Attributes:
        view: nodes and edges, in words.
    """

    view: GraphView

    @cached_property
    def dot(self) -> str:
        """Text in the DOT language."""
        return dot_text(self.view)

    @cached_property
    def mermaid(self) -> str:
        """Text for Mermaid, which GitHub draws in a block of the language ``mermaid``."""
        return mermaid_text(self.view)

    @cached_property
    def svg(self) -> str:
        """A drawing.

        Raises:
            ImportError: neither Graphviz nor pygraphviz is installed.
            RuntimeError: Graphviz did not draw it.
        """
        return _drawn(self.dot)

    def save(self, path: str) -> None:
        """Write the drawing (``.svg``), or its text (``.dot``, ``.mmd``), as the end of `path` says.

        Raises:
            ValueError: `path` has another end.
        """
        texts = {"svg": "svg", "dot": "dot", "gv": "dot", "mmd": "mermaid", "mermaid": "mermaid"}
        name = texts.get(path.rpartition(".")[2].lower())
        if name is None:
            raise ValueError(f"a graph is saved as .svg, .dot or .mmd, not as {path!r}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(getattr(self, name))

    def __str__(self) -> str:
        counts = f"{plural(len(self.view.nodes), 'tensor')}, {plural(len(self.view.edges), 'edge')}"
        return f"graph of {counts}: {self.view.caption}"

    def __repr__(self) -> str:
        return f"<TensorGraph: {plural(len(self.view.nodes), 'node')}, {plural(len(self.view.edges), 'edge')}>"

    def _repr_svg_(self) -> str | None:
        return self.svg if can_draw() else None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002, Jupyter passes them
        if not can_draw():
            hint = f"{self}\n{MISSING}; `.dot` and `.mermaid` are its text"
            return {"text/plain": hint, "text/vnd.mermaid": self.mermaid}
        return {"text/plain": str(self), "text/html": _image(self.svg, str(self))}


def can_draw() -> bool:
    """Whether there is a Graphviz to lay out a graph."""
    return shutil.which("dot") is not None or find_spec("pygraphviz") is not None


def _image(svg: str, alternative: str) -> str:
    """As an image, since JupyterLab takes ``<svg>`` out of untrusted notebooks; and nothing in an image is run."""
    data = b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alternative)}" style="max-width: 100%">'


def _drawn(dot: str) -> str:
    program = shutil.which("dot")
    if program is not None:
        return _by_program(program, dot)
    if find_spec("pygraphviz") is None:
        raise ImportError(MISSING)
    graph = import_module("pygraphviz").AGraph(string=dot)
    try:
        svg: bytes = graph.draw(format="svg", prog="dot")
        return svg.decode()
    finally:
        graph.close()


def _by_program(program: str, dot: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - Graphviz itself, which reads text and writes text
            [program, "-Tsvg"], input=dot, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Graphviz was stopped after {SECONDS} s; a smaller depth= draws less") from None
    if done.returncode or not done.stdout:
        raise RuntimeError(f"Graphviz did not draw the graph: {done.stderr.strip()[:300]}")
    return done.stdout
