"""Encodes one slice, writes its files, and commits it by its done record.

Several threads may call one encoder, each with its slice, so that writing one slice overlaps with
encoding the next; the forward passes themselves are serialised. Knows nothing of where it runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoded import EncodedBatch, TokenEncoder
from actors.errors import ModelError
from actors.tokenizer import TOKENS_COLUMN
from pipelines.ahead import EncoderQueue, Spent
from pipelines.last_words import DEATHS_ALONE, CrashJournal, SliceSlots, is_hopeless, pieces
from pipelines.layout import done_path, new_nonce, slice_name, unreadable_path
from pipelines.local_files import scratch_folder
from pipelines.output import (
    ColbertStorage,
    PartWriter,
    describe_file,
    side_by_side,
    stored_vectors,
    write_table,
)
from pipelines.placed_rows import PlacedRows
from pipelines.records import Done, EncoderRecord, FileRecord, SliceTimes
from pipelines.slices import Slice
from pipelines.storage import Store
from pipelines.vector_sources import VectorSources


class SliceEncoder:
    """Turns slices into parts and done records."""

    def __init__(
        self,
        encoder: TokenEncoder,
        store: Store,
        journal: CrashJournal,
        *,
        run_id: str,
        space_fingerprint: str,
        colbert_storage: ColbertStorage,
        slices_at_once: int,
    ) -> None:
        """`space_fingerprint`: what the encoder's must be.

        Raises:
            ModelError: this node's model files are not the driver's.
        """
        self._encoder, self._store, self._journal = encoder, store, journal
        info = encoder.info
        if info.space_fingerprint != space_fingerprint:
            raise ModelError(
                f"model {info.name!r} on this node: expected space fingerprint "
                f"{space_fingerprint} (the driver's), found {info.space_fingerprint}.",
                "Give every node the same model files.",
            )
        self._run_id, self._colbert_storage = run_id, colbert_storage
        self._queue = EncoderQueue()
        self._slots = SliceSlots(slices_at_once)

    def encode(self, work: Slice) -> Done:
        """Encode and write a slice, then create its done record.

        Losing the race for the record to another attempt is no error: its record is returned, and
        what was written here is garbage.
        """
        began, started = time.time(), time.monotonic()
        nonce = new_nonce()
        name = f"{self._run_id}/{slice_name(work.unit, work.first_document)}-{nonce}.parquet"
        times = _Times()
        part, placed = self._write_part(work, f"data/{name}", times)
        documents = placed.ledger(work, part)
        rejects = pa.concat_tables([work.rejects, placed.rejects(work)])
        kept = np.flatnonzero(placed.document_ok[placed.document])
        own = np.intersect1d(kept, placed.encoded)
        lengths = work.passages["n_tokens"].to_numpy()
        edited = pc.is_valid(work.ledger["old_part"]).to_numpy()
        info = self._encoder.info
        done = Done(
            run_id=self._run_id,
            nonce=nonce,
            unit=work.unit,
            first_document=work.first_document,
            documents=work.documents,
            last=work.last,
            unreadable=work.unreadable,
            embedded=documents.num_rows,
            passages=len(kept),
            tokens=int(lengths[kept].sum()),
            truncated=int(work.passages["truncated"].to_numpy()[kept].sum()),
            reused=len(kept) - len(own),
            reused_tokens=int(lengths[kept].sum() - lengths[own].sum()),
            unchanged=work.unchanged.num_rows,
            edited=int(edited[np.unique(placed.document[own])].sum()),
            rejects=Counter(rejects["code"].to_pylist()),
            masked=placed.masked(work, part),
            part=part,
            ledger=_write_rows(self._store, documents, f"documents/{name}"),
            reject_file=_write_rows(self._store, rejects, f"rejects/{name}"),
            unchanged_file=_write_rows(self._store, work.unchanged, f"unchanged/{name}"),
            encoder=EncoderRecord(
                space_fingerprint=info.space_fingerprint,
                dim=info.dim,
                colbert_dim=info.colbert_dim,
                max_length=info.max_length,
                pooling=info.pooling,
                dtype=info.dtype,
                device=info.device,
                worker=self._journal.worker,
            ),
            seconds=round(time.monotonic() - started, 3),
            times=times.record(began, began + time.monotonic() - started),
        )
        path_of = unreadable_path if work.unreadable else done_path
        path = path_of(self._run_id, work.unit, work.first_document)
        if self._store.create_exclusive(path, done.to_bytes()):
            return done
        return Done.model_validate_json(self._store.read(path))

    def _write_part(
        self, work: Slice, path: str, times: _Times
    ) -> tuple[FileRecord | None, PlacedRows]:
        placed = PlacedRows.of(work)
        if not work.passages.num_rows:
            return None, placed
        passages = work.passages.drop_columns([TOKENS_COLUMN])
        empty = self._encoder.empty()
        sources = VectorSources(
            self._store, passages["passage_hash"], work.edited(), empty, self._colbert_storage
        )
        placed.encoded = sources.to_encode
        types = side_by_side(
            passages.slice(0, 0), stored_vectors(empty, self._colbert_storage)
        ).schema
        started = time.monotonic()
        with scratch_folder() as scratch:
            local = scratch / "part.parquet"
            with PartWriter(local, types) as writer:
                for batch in sources.put_together(self._batches(work, sources, times.spent)):
                    keep = placed.place(batch.start, batch.stop, batch.failures, writer.rows)
                    rows = side_by_side(
                        passages.slice(batch.start, batch.stop - batch.start), batch.columns
                    )
                    writer.write(rows if keep.all() else rows.filter(pa.array(keep)))
            times.written = time.monotonic() - started - times.spent.waiting
            if not writer.rows:
                return None, placed
            record = describe_file(local, path, writer.rows)
            self._store.upload(local, path)
            times.uploaded = time.monotonic() - started - times.spent.waiting - times.written
        return record, placed

    def _batches(self, work: Slice, sources: VectorSources, spent: Spent) -> Iterator[EncodedBatch]:
        """The vectors that are to be computed, in order; with care where a process died on it."""
        name = slice_name(work.unit, work.first_document)
        tokens = work.passages[TOKENS_COLUMN].combine_chunks()
        if not sources.is_plain:
            tokens = tokens.take(pa.array(sources.to_encode))
        if not len(tokens):
            return
        deaths = self._journal.deaths(name)
        careful = bool(deaths)
        with self._slots.take(alone=careful):
            for piece in pieces(len(tokens), deaths):
                first, stop = piece
                if is_hopeless(piece, deaths):
                    reason = f"the process died {DEATHS_ALONE} times while it encoded this alone"
                    yield EncodedBatch.failed(first, reason, self._encoder.empty())
                    continue
                with self._journal.announced(name, piece, careful=careful):
                    batches = self._encoder.stream(tokens.slice(first, stop - first))
                    for batch in self._queue.run(batches, spent):
                        yield batch.moved(first)


@dataclass
class _Times:
    spent: Spent = field(default_factory=Spent)
    written: float = 0.0
    uploaded: float = 0.0

    def record(self, began: float, ended: float) -> SliceTimes:
        return SliceTimes(
            began=round(began, 3),
            ended=round(ended, 3),
            encode=round(self.spent.encoding, 3),
            write=round(self.written, 3),
            upload=round(self.uploaded, 3),
        )


def _write_rows(store: Store, table: pa.Table, path: str) -> FileRecord | None:
    return write_table(store, table, path) if table.num_rows else None
