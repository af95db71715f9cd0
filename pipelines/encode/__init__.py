"""Encodes one slice: vectors, part, ledger, rejects and the done record that commits them.

Runs unchanged in a Ray actor or in the driver's process.
"""
