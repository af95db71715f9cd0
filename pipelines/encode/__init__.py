"""Encodes one slice: vectors, part, ledger, rejects and the done record that commits them.

Runs in an actor or in this process; does not know which.
"""
