"""Terminal interface of the commands: options, one-line errors, progress, and numbers as text.

Independent of what a command does.
"""
