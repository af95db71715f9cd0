"""Which models there are, where their files lie, and what they need.

Loads no torch.
"""
