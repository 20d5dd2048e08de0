"""The fixture `gradtrace`. pytest loads this file in every run, so what costs time is imported by the fixture alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .asserting import TracedCall


@pytest.fixture
def gradtrace() -> Callable[..., TracedCall]:
    """Call a function under a trace: ``gradtrace(loss_fn, batch).assert_reaches(model.parameters())``."""
    from .asserting import call_traced

    return call_traced
