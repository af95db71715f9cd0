"""From token ids to numbers: packing, attention, heads, and the forward pass.

Knows nothing of text.
"""
