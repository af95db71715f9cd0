"""Source formats: each module cuts the files of one kind into pieces and reads documents.

A new format needs one module and one line in `registry`.
"""
