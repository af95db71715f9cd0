"""Exact search in memory: score every row and keep the best, without approximation.

The package is independent of the index and of Ray: rows are numbers, vectors are Arrow columns.
"""
