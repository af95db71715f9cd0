"""Reports as self-contained HTML: the page kit, and the report of a run with its numbers.

Reads an index; changes nothing but the report files of a generation.
"""
