"""Compute vectors and scores from token ids: packing, attention, heads and the forward pass."""
