"""Which variable is somebody's own derivation of which tensor's gradient, by its name. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

PATTERNS = ("d{}", "grad_{}", "{}_grad", "d_{}", "dL_d{}")
"""How people name the gradients they derive by hand; ``{}`` stands for the tensor's own name."""


def checked_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns, if they are some.

    Raises:
        ValueError: one does not hold ``{}`` once, or nothing besides, in a sentence that names it.
    """
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in found:
        if pattern.count("{}") != 1 or pattern == "{}":
            raise ValueError(f"{pattern!r} is no pattern for names such as 'd{{}}': {{}} stands for the tensor's name")
    return found


def subjects(name: str, patterns: Sequence[str], root: str | None = None) -> Iterator[str]:
    """Names of the tensors whose gradient a variable may hold, by its own name.

    Args:
        name: of the variable: ``dh``, ``grad_w``.
        patterns: such as `PATTERNS`.
        root: name of what backward started from, so that ``dloss_dh`` is known too.
    """
    of_root = (f"d{root}_d{{}}", f"d{root}d{{}}") if root and root.isidentifier() else ()
    for pattern in (*patterns, *of_root):
        before, after = pattern.split("{}")
        inner = name[len(before) : len(name) - len(after)]
        if inner and name == f"{before}{inner}{after}":
            yield inner


def derived_names(names: Collection[str], patterns: Sequence[str]) -> set[str]:
    """Those of the names that are called like the gradient of another one of them."""
    known = set(names)
    return {name for name in known if any(subject in known for subject in subjects(name, patterns))}


def parsed_pairs(text: str) -> dict[str, str]:
    """What ``--check dh=h,dw=w`` pairs.

    Raises:
        ValueError: a part is no ``NAME=NAME``, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, subject = (each.strip() for each in part.partition("="))
        if not (name and equals and subject):
            raise ValueError(f"{part!r} is no pair such as dh=h (your gradient, and the tensor it belongs to)")
        if name in pairs:
            raise ValueError(f"{name!r} is paired twice")
        pairs[name] = subject
    return pairs
