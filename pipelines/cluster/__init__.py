"""The connection to Ray: sessions, the size of the actor pool, and detection of stuck runs.

Independent of documents and vectors.
"""
