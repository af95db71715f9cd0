"""Looks after an index: verification, compaction, and the removal of what nothing needs.

Reads and writes committed generations; runs no model.
"""
