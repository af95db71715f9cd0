"""Encodes one slice, writes its files, and commits it by its done record.

Several threads may call one encoder, each with its own slice, so that writing one slice overlaps
with encoding the next. Forward passes are serialised. Does not depend on Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoded import EncodedBatch, TokenEncoder
from actors.errors import ModelError
from actors.tokens.tokenizer import TOKENS_COLUMN
from pipelines.encode.crash_journal import (
    DEATHS_ALONE,
    CrashJournal,
    SliceSlots,
    is_hopeless,
    pieces,
)
from pipelines.encode.overlap import EncoderQueue, Spent
from pipelines.encode.reuse import VectorSources
from pipelines.index.layout import done_path, new_nonce, rows_path, slice_name, unreadable_path
from pipelines.index.parts import (
    ColbertStorage,
    PartWriter,
    describe_file,
    side_by_side,
    stored_vectors,
    write_table,
)
from pipelines.index.records import Done, EncoderRecord, FileRecord, MaskedRows, SliceTimes
from pipelines.index.schemas import LEDGER_SCHEMA, reject_table
from pipelines.passages.slices import Slice
from pipelines.store.files import scratch_folder
from pipelines.store.store import Store


@dataclass
class PlacedRows:
    """The row of each passage in the part, and the documents that failed.

    A document is embedded whole or not at all. If a passage fails after earlier rows of its
    document were written, those rows are masked.
    """

    document: np.ndarray
    """int64 [passages]: the row of the passage's document in the slice's ledger."""
    document_ok: np.ndarray
    """bool [documents]: whether no passage of the document has failed."""
    row: np.ndarray
    """int64 [passages]: the row in the part, -1 if not written."""
    reasons: dict[int, str]
    """Document -> the reason of its failure."""
    encoded: np.ndarray
    """int64: the passages that the model encoded."""

    @staticmethod
    def of(work: Slice) -> PlacedRows:
        """Return the initial state of a slice, without placed rows."""
        n_rows = work.ledger["n_rows"].to_numpy()
        document = np.repeat(np.arange(len(n_rows)), n_rows)
        nothing = np.zeros(0, np.int64)
        n = len(document)
        return PlacedRows(document, np.ones(len(n_rows), bool), np.full(n, -1), {}, nothing)

    def place(self, start: int, stop: int, failures: dict[int, str], first: int) -> np.ndarray:
        """Place passages [start, stop) from row `first` on; return a mask of those to write."""
        for passage, reason in failures.items():
            document = int(self.document[passage])
            self.document_ok[document] = False
            number = passage - int(np.searchsorted(self.document, document))
            self.reasons.setdefault(document, f"passage {number}: {reason}")
        keep: np.ndarray = self.document_ok[self.document[start:stop]]
        self.row[start:stop][keep] = first + np.arange(int(keep.sum()))
        return keep

    def ledger(self, work: Slice, part: FileRecord | None) -> pa.Table:
        """Return the ledger rows of the embedded documents."""
        ok = pa.array(self.document_ok)
        documents = work.ledger.filter(ok)
        firsts = np.searchsorted(self.document, np.arange(len(self.document_ok)))
        n = documents.num_rows
        return pa.table(
            {
                "doc_id": documents["doc_id"],
                "doc_hash": documents["doc_hash"],
                "unit": pa.array(np.full(n, work.unit, np.int32)),
                "position": documents["position"],
                "part": pa.array([part.path if part else None] * n, pa.string()),
                "first_row": pa.array(self.row[firsts[self.document_ok]]),
                "n_rows": documents["n_rows"],
                "n_tokens": documents["n_tokens"],
            },
            schema=LEDGER_SCHEMA,
        )

    def rejects(self, work: Slice) -> pa.Table:
        """Return the reject rows of the failed documents."""
        ids, positions = work.ledger["doc_id"], work.ledger["position"]
        return reject_table(
            (ids[d].as_py(), work.unit, positions[d].as_py(), "encoder_error", reason)
            for d, reason in sorted(self.reasons.items())
        )

    def masked(self, work: Slice, part: FileRecord | None) -> list[MaskedRows]:
        """Return the rows in the part that belong to failed documents."""
        found = []
        for document in sorted(self.reasons):
            rows = self.row[(self.document == document) & (self.row >= 0)]
            if len(rows) and part:
                doc_id, first = work.ledger["doc_id"][document].as_py(), int(rows[0])
                found.append(
                    MaskedRows(doc_id=doc_id, part=part.path, first_row=first, n_rows=len(rows))
                )
        return found


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
        """`space_fingerprint`: the fingerprint that the encoder must have.

        Raises:
            ModelError: the model files of this node differ from the driver's.
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
        """Encode and write a slice, then create and return its done record.

        If another attempt created the record first, its record is returned, and the files that this
        attempt wrote are garbage.
        """
        began, started, spent = time.time(), time.monotonic(), Spent()
        nonce = new_nonce()
        place = self._run_id, work.unit, work.first_document
        part, placed = self._write_part(work, rows_path("data", *place, nonce), spent)
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
            ledger=self._write("documents", documents, place, nonce),
            reject_file=self._write("rejects", rejects, place, nonce),
            unchanged_file=self._write("unchanged", work.unchanged, place, nonce),
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
            times=SliceTimes(
                began=round(began, 3),
                ended=round(began + time.monotonic() - started, 3),
                encode=round(spent.encoding, 3),
                write=round(spent.writing, 3),
                upload=round(spent.uploading, 3),
            ),
        )
        path = (unreadable_path if work.unreadable else done_path)(*place)
        if self._store.create_exclusive(path, done.to_bytes()):
            return done
        return Done.model_validate_json(self._store.read(path))

    def _write(
        self, rows: str, table: pa.Table, place: tuple[str, int, int], nonce: str
    ) -> FileRecord | None:
        if not table.num_rows:
            return None
        return write_table(self._store, table, rows_path(rows, *place, nonce))

    def _write_part(
        self, work: Slice, path: str, spent: Spent
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
                for batch in sources.put_together(self._batches(work, sources, spent)):
                    keep = placed.place(batch.start, batch.stop, batch.failures, writer.rows)
                    rows = side_by_side(
                        passages.slice(batch.start, batch.stop - batch.start), batch.columns
                    )
                    writer.write(rows if keep.all() else rows.filter(pa.array(keep)))
            spent.writing = time.monotonic() - started - spent.waiting
            if not writer.rows:
                return None, placed
            record = describe_file(local, path, writer.rows)
            self._store.upload(local, path)
            spent.uploading = time.monotonic() - started - spent.waiting - spent.writing
        return record, placed

    def _batches(self, work: Slice, sources: VectorSources, spent: Spent) -> Iterator[EncodedBatch]:
        """Encode `to_encode` in order; if a process died on the slice, in separate pieces."""
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
                    reason = f"the process died {DEATHS_ALONE} times while encoding it alone"
                    yield EncodedBatch.failed(first, reason, self._encoder.empty())
                    continue
                with self._journal.announced(name, piece, careful=careful):
                    batches = self._encoder.stream(tokens.slice(first, stop - first))
                    for batch in self._queue.run(batches, spent):
                        yield batch.moved(first)
