"""One run: from its task to a live generation, and where it executes.

A job says what is computed, a task what is next, an `Engine` where it runs; `commit` makes a
generation of what was written and the gate decides whether it goes live.
"""
