"""Decides what a run reads: the request, the pinned units, and the documents already indexed.

A request is everything that determines the result of a run. A plan pins the units of one request.
A task (in `run`) is the next plan to carry out.
"""
