"""The expected size and duration of a run, and the question before a large one.

Measures a sample of the corpus; starts nothing.
"""
