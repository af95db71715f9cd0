"""Estimates the size and duration of a run, and asks before a large one.

The estimate measures a sample of the corpus and starts no encoder.
"""
