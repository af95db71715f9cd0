"""What a run reads: the request, the pinned units, and what the index already has of them.

A request is everything that decides a result; a plan pins the units of one request; a task (in
`run`) is the next plan to carry out.
"""
