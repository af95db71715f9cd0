"""How well an index answers judged queries: datasets, measures, statistics, reports.

Imports no Ray, and torch only where something is encoded.
"""
