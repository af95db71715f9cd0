"""The quality of an index, measured with judged queries.

Rankings, measures, significance, comparison with BM25, and the report.
"""
