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

    @property
    def stance(self) -> str:
        from torch._dynamo import config

        return "default" if config.allow_empty_graphs else "force_eager"


class RunningEagerly:
    """Compiled modules and functions run eagerly: else their inside is hidden, and they would be compiled anew.

    Only where something was compiled before: to ask imports torch._dynamo, which takes seconds.
    """

    def __init__(self) -> None:
        self._before: Any = None

    def start(self) -> None:
        """Take the stance."""
        if "torch._dynamo" in sys.modules:
            from torch._dynamo import eval_frame

            self._before = eval_frame._stance
            eval_frame._set_stance(_Eager())  # type: ignore[arg-type]  # the same attributes, one of them computed

    def stop(self) -> None:
        """Take the stance from before. Once more does no harm, and finishes what an interrupt kept from being done."""
        if self._before is not None:
            from torch._dynamo import eval_frame

            eval_frame._set_stance(self._before)
            self._before = None
