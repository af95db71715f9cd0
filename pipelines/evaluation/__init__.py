"""Measure the quality of an index with judged queries.

Contains rankings, measures, significance tests, the comparison with BM25, and the report.
"""
