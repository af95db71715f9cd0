"""The commands of packvec, and the pipeline that they run.

Data flows one way: read -> chunk -> tokenise -> encode -> write -> commit.
"""
