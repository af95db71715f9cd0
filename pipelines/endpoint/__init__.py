"""The query endpoint: the encoder of a corpus as an HTTP service on Ray Serve.

    serve run conf/serve.yaml

deployment (Ray Serve) -> api (routes, guard) -> service (limits, cache) -> actors.batching
"""
