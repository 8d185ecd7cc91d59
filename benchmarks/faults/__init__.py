"""Training runs broken on purpose, thousands of times; `python -m benchmarks.faults --help`."""
