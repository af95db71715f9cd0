"""One module for each kind of file: how it is cut into units and read as documents.

A new format is one module and one line in `registry`.
"""
