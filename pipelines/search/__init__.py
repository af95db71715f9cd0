"""Search over a generation of an index: its live rows in shards, asked together.

    index -> shards (local Arrow files, mapped) -> ranked rows -> their text

`actors/search` scores; this package knows where rows come from and where shards live.
"""
