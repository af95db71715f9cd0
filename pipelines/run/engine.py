"""Where the two stages of a run execute: on Ray, or in this process.

    read + chunk + tokenise -> encode + write -> done records

An engine knows neither what is committed nor when; the runner asks it for done records.
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
    """All that a worker needs to read and encode its share of a run. Picklable."""

    config: AnyRunConfig = field(repr=False)  # it may hold secrets
    run_id: str
    attempt: str
    """A name of this attempt at the run; crash journals of one attempt belong together."""
    space_fingerprint: str
    """The driver's; a worker whose model has another one refuses to encode."""
    known: Callable[[], KnownDocuments] | None = None
    """What the index has already, to leave out what did not change."""

    def open_store(self) -> Store:
        """The store of the index."""
        return open_store(self.config.index.uri, self.config.index.storage_options)


class Engine(Protocol):
    """Runs the two stages of a run."""

    def running(self, store: Store, *, verbose: bool) -> AbstractContextManager[None]:
        """Start what is needed, stop it at the end.

        Raises:
            ConfigError, StorageError: it cannot start, or workers could not reach the store.
        """

    def share(self, index: Index, numbering: Numbering) -> Callable[[], KnownDocuments]:
        """The live documents of an index, with the units that they have in the new plan.

        The function gives them to any reading task, without copying their arrays.
        """

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        """Encode what is left to do; yields the done record of each slice once it is stored.

        `todo`: gives the rows of `todo_table`; asked again after machines were lost.

        Raises:
            EmbedError: what a worker raised, or nothing moved for too long.
        """


def slice_reader(config: AnyRunConfig) -> SliceReader:
    """What a reading task needs; loads a tokenizer.

    Raises:
        ConfigError, ModelError: rows that the model cannot hold.
    """
    limits = config.slice.documents, config.slice_max_tokens
    return SliceReader(Source(config.source), job_of(config).blocks(), *limits)


def read_slices(job: EncodeJob, reader: SliceReader, todo: pa.Table) -> Iterator[Slice]:
    """The slices of rows of `todo_table`.

    A process may die of what it reads, most likely of memory, and Ray would repeat that for ever.
    So each attempt is noted, and a unit that was begun MOST_READINGS times counts as unreadable.
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
    """Stands for the rest of a unit on which every process died."""
    done = [record for record in read_done(store, run_id, unit.number) if not record.unreadable]
    first = max((record.next_document for record in done), default=unit.wanted[0][0])
    reason = f"{unit}: the process that read and tokenised it died {MOST_READINGS} times"
    return unreadable_slice(unit.number, first, reason)


def slice_encoder(
    job: EncodeJob, actors: int = 1, loaded: TokenEncoder | None = None
) -> SliceEncoder:
    """Load the model, unless it is `loaded`.

    `actors`: how many processes of this attempt may be loading it at this moment.

    Raises:
        ModelError: it cannot be loaded, or this node's files are not the driver's.
        EmbedError: too many processes died while they loaded it.
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
