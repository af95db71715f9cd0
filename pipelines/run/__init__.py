"""Carries out a run, from its task to a live generation.

A job defines what is computed, a task which run is next, and an `Engine` where it executes.
`commit` makes a generation from the done records, and the gate decides whether to publish it.
"""
