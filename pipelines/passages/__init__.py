"""From documents to passages, token blocks and slices.

Loads a tokenizer, never a model.
"""
