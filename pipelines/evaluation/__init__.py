"""How well an index answers judged queries: datasets, measures, statistics, reports.

Knows nothing of Ray, and of torch only in `mteb_encoder`.
"""
