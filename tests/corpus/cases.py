"""What the situations of the corpus are made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A cell that is sick, what gradtrace is to say of it, and how what it says is to be pasted in.

    Attributes:
        situation: what the person did, in a sentence.
        cell: the traced cell without its magic line. Lines count as in the notebook: its first line is line 2.
        kind: kind of the finding; empty when the reason of a row is all there is to say.
        line: the culprit's line, or None where it is open.
        rows: reasons of rows without a gradient, by name.
        culprits: lines those rows blame.
        mentions: what the finding's message has to name.
        before: cells that ran before, untraced.
        options: of the magic.
        paste: where the finding's hint goes: it takes the place of the culprit's statement ("replace"), stands
            "above", "below" or "above last" (of the cell), is an "option" of the magic, or is advice in words ("manual").
        cure: the whole cell as it should be; it is what runs for "manual".
        cured: an expression that is true once the cured cell has run in plain PyTorch.
        raises: class of the exception that the sick cell itself raises.
    """

    situation: str
    cell: str
    kind: str = ""
    line: int | None = None
    rows: dict[str, str] = field(default_factory=dict)
    culprits: dict[str, int] = field(default_factory=dict)
    mentions: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    options: str = ""
    paste: str = ""
    cure: str = ""
    cured: str = ""
    raises: str = ""


@dataclass(frozen=True)
class Healthy:
    """A cell with nothing wrong in it.

    Attributes:
        disclosed: kinds of findings that only say what gradtrace could not see.
    """

    situation: str
    cell: str
    before: tuple[str, ...] = ()
    disclosed: tuple[str, ...] = ()
