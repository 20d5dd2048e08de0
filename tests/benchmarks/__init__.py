"""What tracing costs: ``python -m tests.benchmarks`` prints the tables of README; see `__main__`."""
