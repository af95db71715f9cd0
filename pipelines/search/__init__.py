"""Exact search in an index: load shards, search them, merge their rankings, show the answers.

`searcher` and `shards` import neither torch nor Ray; `shard_host` holds the vectors.
"""
