"""The query endpoint: the corpus's encoder behind HTTP, on Ray Serve.

    serve run conf/serve.yaml

deployment (Ray Serve) -> api (routes, guard) -> service (limits, cache) -> actors.batching
"""
