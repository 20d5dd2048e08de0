"""Pure functions over records: why a gradient is None, and what backward's errors mean."""
