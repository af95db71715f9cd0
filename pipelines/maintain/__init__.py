"""Maintains an index: verification, compaction, and the removal of files that nothing needs.

These modules read and write committed generations and run no model.
"""
