"""Benchmarks: what a number in the documentation was measured with. Not installed, not tested."""
