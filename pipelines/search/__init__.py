"""Exact search over an index: shards, merging, answers.

`searcher` and `shards` load neither torch nor Ray; `shard_host` holds the vectors.
"""
