"""Reports as self-contained HTML: the building blocks of a page, and the report of a run.

Reads an index, and writes only the report files of a generation.
"""
