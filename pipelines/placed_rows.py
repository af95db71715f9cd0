"""Where the rows of a slice's documents went in its part, and which documents failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.records import FileRecord, MaskedRows
from pipelines.schemas import LEDGER_SCHEMA, reject_table
from pipelines.slices import Slice


@dataclass
class PlacedRows:
    """Where each passage's row went, and which documents failed.

    A document is embedded whole or not at all: rows that were already written when a later passage
    of the same document failed are masked.
    """

    document: np.ndarray
    """int64 [passages]: document of each passage, as a row of the slice's ledger."""
    document_ok: np.ndarray
    """bool [documents]."""
    row: np.ndarray
    """int64 [passages]: row in the part, -1 where not written."""
    reasons: dict[int, str]
    """Document -> why it failed."""
    encoded: np.ndarray
    """int64: the passages that went through the model."""

    @staticmethod
    def of(work: Slice) -> PlacedRows:
        """Nothing is placed yet."""
        n_rows = work.ledger["n_rows"].to_numpy()
        document = np.repeat(np.arange(len(n_rows)), n_rows)
        nothing = np.zeros(0, np.int64)
        n = len(document)
        return PlacedRows(document, np.ones(len(n_rows), bool), np.full(n, -1), {}, nothing)

    def place(self, start: int, stop: int, failures: dict[int, str], first: int) -> np.ndarray:
        """Give rows [start, stop) their places from `first` on; which of them to write."""
        for passage, reason in failures.items():
            document = int(self.document[passage])
            self.document_ok[document] = False
            number = passage - int(np.searchsorted(self.document, document))
            self.reasons.setdefault(document, f"passage {number}: {reason}")
        keep: np.ndarray = self.document_ok[self.document[start:stop]]
        self.row[start:stop][keep] = first + np.arange(int(keep.sum()))
        return keep

    def ledger(self, work: Slice, part: FileRecord | None) -> pa.Table:
        """The ledger rows of the documents that were embedded."""
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
        """The reject rows of the documents that failed."""
        ids, positions = work.ledger["doc_id"], work.ledger["position"]
        return reject_table(
            (ids[d].as_py(), work.unit, positions[d].as_py(), "encoder_error", reason)
            for d, reason in sorted(self.reasons.items())
        )

    def masked(self, work: Slice, part: FileRecord | None) -> list[MaskedRows]:
        """Rows in the part that belong to documents that failed."""
        found = []
        for document in sorted(self.reasons):
            rows = self.row[(self.document == document) & (self.row >= 0)]
            if len(rows) and part:
                doc_id = work.ledger["doc_id"][document].as_py()
                found.append(
                    MaskedRows(
                        doc_id=doc_id, part=part.path, first_row=int(rows[0]), n_rows=len(rows)
                    )
                )
        return found
