"""Indexes of several generations, written with the project's own records: no model, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.index.generations import publish
from pipelines.index.layout import generation_path, manifest_path, new_nonce, plan_path, slice_name
from pipelines.index.parts import (
    ColbertStorage,
    PartWriter,
    describe_file,
    stored_rows,
    write_table,
)
from pipelines.index.records import (
    Counts,
    FileRecord,
    Manifest,
    ModelRecord,
    Plan,
    TableRecord,
    Tables,
)
from pipelines.index.schemas import DELETIONS_SCHEMA, FILES_SCHEMA, LEDGER_SCHEMA, PASSAGE_SCHEMA
from pipelines.store import Store

DIM = 4
Doc = tuple[str, ...]
"""A document: its title, then the text of each passage."""
Place = tuple[str, int, int]
"""part, first_row, n_rows."""


def manifest_of(generation: int, tables: Tables | None = None, **changes: Any) -> Manifest:
    """A manifest; `changes` of its fields."""
    table = TableRecord(path="generations/x.parquet", sha256="0" * 64)
    return Manifest(
        **{
            "generation": generation,
            "parent": None,
            "run_id": "0123456789abcdef",
            "space_fingerprint": "space",
            "index_fingerprint": "index",
            "model": ModelRecord(
                name="m",
                revision=None,
                dim=DIM,
                colbert_dim=DIM,
                max_length=128,
                pooling="cls",
                dtypes=["float32"],
            ),
            "outputs": ["dense", "colbert"],
            "vector_dtype": "float16",
            "colbert_storage": "values",
            "counts": Counts(documents=1, passages=1, tokens=3, truncated=0, encoded=1, rejects={}),
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:00:01+00:00",
            "versions": {},
            "tables": tables
            or Tables(parts=table, documents=table, rejects=table, deletions=table),
        }
        | changes
    )


@dataclass
class History:
    """Writes generation after generation; knows what each one's live view must be."""

    store: Store
    colbert: ColbertStorage = "values"
    extra: str = "url"
    """A column of metadata: the title, once more."""
    documents_a_part: int = 2
    views: dict[int, dict[str, Doc]] = field(default_factory=dict)
    places: dict[int, dict[str, Place]] = field(default_factory=dict)

    def add(
        self,
        put: Mapping[str, Doc] | None = None,
        delete: Iterable[str] = (),
        *,
        parent: int | None = None,
        compacts: int | None = None,
        failed: Mapping[str, Doc] | None = None,
        published: bool = True,
        **changes: Any,
    ) -> int:
        """Commit a generation; returns its number.

        `failed`: documents whose rows were written and are masked by the generation itself.
        `changes` are those of manifest_of.
        """
        number = max(self.views, default=0) + 1
        run_id = f"{number:016x}"
        put, failed = dict(put or {}), failed or {}
        if compacts is not None:
            put = dict(self.views[compacts])
        before = self.places[parent] if parent is not None else {}
        gone = [doc_id for doc_id in delete if doc_id not in put]
        parts, places = self._write_parts(run_id, {**put, **failed})
        masked = [(i, *before[i]) for i in [*gone, *(i for i in put if i in before)]]
        masked += [(i, *places.pop(i)) for i in failed]
        ledgers = self._write_ledgers(run_id, put, places)
        deletions = pa.Table.from_pylist(
            [dict(zip(DELETIONS_SCHEMA.names, row, strict=True)) for row in masked],
            DELETIONS_SCHEMA,
        )
        tables = Tables(
            parts=self._table(number, "parts", _files(parts)),
            documents=self._table(number, "documents", _files(ledgers)),
            rejects=self._table(number, "rejects", _files([])),
            deletions=self._table(number, "deletions", deletions),
        )
        passages = sum(len(doc) - 1 for doc in put.values())
        left = {i: place for i, place in before.items() if i not in put and i not in gone}
        counts = Counts(
            documents=len(put),
            passages=passages,
            tokens=3 * passages,
            truncated=0,
            encoded=0 if compacts else passages,
            reused=0,
            unchanged=len(left),
            deleted=len(gone),
            replaced=len(before) - len(left) - len(gone),
            rejects={},
        )
        said = {"run_id": run_id, "parent": parent, "compacts": compacts, "counts": counts}
        said |= {"colbert_storage": self.colbert}
        manifest = manifest_of(number, tables, **(said | changes))
        self._plan(manifest)
        assert self.store.create_exclusive(manifest_path(number), manifest.to_bytes())
        self.places[number] = left | places
        held = self.views[parent] if parent is not None else {}
        self.views[number] = {i: doc for i, doc in held.items() if i in left} | put
        if published:
            publish(self.store, number)
        return number

    def remove(self, *numbers: int, files: bool = False) -> None:
        """As a vacuum does: the manifests; and the files that only these name."""
        for number in numbers:
            self.store.delete(manifest_path(number))
            for file in self.store.find() if files else []:
                if f"{number:016x}" in file.path or f"generations/{number:06d}/" in file.path:
                    self.store.delete(file.path)

    def _write_parts(
        self, run_id: str, documents: Mapping[str, Doc]
    ) -> tuple[list[FileRecord], dict[str, Place]]:
        parts, places, ids = [], {}, list(documents)
        for first in range(0, len(ids), self.documents_a_part):
            mine = ids[first : first + self.documents_a_part]
            path = f"data/{run_id}/{slice_name(0, first)}-{new_nonce()}.parquet"
            rows = self.rows({i: documents[i] for i in mine})
            with TemporaryDirectory() as folder:
                local = Path(folder) / "part.parquet"
                with PartWriter(local, rows.schema) as writer:
                    writer.write(rows)
                parts.append(describe_file(local, path, rows.num_rows))
                self.store.upload(local, path)
            at = 0
            for doc_id in mine:
                n = len(documents[doc_id]) - 1
                places[doc_id], at = (path, at, n), at + n
        return parts, places

    def rows(self, documents: Mapping[str, Doc]) -> pa.Table:
        """Rows of a part; vectors are made from the text."""
        flat = [(i, doc[0], n, t) for i, doc in documents.items() for n, t in enumerate(doc[1:])]
        ids, titles, numbers, texts = zip(*flat, strict=True) if flat else ([], [], [], [])
        n = len(texts)
        passages = pa.table(
            [
                pa.array(ids, pa.string()),
                pa.array([f"{i}#{k}" for i, _, k, _ in flat], pa.string()),
                pa.array(numbers, pa.int32()),
                pa.array(texts, pa.string()),
                pa.array(titles, pa.string()),
                pa.array([3] * n, pa.int32()),
                pa.array([False] * n),
                pa.array([0] * n, pa.int32()),
                pa.array([len(text) for text in texts], pa.int32()),
                pa.array([_hash(text) for text in texts], pa.binary(16)),
            ],
            schema=PASSAGE_SCHEMA,
        ).append_column(pa.field(self.extra, pa.string()), pa.array(titles, pa.string()))
        values = np.stack([_vector(text) for text in texts]) if n else np.zeros((0, DIM))
        dense = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel().astype("f2")), DIM)
        offsets = pa.array(np.arange(n + 1) * 2, pa.int32())  # two tokens a passage
        tokens = pa.array(np.repeat(values, 2, axis=0).ravel().astype("f2"))
        colbert = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(tokens, DIM))
        return stored_rows(passages, pa.table({"dense": dense, "colbert": colbert}), self.colbert)

    def _write_ledgers(
        self, run_id: str, documents: Mapping[str, Doc], places: Mapping[str, Place]
    ) -> list[FileRecord]:
        """Two files, where there is enough."""
        rows = [
            (i, _hash(repr(doc)), 0, at, *places[i], 3 * (len(doc) - 1))
            for at, (i, doc) in enumerate(documents.items())
        ]
        halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        files = []
        for number, half in enumerate(half for half in halves if half):
            named = [dict(zip(LEDGER_SCHEMA.names, row, strict=True)) for row in half]
            path = f"documents/{run_id}/{slice_name(0, number)}-{new_nonce()}.parquet"
            files.append(write_table(self.store, pa.Table.from_pylist(named, LEDGER_SCHEMA), path))
        return files

    def _table(self, number: int, name: str, table: pa.Table) -> TableRecord:
        path = generation_path(number, f"{name}-{new_nonce()}.parquet")
        return TableRecord(path=path, sha256=write_table(self.store, table, path).sha256)

    def _plan(self, manifest: Manifest) -> None:
        plan = Plan(
            run_id=manifest.run_id,
            parent=manifest.parent,
            request={"model": {"normalize": True}},
            listing="",
            units=1,
            documents=None,
            config={},
            created=manifest.started,
        )
        self.store.create_exclusive(plan_path(manifest.run_id), plan.to_bytes())


def documents_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Doc]:
    """Documents put together from their rows, each of which must be there once."""
    found: dict[str, dict[int, str]] = {}
    titles: dict[str, str] = {}
    for row in rows:
        passages = found.setdefault(row["doc_id"], {})
        assert row["passage_no"] not in passages
        passages[row["passage_no"]] = row["text"]
        assert titles.setdefault(row["doc_id"], row["title"]) == row["title"]
    for passages in found.values():
        assert sorted(passages) == [*range(len(passages))]
    return {i: (titles[i], *(p[n] for n in sorted(p))) for i, p in found.items()}


def _files(files: Sequence[FileRecord]) -> pa.Table:
    return pa.Table.from_pylist([file.model_dump() for file in files], FILES_SCHEMA)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _vector(text: str) -> np.ndarray:
    seed = int.from_bytes(_hash(text)[:8], "little")
    values = np.random.default_rng(seed).standard_normal(DIM)
    return values / np.linalg.norm(values)
