"""From a code position to expression, line and name. The values here are no tensors: this part needs no torch."""

from __future__ import annotations

import linecache
import sys
from typing import Any

import pytest

from gradmagic.bindings import Position
from gradmagic.sites import Site
from gradmagic.sources import CellSource, Sources

FILE = "<traced cell>"


class Probe:
    """A value whose operations note the path they were called by."""

    def __init__(self, seen: list[tuple[tuple[Site, ...], Position]]) -> None:
        self.seen = seen

    def made(self, outputs: int | None = None) -> Any:
        """Note one result, or several."""
        frame, sites = sys._getframe(2), []
        while frame is not None and frame.f_code.co_filename != __file__:
            sites.append(Site(frame.f_code, frame.f_lasti))
            frame = frame.f_back
        if outputs is None:
            self.seen.append((tuple(sites), ()))
            return Probe(self.seen)
        self.seen += [(tuple(sites), (index,)) for index in range(outputs)]
        return tuple(Probe(self.seen) for _ in range(outputs))

    def __mul__(self, _: object) -> Any:
        return self.made()

    def __rsub__(self, _: object) -> Any:
        return self.made()

    def __iadd__(self, _: object) -> Any:
        return self.made()

    def __neg__(self) -> Any:
        return self.made()

    def __getitem__(self, _: object) -> Any:
        return self.made()

    def __setitem__(self, _: object, value: object) -> None:
        self.made()

    def exp(self) -> Any:
        return self.made()

    def chunk(self, count: int) -> Any:
        return self.made(count)


def traced(source: str) -> tuple[Sources, list[tuple[tuple[Site, ...], Position]]]:
    """Run `source` with a probe `w`; returns the look-up and what was noted."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    seen: list[tuple[tuple[Site, ...], Position]] = []
    exec(compile(source, FILE, "exec"), {"w": Probe(seen)})
    return Sources(CellSource(FILE, lambda _: 7), FILE, []), seen


@pytest.mark.parametrize(
    ("source", "expression", "line"),
    [
        ("y = w * 2", "w * 2", 1),
        ("\n\ny = 1 - w", "1 - w", 3),
        ("y = -w", "-w", 1),
        ("y = w[0]", "w[0]", 1),
        ("y = w\ny += w", "y += w", 2),
        ("w[0] = 3", "w[0] = 3", 1),
        ("y = (\n    w\n    .exp()  # a comment\n)", "w.exp()", 2),
        ("a, b = w.chunk(\n    2\n)", "w.chunk(2)", 1),
        ("s = 'ä€😀'; y = w * 2", "w * 2", 1),
        ("def f(t):\n    return t * 2\nf(w)", "t * 2", 2),
    ],
)
def test_an_operation_knows_its_source_text_and_line(source: str, expression: str, line: int) -> None:
    """Text on one line, also when it was written over several or stands behind wide characters."""
    sources, seen = traced(source)
    site = sources.person_site(seen[0][0])
    assert site is not None
    assert (sources.expression(site), sources.line(site)) == (expression, line)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("y = w * 2", ["y"]),
        ("a = b = w * 2", ["a", "b"]),
        ("print(w * 2, end='')", []),
        ("def f(t):\n    out = t * 2\n    return out\ny = f(w)", ["out", "y"]),
        ("def f(t):\n    out = t * 2\n    out = 3\n    return out\ny = f(w)", ["out"]),
        ("def f(t):\n    out = t * 2\n    if not out:\n        out = 3\n    return out\ny = f(w)", ["out", "y"]),
        ("class N:\n    def f(self, x):\n        self.h = x * 2\n        return self.h\ny = N().f(w)", ["self.h", "y"]),
        ("f = lambda t: t * 2\nd = {}\nd['k'] = f(w)", ["d['k']"]),
        ("x = [w * 2 for _ in range(1)]", []),
    ],
)  # fmt: skip
def test_names_are_followed_from_the_inside_to_the_caller(source: str, names: list[str]) -> None:
    """Through returns, as long as the name still holds the value."""
    sources, seen = traced(source)
    assert [bound.name for bound in sources.names(*seen[0])] == names


def test_of_several_results_of_a_loop_inside_a_call_only_one_can_have_the_callers_name() -> None:
    """`for f in fs: x = f(x)`, `return x`: the caller's name is contested."""
    sources, seen = traced("def run(x):\n    for _ in range(2):\n        x = x * 2\n    return x\ny = run(w)")
    bound = sources.names(*seen[0])
    assert [(found.name, found.contested is not None) for found in bound] == [("x", False), ("y", True)]


@pytest.mark.parametrize(("position", "name"), [((0,), "a"), ((1,), "b")])
def test_tuple_outputs_go_to_their_own_targets(position: Position, name: str) -> None:
    """Unpacking by position."""
    sources, seen = traced("a, b = w.chunk(2)")
    assert [bound.name for bound in sources.names(seen[0][0], position)] == [name]


def test_source_that_is_gone_costs_the_names_not_the_run() -> None:
    """Code from a string that nobody kept has positions and no text."""
    seen: list[tuple[tuple[Site, ...], Position]] = []
    exec(compile("y = w * 2", "<gone>", "exec"), {"w": Probe(seen)})
    sources = Sources(None, "<gone>", [])
    site = sources.person_site(seen[0][0])
    assert site is not None
    assert sources.names(*seen[0]) == []
    assert (sources.expression(site), sources.line(site)) == ("", 1)
