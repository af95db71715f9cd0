"""Documents that share an id across the slices of a run: found at its commit.

Duplicates within a slice are the reader's to reject; only the whole run shows the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.known_documents import id_hashes
from pipelines.records import Done
from pipelines.schemas import LEDGER_SCHEMA
from pipelines.storage import Store

LOST_SCHEMA = pa.schema([field for field in LEDGER_SCHEMA if field.name != "doc_hash"])
"""`part` is null of a document that the run found unchanged: it has no rows to mask."""

_THREADS = 16


def find_duplicates(store: Store, done: Sequence[Done]) -> pa.Table:
    """Ledger rows (schema: LOST_SCHEMA) of documents whose id an earlier (unit, position) has.

    Two passes: 64-bit hashes of all ids (8 bytes a document), then only rows whose hash repeats.
    """
    found = [file for record in done for file in (record.ledger, record.unchanged_file) if file]
    paths = [file.path for file in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(lambda p: _hashes(read_columns(store, p, ["doc_id"])), paths))
        every = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        suspects = [
            path for path, h in zip(paths, hashes, strict=True) if np.isin(h, repeated).any()
        ]
        rows = list(
            pool.map(lambda p: _with_hash_in(read_columns(store, p, None), repeated), suspects)
        )
    if not rows:
        return LOST_SCHEMA.empty_table()
    candidates = pa.concat_tables(rows).sort_by([("unit", "ascending"), ("position", "ascending")])
    later = pd.Series(candidates["doc_id"].to_pylist()).duplicated(keep="first")
    return candidates.filter(pa.array(later.to_numpy()))


def read_columns(store: Store, path: str, columns: list[str] | None) -> pa.Table:
    """Some or all columns of a Parquet file of the index."""
    with store.open_input(path) as file:
        return pq.read_table(file, columns=columns)


def _hashes(table: pa.Table) -> np.ndarray:
    return id_hashes(table["doc_id"])[0]


def _with_hash_in(table: pa.Table, repeated: np.ndarray) -> pa.Table:
    rows = table.filter(pa.array(np.isin(_hashes(table), repeated)))
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in LOST_SCHEMA
    ]
    return pa.table(columns, schema=LOST_SCHEMA)
