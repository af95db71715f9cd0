"""A run's counters for Prometheus, on the metrics port of the driver's Ray node.

    ray_packvec_tokens_total{run_id="3f2a..."} 81920.0

Ray puts `ray_` before each name and labels of its own behind; what was counted shows up after at
most ten seconds and is gone with the run, whose report.json keeps the sums. Slices that an earlier
try has done are not counted.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from pipelines.records import Done

# Ray reports a histogram's _sum as if every value lay in the middle of its bucket.
_SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]


class RunMetrics:
    """Fed with receipts; needs a connection to Ray."""

    def __init__(self, run_id: str) -> None:
        """Every value carries `run_id`."""
        self._tags = {"run_id": run_id}
        self._documents = _counter("documents", "Documents read, rejected ones included.")
        self._passages = _counter("passages", "Passages embedded.")
        self._tokens = _counter("tokens", "Tokens embedded, special tokens included.")
        self._rejects = _counter("rejects", "Rejects by reason.", "code")
        self._bytes = _counter("output_bytes", "Bytes of parts written.")
        self._seconds = Histogram(
            "packvec_slice_seconds",
            "From the arrival of a slice at its actor to its done record.",
            boundaries=_SECONDS,
            tag_keys=("run_id",),
        )

    def update(self, done: Done) -> None:
        """Count one slice."""
        sums = {
            self._documents: done.documents,
            self._passages: done.passages,
            self._tokens: done.encoded_tokens,
            self._bytes: done.part.bytes if done.part else 0,
        }
        for counter, value in sums.items():
            if value:  # Ray refuses to count nothing
                counter.inc(value, self._tags)
        for code, value in done.rejects.items():
            self._rejects.inc(value, self._tags | {"code": code})
        self._seconds.observe(done.seconds, self._tags)


def _counter(name: str, description: str, *labels: str) -> Counter:
    return Counter(f"packvec_{name}_total", description, tag_keys=("run_id", *labels))
