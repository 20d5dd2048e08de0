"""Pure functions over records: why a gradient is None, zero, NaN or wrong, and what to write instead."""
