"""The data plane and the entry points: what flows, and when it is done.

Data flows one way: read -> chunk -> tokenise -> encode -> write -> commit.
"""
