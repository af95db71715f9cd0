"""Exact search over vectors in memory: scores of every row, the best of them, no approximation.

Knows no index and no Ray: rows are numbers, vectors are Arrow columns.
"""
