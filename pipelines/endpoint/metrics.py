"""What a replica counts, and the counts of all replicas as one Prometheus page.

packvec_requests_total{replica="a1b2",route="/encode",status="200"} 12.0
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from actors.batching import ForwardStats

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_FILL = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class EndpointMetrics:
    """The metrics of one replica, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "packvec_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.errors = Counter(
            "packvec_errors", "Requests refused, by reason.", ["route", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "packvec_request_seconds",
            "From the arrival of a request at the replica to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter("packvec_texts", "Texts encoded.", registry=registry)
        self.text_faults = Counter(
            "packvec_text_faults", "Texts that have no vectors.", ["code"], registry=registry
        )
        self.tokens = Counter(
            "packvec_tokens", "Tokens encoded, special tokens included.", registry=registry
        )
        self.truncated = Counter("packvec_truncated_texts", "Texts cut.", registry=registry)
        self.cache_hits = Counter(
            "packvec_cache_hits", "Texts answered from the cache.", registry=registry
        )
        self.cache_misses = Counter(
            "packvec_cache_misses", "Texts looked for in the cache in vain.", registry=registry
        )
        self.cache_bytes = Gauge("packvec_cache_bytes", "What the cache holds.", registry=registry)
        self.queued_texts = Gauge(
            "packvec_queued_texts", "Texts waiting or being encoded.", registry=registry
        )
        self.batch_texts = Histogram(
            "packvec_batch_texts", "Texts in a forward pass.", buckets=_TEXTS, registry=registry
        )
        self.batch_fill = Histogram(
            "packvec_batch_fill",
            "Tokens of a forward pass as a share of its budget.",
            buckets=_FILL,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "packvec_queue_seconds",
            "How long the oldest text of a forward pass waited for it, tokenising included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode_seconds = Histogram(
            "packvec_encode_seconds",
            "A forward pass and what becomes of its vectors.",
            buckets=_SECONDS,
            registry=registry,
        )

        self.searches = Counter(
            "packvec_searches", "Queries searched for.", ["mode"], registry=registry
        )
        self.search_seconds = Histogram(
            "packvec_search_seconds",
            "From a request's vectors to its ranked passages, waiting included.",
            ["mode"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued_searches = Gauge(
            "packvec_queued_searches", "Requests searching or waiting for it.", registry=registry
        )
        self.reranks = Counter("packvec_reranks", "Requests reranked.", registry=registry)
        self.rerank_pairs = Counter(
            "packvec_rerank_pairs", "Pairs of a query and a text scored.", registry=registry
        )
        self.rerank_seconds = Histogram(
            "packvec_rerank_seconds",
            "From a request's pairs to their scores, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rerank_pass_seconds = Histogram(
            "packvec_rerank_pass_seconds",
            "A forward pass of the reranker.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued_pairs = Gauge(
            "packvec_queued_pairs", "Pairs waiting or being scored.", registry=registry
        )

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
    merged: dict[str, Metric] = {}
    for replica, metrics in replicas.items():
        for metric in metrics:
            into = merged.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            into.samples += [
                Sample(s.name, {"replica": replica} | s.labels, s.value, s.timestamp, s.exemplar)
                for s in metric.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Collected(merged.values()))
    return generate_latest(registry)


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)
