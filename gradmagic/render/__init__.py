"""Report -> text and HTML. Both lower the same `view.ReportView`; neither needs torch or IPython."""

import random

_state = random.getstate()
import rich.style  # noqa: E402, F401 - while it is imported it draws a number from the stream, which is the person's

random.setstate(_state)
