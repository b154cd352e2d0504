"""Benchmarks with an exact reference: the logic behind `scripts/bench_*.py`."""
