"""The command line: options, errors in one line, progress, and numbers as text.

Knows nothing of what a command does.
"""
