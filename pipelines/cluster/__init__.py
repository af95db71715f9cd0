"""The connection to Ray: sessions, how many actors fit, and noticing that nothing moves.

Knows nothing of documents or vectors.
"""
