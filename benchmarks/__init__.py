"""Benchmarks that measure the figures of the documentation. Not installed, not tested."""
