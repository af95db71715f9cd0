"""Reading an index: the live view of a generation, as Arrow, as a scanner or as a Ray dataset.

    from pipelines.index import open_index
    index = open_index("s3://vectors/wiki")
    index.to_table(columns=["doc_id", "dense"])

A reader trusts manifests and the tables they name, never a directory listing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors.errors import IndexStateError, StorageError
from pipelines.generations import live_generation, read_chain
from pipelines.output import VECTOR_COLUMNS, colbert_from_bytes
from pipelines.records import (
    LEDGER_SCHEMA,
    PASSAGE_SCHEMA,
    REJECTS_SCHEMA,
    Manifest,
    TableRecord,
)
from pipelines.storage import Store, open_store

if TYPE_CHECKING:
    import ray.data

_BATCH_ROWS = 4096
_VALUE_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


def open_index(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    generation: int | None = None,
) -> Index:
    """Open the live generation of an index, or one by its number.

    Raises:
        IndexStateError: nothing is committed there, or it is of a newer format.
    """
    store = open_store(uri, storage_options)
    if generation is None:
        generation = live_generation(store)
    if generation is None:
        raise IndexStateError(
            f"{store.uri}: expected a committed index, found none.",
            "Run python -m pipelines.embed_corpus first; an interrupted run commits at its end.",
        )
    return Index(store, read_chain(store, generation))


@dataclass(frozen=True)
class _Part:
    """One part and the rows of it that are masked: [first, stop) pairs."""

    path: str
    masked: tuple[tuple[int, int], ...]


class Index:
    """A generation with its ancestors; made by `open_index`. Rows come in no promised order."""

    def __init__(self, store: Store, chain: Sequence[Manifest]) -> None:
        self.store = store
        self.chain = chain
        """Manifests: of the generation that is read, then its ancestors'."""

    @property
    def info(self) -> Manifest:
        """The manifest of the generation that is read."""
        return self.chain[0]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the view; ColBERT as numbers, whichever way it is stored."""
        for part in self._parts:
            with self.store.open_input(part.path) as file:
                return self._as_numbers(pq.ParquetFile(file).schema_arrow.empty_table()).schema
        return self._schema_without_parts()

    def scanner(self, columns: Sequence[str] | None = None) -> ds.Scanner:
        """A pyarrow scanner over the live rows; only the columns asked for are read."""
        schema = self._projected(columns)
        # With threads, a scan that is not read to its end (head) would still hold the Python
        # generator when the interpreter exits, and abort it. Parquet decoding is threaded anyway.
        return ds.Scanner.from_batches(self._batches(schema), schema=schema, use_threads=False)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All live rows in memory."""
        schema = self._projected(columns)
        return pa.Table.from_batches(self._batches(schema), schema=schema)

    def to_ray(self, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """The live rows as a Ray dataset, one task a part."""
        import ray.data

        names = self._projected(columns).names
        rows = [{"part": i} for i in range(len(self._parts))]
        dataset = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1))
        return dataset.map_batches(
            _read_part, fn_kwargs={"index": self, "names": names}, batch_format="pyarrow"
        )

    def documents(self, ids: pa.Array | None = None) -> pa.Table:
        """The ledger: a row for each live document, or for those of the given ids."""
        found = [LEDGER_SCHEMA.empty_table()]
        masked = {(part.path, first) for part in self._parts for first, _ in part.masked}
        for _, path in self.ledgers():
            table = self._read_file(path)
            if ids is not None:
                table = table.filter(pc.is_in(table["doc_id"], ids))
            rows = zip(table["part"].to_pylist(), table["first_row"].to_pylist(), strict=True)
            found.append(table.filter(pa.array([row not in masked for row in rows], pa.bool_())))
        return pa.concat_tables(found)

    def rejects(self) -> pa.Table:
        """What is not in the index, and why: of this generation and those before it."""
        paths = self._paths(self.info.tables.rejects)
        return pa.concat_tables([REJECTS_SCHEMA.empty_table(), *map(self._read_file, paths)])

    def ledgers(self) -> Iterator[tuple[Manifest, str]]:
        """Files of LEDGER_SCHEMA and the generation each is of, the oldest generation first."""
        for manifest in reversed(self.chain):
            for path in self._paths(manifest.tables.documents):
                yield manifest, path

    def unchanged(self) -> Iterator[tuple[Manifest, str]]:
        """As `ledgers`: files of UNCHANGED_SCHEMA."""
        for manifest in reversed(self.chain):
            if manifest.tables.unchanged:
                for path in self._paths(manifest.tables.unchanged):
                    yield manifest, path

    def deletions(self) -> Iterator[tuple[Manifest, pa.Table]]:
        """Tables of DELETIONS_SCHEMA, the newest generation's first."""
        for manifest in self.chain:
            yield manifest, self._read_table(manifest.tables.deletions)

    @cached_property
    def part_paths(self) -> list[str]:
        """All parts, the oldest first; also those that are masked altogether."""
        return [path for m in reversed(self.chain) for path in self._paths(m.tables.parts)]

    @cached_property
    def _parts(self) -> list[_Part]:
        masked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for _, deletions in self.deletions():
            columns = (deletions[name].to_pylist() for name in ("part", "first_row", "n_rows"))
            for part, first, n in zip(*columns, strict=True):
                masked[part].append((first, first + n))
        return [_Part(path, tuple(sorted(masked[path]))) for path in self.part_paths]

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for part in self._parts:
            yield from self._read_part(part, schema)

    def _read_part(self, part: _Part, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        position = 0
        with self.store.open_input(part.path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=schema.names):
                table = pa.Table.from_batches([batch])
                if part.masked:
                    live = _live_rows(part.masked, position, batch.num_rows)
                    table = table.filter(pa.array(live))
                position += batch.num_rows
                yield from self._as_numbers(table).select(schema.names).cast(schema).to_batches()

    def _as_numbers(self, table: pa.Table) -> pa.Table:
        if "colbert" not in table.column_names:
            return table
        column = table["colbert"].combine_chunks()
        if not pa.types.is_fixed_size_binary(column.type.value_type):
            return table
        numbers = colbert_from_bytes(column, _VALUE_TYPES[self.info.vector_dtype])
        return table.set_column(table.column_names.index("colbert"), "colbert", numbers)

    def _projected(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise IndexStateError(
                f"{self.store.uri}: expected columns among {', '.join(self.schema.names)}, "
                f"got {unknown[0]!r}."
            )
        return pa.schema([self.schema.field(name) for name in columns])

    def _schema_without_parts(self) -> pa.Schema:
        """Of an index whose every document was rejected; without its metadata columns."""
        info, value = self.info, _VALUE_TYPES[self.info.vector_dtype]
        sparse = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
        vectors = {
            "dense": pa.list_(value, info.model.dim),
            "sparse": pa.struct(sparse),
            "colbert": pa.list_(pa.list_(value, info.model.colbert_dim or 1)),
        }
        chosen = [(name, vectors[name]) for name in VECTOR_COLUMNS if name in info.outputs]
        return pa.schema([*PASSAGE_SCHEMA, *(pa.field(*pair) for pair in chosen)])

    def _paths(self, table: TableRecord) -> list[str]:
        return self._read_table(table)["path"].to_pylist()  # type: ignore[no-any-return]

    def _read_table(self, table: TableRecord) -> pa.Table:
        data = self.store.read(table.path)
        if hashlib.sha256(data).hexdigest() != table.sha256:
            raise StorageError(
                f"{self.store.url(table.path)}: its checksum is not the manifest's.",
                "The file was damaged or replaced; open an older generation.",
            )
        return pq.read_table(pa.BufferReader(data))

    def _read_file(self, path: str) -> pa.Table:
        with self.store.open_input(path) as file:
            return pq.read_table(file)


def _live_rows(masked: Sequence[tuple[int, int]], position: int, n: int) -> np.ndarray:
    live = np.ones(n, dtype=bool)
    for first, stop in masked:
        live[max(first - position, 0) : max(stop - position, 0)] = False
    return live


def _read_part(batch: pa.Table, index: Index, names: list[str]) -> Iterator[pa.Table]:
    schema = index._projected(names)
    for number in batch["part"].to_pylist():
        yield schema.empty_table()
        for rows in index._read_part(index._parts[number], schema):
            yield pa.Table.from_batches([rows])
