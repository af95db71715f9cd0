"""What a replica counts, and the counts of all replicas as one Prometheus page.

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
        about = "From the arrival of a request at the replica to its answer."
        self.request_seconds = histogram("request_seconds", about, ["route"])
        self.texts = counter("texts", "Texts encoded.")
        self.text_faults = counter("text_faults", "Texts that have no vectors.", ["code"])
        self.tokens = counter("tokens", "Tokens encoded, special tokens included.")
        self.truncated = counter("truncated_texts", "Texts cut.")
        self.cache_hits = counter("cache_hits", "Texts answered from the cache.")
        self.cache_misses = counter("cache_misses", "Texts looked for in the cache in vain.")
        self.cache_bytes = gauge("cache_bytes", "What the cache holds.")
        self.queued_texts = gauge("queued_texts", "Texts waiting or being encoded.")
        about = "Texts in a forward pass."
        self.batch_texts = histogram("batch_texts", about, buckets=_TEXTS)
        about = "Tokens of a forward pass as a share of its budget."
        self.batch_fill = histogram("batch_fill", about, buckets=_FILL)
        about = "How long the oldest text of a forward pass waited for it, tokenising included."
        self.queue_seconds = histogram("queue_seconds", about)
        about = "A forward pass and what becomes of its vectors."
        self.encode_seconds = histogram("encode_seconds", about)
        self.searches = counter("searches", "Queries searched for.", ["mode"])
        about = "From a request's vectors to its ranked passages, waiting included."
        self.search_seconds = histogram("search_seconds", about, ["mode"])
        self.queued_searches = gauge("queued_searches", "Requests searching or waiting for it.")
        self.reranks = counter("reranks", "Requests reranked.")
        self.rerank_pairs = counter("rerank_pairs", "Pairs of a query and a text scored.")
        about = "From a request's pairs to their scores, waiting included."
        self.rerank_seconds = histogram("rerank_seconds", about)
        about = "A forward pass of the reranker."
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
        """All of them now; plain data."""
        return list(self._registry.collect())


def page(replicas: Mapping[str, Iterable[Metric]]) -> bytes:
    """The Prometheus text of several replicas' metrics, each sample labelled with its replica."""
    return generate_latest(_Merged(replicas))


class _Merged:
    """A collector of what other collectors have collected."""

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
