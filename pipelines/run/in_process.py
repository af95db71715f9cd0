"""Runs both stages in this process, one slice after the other, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from actors.encoded import TokenEncoder
from pipelines.index.reader import Index
from pipelines.index.records import Done
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import KnownDocuments
from pipelines.plan.mentions import gather
from pipelines.run.engine import EncodeJob, read_slices, slice_encoder, slice_reader
from pipelines.store.store import Store
from pipelines.terminal.progress import Progress


class InProcessEngine:
    """An `Engine` without Ray; the resulting index is the same."""

    def __init__(self, encoder: TokenEncoder | None = None) -> None:
        """Keep a loaded encoder for several runs; without one, each run loads its own."""
        self._encoder = encoder

    @contextmanager
    def running(self, store: Store, *, verbose: bool) -> Iterator[None]:
        """Start nothing."""
        yield

    def share(self, index: Index, numbering: Numbering) -> Callable[[], KnownDocuments]:
        """Keep the documents in this process; see `Engine`."""
        documents = KnownDocuments([gather(index, numbering.of_run)], index.part_paths)
        return lambda: documents

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        """Encode slice by slice, reading each after the previous one is stored; see `Engine`."""
        progress.stage("loading the model", actors=1)
        encoder, reader = slice_encoder(job, loaded=self._encoder), slice_reader(job.config)
        for each in read_slices(job, reader, todo()):
            yield encoder.encode(each)
