"""Models: encoders, rerankers, tokenizers and scores.

Imports torch, transformers and pyarrow, but neither ray nor pipelines. The same classes therefore
work in a Ray actor, a Ray Serve replica, a notebook, a benchmark and a unit test.
"""
