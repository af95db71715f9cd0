"""How documents lie in files: one module for each family of formats, one record for each format.

A format says which pieces a file is read in and reads one. It knows nothing of units, passages or
runs. A new format is one class and one line in `registry.py`.
"""
