"""The Prometheus metrics of a replica, and the page that merges those of all replicas.

packvec_requests_total{replica="a1b2",route="/encode",status="200"} 12.0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from actors.batching import ForwardStats

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_FILL = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class EndpointMetrics:
    """The metrics of one replica, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        counter = partial(Counter, namespace="packvec", registry=registry)
        gauge = partial(Gauge, namespace="packvec", registry=registry)
        histogram = partial(Histogram, namespace="packvec", registry=registry, buckets=_SECONDS)
        self.requests = counter("requests", "Requests answered.", ("route", "status"))
        self.errors = counter("errors", "Requests refused, by reason.", ("route", "code"))
        about = "Seconds from the arrival of a request at the replica to its answer."
        self.request_seconds = histogram("request_seconds", about, ["route"])
        self.texts = counter("texts", "Texts encoded.")
        self.text_faults = counter("text_faults", "Texts without vectors, by error.", ["code"])
        self.tokens = counter("tokens", "Tokens encoded, special tokens included.")
        self.truncated = counter("truncated_texts", "Texts cut to the maximum length.")
        self.cache_hits = counter("cache_hits", "Texts answered from the cache.")
        self.cache_misses = counter("cache_misses", "Texts not found in the cache.")
        self.cache_bytes = gauge("cache_bytes", "Bytes in the cache.")
        self.queued_texts = gauge("queued_texts", "Texts waiting or being encoded.")
        about = "Texts per forward pass."
        self.batch_texts = histogram("batch_texts", about, buckets=_TEXTS)
        about = "Tokens of a forward pass as a fraction of its token budget."
        self.batch_fill = histogram("batch_fill", about, buckets=_FILL)
        about = "Seconds that the oldest text of a forward pass waited, tokenising included."
        self.queue_seconds = histogram("queue_seconds", about)
        about = "Seconds for a forward pass and the handling of its vectors."
        self.encode_seconds = histogram("encode_seconds", about)
        self.searches = counter("searches", "Queries searched for.", ["mode"])
        about = "Seconds from a request's vectors to its ranked passages, waiting included."
        self.search_seconds = histogram("search_seconds", about, ["mode"])
        self.queued_searches = gauge("queued_searches", "Requests that search or wait to search.")
        self.reranks = counter("reranks", "Requests reranked.")
        self.rerank_pairs = counter("rerank_pairs", "Pairs of query and text scored.")
        about = "Seconds from a request's pairs to their scores, waiting included."
        self.rerank_seconds = histogram("rerank_seconds", about)
        about = "Seconds for a forward pass of the reranker."
        self.rerank_pass_seconds = histogram("rerank_pass_seconds", about)
        self.queued_pairs = gauge("queued_pairs", "Pairs waiting or being scored.")

    def observe(self, stats: ForwardStats) -> None:
        """Count one forward pass."""
        self.texts.inc(stats.texts)
        self.tokens.inc(stats.tokens)
        self.batch_texts.observe(stats.texts)
        self.batch_fill.observe(stats.tokens / stats.budget)
        self.queue_seconds.observe(stats.waited)
        self.encode_seconds.observe(stats.seconds)

    def observe_rerank(self, pairs: int, seconds: float) -> None:
        """Count one forward pass of the reranker."""
        self.rerank_pairs.inc(pairs)
        self.rerank_pass_seconds.observe(seconds)

    def collect(self) -> list[Metric]:
        """Return the current values of all metrics as plain data."""
        return list(self._registry.collect())


def page(replicas: Mapping[str, Iterable[Metric]]) -> bytes:
    """Return the metrics of several replicas as Prometheus text, labelled with the replica."""
    return generate_latest(_Merged(replicas))


class _Merged:
    """A Prometheus collector that merges the collected metrics of several replicas."""

    def __init__(self, replicas: Mapping[str, Iterable[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for replica, metrics in self._replicas.items():
            for metric in metrics:
                into = merged.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                into.samples += [
                    s._replace(labels={"replica": replica} | s.labels) for s in metric.samples
                ]
        return merged.values()
