"""From texts to token ids, for passages, queries and pairs.

Loads no torch.
"""
