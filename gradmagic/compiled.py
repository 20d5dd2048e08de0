"""Code that was compiled with ``torch.compile`` runs as it was written while a trace looks at it."""

from __future__ import annotations

import sys
from typing import Any


class _Eager:
    """A stance of dynamo's (see `torch.compiler.set_stance`): compile nothing, but for what cannot run otherwise.

    Higher-order operations (``torch.cond``, ``flex_attention``...) compile what they are given as part of being
    called, and tell so by this setting, which has no other use in PyTorch. ``force_eager`` alone would break them.
    """

    skip_guard_eval_unsafe = False
    backend = None

    def __init__(self, before: Any) -> None:
        self.before = before
        self.users: set[int] = set()
        """The traces that want it. Those of several tasks may overlap, and the first to begin be the first to end."""

    @property
    def stance(self) -> str:
        from torch._dynamo import config

        return "default" if getattr(config, "allow_empty_graphs", False) else "force_eager"  # PyTorch 2.6 has none


class RunningEagerly:
    """Compiled modules and functions run eagerly: else their inside is hidden, and they would be compiled anew.

    Only where something was compiled before: to ask imports torch._dynamo, which takes seconds.
    """

    def __init__(self) -> None:
        self._eager: _Eager | None = None

    def start(self) -> None:
        """Take the stance."""
        if "torch._dynamo" in sys.modules:
            from torch._dynamo import eval_frame

            current: Any = eval_frame._stance
            self._eager = current if isinstance(current, _Eager) else _Eager(current)
            self._eager.users.add(id(self))
            eval_frame._set_stance(self._eager)  # type: ignore[arg-type]  # the same attributes, one of them computed

    def stop(self) -> None:
        """Take the stance from before. Once more does no harm, and finishes what an interrupt kept from being done."""
        if self._eager is None:
            return
        from torch._dynamo import eval_frame

        self._eager.users.discard(id(self))
        current: Any = eval_frame._stance
        if not self._eager.users and current is self._eager:  # else the person has taken another one meanwhile
            eval_frame._set_stance(self._eager.before)
        self._eager = None
