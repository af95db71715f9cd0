"""Tokenise passages, queries and pairs. Imports no torch."""
