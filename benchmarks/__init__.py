"""Measurements. Run each file as a module from the repository's root: `python -m benchmarks.prefill --help`."""
