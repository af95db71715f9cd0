"""Defines the engine, which executes the two stages of a run on Ray or in this process.

    read + chunk + tokenise -> encode + write -> done records

An engine only produces done records; the runner commits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors.encoded import TokenEncoder
from pipelines.config.run import AnyRunConfig
from pipelines.encode.crash_journal import MOST_READINGS, CrashJournal, may_read
from pipelines.encode.slice_encoder import SliceEncoder
from pipelines.index.reader import Index
from pipelines.index.records import Done
from pipelines.passages.slices import Slice, SliceReader, unreadable_slice
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import KnownDocuments
from pipelines.plan.plan import read_done, unit_of
from pipelines.run.job import job_of
from pipelines.source.source import Source
from pipelines.source.units import Unit
from pipelines.store.store import Store, open_store
from pipelines.terminal.progress import Progress


@dataclass(frozen=True)
class EncodeJob:
    """Everything a worker needs to read and encode its share of a run. Picklable."""

    config: AnyRunConfig = field(repr=False)  # may contain secrets
    run_id: str
    attempt: str
    """A name for this attempt at the run; crash journals of one attempt belong together."""
    space_fingerprint: str
    """The space fingerprint on the driver; a worker whose model has another one stops."""
    known: Callable[[], KnownDocuments] | None = None
    """Returns the documents of the index, so that unchanged ones are skipped."""

    def open_store(self) -> Store:
        """Return the store of the index."""
        return open_store(self.config.index.uri, self.config.index.storage_options)


class Engine(Protocol):
    """The interface of engines."""

    def running(self, store: Store, *, verbose: bool) -> AbstractContextManager[None]:
        """Start the engine, and stop it at the end.

        Raises:
            ConfigError, StorageError: it cannot start, or workers cannot reach the store.
        """

    def share(self, index: Index, numbering: Numbering) -> Callable[[], KnownDocuments]:
        """Share the live documents of an index, with their unit numbers in the new plan.

        Reading tasks call the returned function; it does not copy arrays.
        """

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        """Encode all remaining slices; yields the done record of each slice once it is stored.

        `todo` returns the rows of `todo_table`; it is called again after machines were lost.

        Raises:
            EmbedError: a worker raised it, or there was no progress for too long.
        """


def slice_reader(config: AnyRunConfig) -> SliceReader:
    """Return the reader of a reading task; loads a tokenizer.

    Raises:
        ConfigError, ModelError: the model cannot hold such rows.
    """
    limits = config.slice.documents, config.slice_max_tokens
    return SliceReader(Source(config.source), job_of(config).blocks(), *limits)


def read_slices(job: EncodeJob, reader: SliceReader, todo: pa.Table) -> Iterator[Slice]:
    """Yield the slices of rows of `todo_table`.

    A unit may kill the process that reads it, usually by lack of memory, and Ray would retry it
    forever. So attempts are recorded, and a unit begun MOST_READINGS times counts as unreadable.
    """
    known = job.known() if job.known else None
    store = job.open_store()
    for row in todo.to_pylist():
        unit = unit_of(row)
        if not may_read(store, job.run_id, job.attempt, unit.number):
            yield _given_up(store, job.run_id, unit)
            continue
        for start, stop in row["todo"]:
            yield from reader.slices(unit, start, stop, known)


def _given_up(store: Store, run_id: str, unit: Unit) -> Slice:
    """Return a slice for the rest of a unit on which every process died."""
    done = [record for record in read_done(store, run_id, unit.number) if not record.unreadable]
    first = max((record.next_document for record in done), default=unit.wanted[0][0])
    reason = f"{unit}: the process that read and tokenised it died {MOST_READINGS} times"
    return unreadable_slice(unit.number, first, reason)


def slice_encoder(
    job: EncodeJob, actors: int = 1, loaded: TokenEncoder | None = None
) -> SliceEncoder:
    """Return the encoder of a worker; loads the model unless `loaded` is given.

    `actors`: the number of processes of this attempt that may load the model concurrently.

    Raises:
        ModelError: the model cannot be loaded, or its files differ from the driver's.
        EmbedError: too many processes died while they loaded the model.
    """
    store, worker = job.open_store(), f"{socket.gethostname()}:{os.getpid()}"
    journal = CrashJournal(store, job.run_id, job.attempt, worker, actors)
    encoder = SliceEncoder(
        loaded or job_of(job.config).encoder(),
        store,
        journal,
        run_id=job.run_id,
        space_fingerprint=job.space_fingerprint,
        colbert_storage=job.config.index.colbert_storage,
        slices_at_once=job.config.ray.slices_per_actor,
    )
    journal.loaded()
    return encoder
