"""How much of the time the encoders of a run had work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipelines.records import Done


def encoder_busy(done: Sequence[Done]) -> float | None:
    """Share of the time in which the encoders had work, None where no record tells.

    Of each actor from the beginning of its first slice to the end of its last one: loading the
    model, and waiting for other actors' last slices, do not count.
    """
    slices = defaultdict(list)
    for record in done:
        if record.times:
            slices[record.encoder.worker].append(record.times)
    spans = sum(max(t.ended for t in s) - min(t.began for t in s) for s in slices.values())
    busy = sum(times.encode for s in slices.values() for times in s)
    return round(busy / spans, 4) if spans > 0 else None
