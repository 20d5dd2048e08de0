"""The person's own defaults: ``c.GradTrace.rows = 50``, ``%config GradTrace`` and ``%gradtrace_config``."""

# mypy: disable-error-code="no-untyped-call"
# traitlets' constructors carry no type hints.

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from traitlets import Bool, Enum, Float, Int, List, TraitError, Unicode, validate
from traitlets.config import Configurable

from .pairing import PATTERNS, checked_patterns
from .settings import DECLARED, Options, check_values

_HELP: Mapping[str, str] = MappingProxyType({each.name: each.help.format(code="cell") for each in DECLARED})
"""What each option of the magic does, by its name."""


class GradTrace(Configurable):
    """What ``%%gradtrace`` does unless its line says otherwise."""

    all = Bool(False, help=_HELP["all"]).tag(config=True)
    depth = Int(None, allow_none=True, help=_HELP["depth"]).tag(config=True)
    filter = Unicode(None, allow_none=True, help=_HELP["filter"]).tag(config=True)
    graph = Bool(False, help=_HELP["graph"]).tag(config=True)
    live = Bool(False, help=_HELP["live"]).tag(config=True)
    plot = Bool(False, help=_HELP["plot"]).tag(config=True)
    rows = Int(None, allow_none=True, help=_HELP["rows"]).tag(config=True)
    sort = Enum(("line", "norm", "name"), None, allow_none=True, help=_HELP["sort"]).tag(config=True)
    source = Bool(False, help=_HELP["source"]).tag(config=True)
    strict = Bool(False, help=_HELP["strict"]).tag(config=True)
    values = Bool(False, help=_HELP["values"]).tag(config=True)
    zero_grad = Bool(False, help=_HELP["zero_grad"]).tag(config=True)
    patterns = List(
        Unicode(), list(PATTERNS), help="how the gradients that --check finds are called; {} is the tensor's name"
    ).tag(config=True)
    spread = Float(2.0**14, help="the factor beyond which a gradient vanishes or explodes").tag(config=True)
    dead_share = Float(0.75, help="the share of dead units that is worth a finding").tag(config=True)
    saturated_share = Float(0.5, help="the share of saturated elements that is worth a finding").tag(config=True)
    dominates = Float(100.0, help="how many times the next largest a dominating gradient is").tag(config=True)

    @validate("rows", "depth", "patterns", "spread", "dead_share", "saturated_share", "dominates")
    def _check(self, proposal: Any) -> Any:
        """Whether a value can be is said by what takes it in the end."""
        from .records import Thresholds  # not needed for loading the extension

        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name == "patterns":
                return list(checked_patterns(value))
            if name in _HELP:
                check_values(Options(**{name: value}))
            else:
                Thresholds(**{name: value})
        except ValueError as error:
            raise TraitError(str(error).removeprefix("--")) from None
        return value

    def options(self) -> dict[str, Any]:
        """The defaults of the magic's options that are not the usual ones."""
        return {name: value for name, value in self.changed().items() if name in _HELP}

    def thresholds(self) -> Any:
        """From where on something is worth a finding, as `records.Thresholds`."""
        from .records import Thresholds  # not needed for loading the extension

        return Thresholds(**{name: getattr(self, name) for name in Thresholds.__dataclass_fields__})

    def changed(self) -> dict[str, Any]:
        """Every default that is not the usual one."""
        traits = self.traits(config=True)
        return {name: getattr(self, name) for name in traits if getattr(self, name) != traits[name].default(self)}

    def reset(self) -> None:
        """Back to the usual ones."""
        for name, trait in self.traits(config=True).items():
            setattr(self, name, trait.default(self))

    def take(self, assignment: str) -> None:
        """Set one of them as it is written: ``rows=50``, ``source=True``, ``depth=None``.

        Raises:
            ValueError: it is written otherwise, nothing has that name, or the value cannot be.
        """
        name, equals, text = assignment.partition("=")
        traits = self.traits(config=True)
        if not equals:
            raise ValueError(f"{assignment!r} is no NAME=VALUE, such as rows=50")
        if name not in traits:
            raise ValueError(f"there is no default {name!r}; there are {', '.join(sorted(traits))}")
        try:
            setattr(self, name, _read(traits[name], text))
        except (TraitError, ValueError, SyntaxError) as error:
            raise ValueError(f"{name}={text}: {error}") from None


def _read(trait: Any, text: str) -> Any:
    if isinstance(trait, List):  # its own from_string fails on a list of texts
        return literal_eval(text)
    return None if text == "None" else trait.from_string(text)
