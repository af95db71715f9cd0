"""The compute plane: what holds a model.

Imports torch, transformers and pyarrow; never ray, never pipelines. So the same class serves
Ray Data, Ray Serve, a notebook, a benchmark on a bare GPU machine and a unit test.
"""
