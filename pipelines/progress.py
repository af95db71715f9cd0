"""What a running pipeline says of itself: one line now and then, from the receipts."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console

from pipelines.records import Done, Manifest

_EVERY_SECONDS = 10.0


class Progress:
    """Adds up receipts and prints a line every ten seconds."""

    def __init__(self, console: Console, documents: int, kept: int) -> None:
        """`documents`: of the whole plan; `kept`: those an earlier try has done."""
        self._console = console
        self._total = documents
        self._documents = kept
        self._started = self._printed = time.monotonic()
        self._passages = self._tokens = self._new = 0
        self._rejects: Counter[str] = Counter()

    def update(self, done: Done) -> None:
        """Count one slice."""
        self._documents += done.documents
        self._new += done.documents
        self._passages += done.passages
        self._tokens += done.tokens
        self._rejects.update(done.rejects)
        now = time.monotonic()
        if now - self._printed >= _EVERY_SECONDS:
            self._printed = now
            self._console.print(self._line(now - self._started), highlight=False)

    def _line(self, seconds: float) -> str:
        left = (self._total - self._documents) * seconds / max(self._new, 1)
        speed = self._tokens / max(seconds, 1e-9)
        return (
            f"{self._documents:,} of {self._total:,} documents, {self._passages:,} passages, "
            f"{speed:,.0f} tokens/s, {self._rejects.total():,} rejects, {left:,.0f} s left"
        )


def summary(manifest: Manifest, uri: str) -> str:
    """The last lines of a run."""
    counts = manifest.counts
    rejects = ", ".join(f"{n:,} {code}" for code, n in counts.rejects.items()) or "none"
    return (
        f"committed generation {manifest.generation} of {uri}\n"
        f"{counts.documents:,} documents, {counts.passages:,} passages, {counts.tokens:,} tokens, "
        f"rejects: {rejects}"
    )
