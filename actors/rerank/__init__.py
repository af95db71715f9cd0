"""Rerankers: models that read a query and a passage together. One entry point: actors/reranker.py.

records -> files -> token ids of pairs -> packed forward -> scores
"""
