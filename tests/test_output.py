"""Parts: both ColBERT storages hold the same numbers, every reader sees the types we wrote."""

from __future__ import annotations

import hashlib

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.index.parts import (
    VECTOR_COLUMNS,
    Part,
    PartWriter,
    colbert_from_bytes,
    colbert_to_bytes,
    describe_file,
    stored_rows,
    write_table,
)
from pipelines.store import open_store

MIB = 1 << 20
VALUE_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
LENGTHS = st.lists(st.integers(0, 5), max_size=8)


def colbert_of(lengths, dim=4, dtype="float16", seed=0):
    """A ColBERT column with these tokens a passage."""
    n = sum(lengths)
    values = np.random.default_rng(seed).standard_normal(n * dim).astype(dtype)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values), dim)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), rows)


def sparse_of(n):
    indices = pa.array([[i, i + 3] for i in range(n)], pa.list_(pa.int32()))
    weights = pa.array([[0.5, i / 7] for i in range(n)], pa.list_(pa.float32()))
    return pa.StructArray.from_arrays([indices, weights], ["indices", "values"])


def dense_of(n, dim=4, dtype="float16", seed=0):
    values = np.random.default_rng(seed).standard_normal(n * dim).astype(dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), dim)


def rows_of(n, *, storage="values", dtype="float16", dim=4):
    passages = pa.table(
        {
            "doc_id": [f"d{i // 2}" for i in range(n)],
            "passage_id": [f"d{i // 2}#{i % 2}" for i in range(n)],
            "passage_no": pa.array([i % 2 for i in range(n)], pa.int32()),
            "text": [f"text {i}" for i in range(n)],
            "title": pa.array([None if i % 3 else "same title" for i in range(n)], pa.string()),
            "truncated": [False] * n,
            "passage_hash": pa.array([i.to_bytes(16) for i in range(n)], pa.binary(16)),
            "tags": pa.array([["x", "y"]] * n, pa.list_(pa.string())),
        }
    )
    vectors = pa.table(
        {
            "dense": dense_of(n, dim, dtype),
            "sparse": sparse_of(n),
            "colbert": colbert_of([i % 3 for i in range(n)], dim, dtype),
        }
    )
    return stored_rows(passages, vectors, storage)


def write_part(path, *tables):
    with PartWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write(table)
    return pq.ParquetFile(path)


# ColBERT as numbers and as bytes


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.sampled_from(["float16", "float32"]), st.data())
def test_colbert_bytes_of_any_slice_give_the_numbers_back(lengths, dim, dtype, data):
    column = colbert_of(lengths, dim, dtype)
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    column = column.slice(start, stop - start)
    stored = colbert_to_bytes(column)
    assert stored.type == pa.list_(pa.binary(dim * np.dtype(dtype).itemsize))
    back = colbert_from_bytes(stored, VALUE_TYPES[dtype])
    assert back.type == column.type
    assert back.equals(column)


@settings(deadline=None)
@given(LENGTHS.filter(len), st.data())
def test_colbert_numbers_of_sliced_bytes_are_those_of_the_slice(lengths, data):
    column = colbert_of(lengths)
    start = data.draw(st.integers(0, len(lengths)))
    stored = colbert_to_bytes(column)
    assert colbert_from_bytes(stored.slice(start), pa.float16()).equals(column.slice(start))


def test_colbert_bytes_are_little_endian_values():
    column = pa.array([[[1.0, -2.0]], []], pa.list_(pa.list_(pa.float16(), 2)))
    assert colbert_to_bytes(column).to_pylist() == [[b"\x00\x3c\x00\xc0"], []]


def test_colbert_bytes_of_a_filtered_column_are_those_of_its_rows():
    column = colbert_of([3, 0, 2, 4]).filter(pa.array([True, False, False, True]))
    back = colbert_from_bytes(colbert_to_bytes(column), pa.float16())
    assert back.to_pylist() == column.to_pylist()
    assert [len(row) for row in back] == [3, 4]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_colbert_bytes_of_no_passages_keep_the_type(dtype):
    nothing = pa.array([], pa.list_(pa.list_(VALUE_TYPES[dtype], 3)))
    stored = colbert_to_bytes(nothing)
    assert stored.type == pa.list_(pa.binary(3 * np.dtype(dtype).itemsize))
    assert colbert_from_bytes(stored, VALUE_TYPES[dtype]).equals(nothing)


@pytest.mark.parametrize("storage", ["values", "bytes"])
def test_stored_rows_hold_passages_then_vectors(storage):
    table = rows_of(4, storage=storage)
    assert table.column_names[-3:] == list(VECTOR_COLUMNS)
    assert table.num_rows == 4
    is_bytes = pa.types.is_fixed_size_binary(table.schema.field("colbert").type.value_type)
    assert is_bytes == (storage == "bytes")


def test_stored_rows_of_dense_only_have_no_other_vectors():
    table = stored_rows(pa.table({"doc_id": ["a"]}), pa.table({"dense": dense_of(1)}), "bytes")
    assert table.column_names == ["doc_id", "dense"]


# Files


@pytest.mark.parametrize("storage", ["values", "bytes"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_part_read_by_pyarrow_is_what_was_written(tmp_path, storage, dtype):
    table = rows_of(7, storage=storage, dtype=dtype)
    write_part(tmp_path / "part.parquet", table.slice(0, 3), table.slice(3, 1), table.slice(4))
    read = pq.read_table(tmp_path / "part.parquet")
    assert read.schema.equals(table.schema)
    assert read == table
    assert read.schema.field("dense").type == pa.list_(VALUE_TYPES[dtype], 4)


def test_part_read_by_polars_is_what_was_written(tmp_path):
    table = rows_of(7)
    write_part(tmp_path / "part.parquet", table)
    read = pl.read_parquet(tmp_path / "part.parquet")
    assert read.schema["dense"] == pl.Array(pl.Float16, 4)
    assert read.schema["colbert"] == pl.List(pl.Array(pl.Float16, 4))
    assert read.to_dicts() == table.to_pylist()


def test_part_read_by_duckdb_is_what_was_written(tmp_path):
    table = rows_of(7)
    write_part(tmp_path / "part.parquet", table)
    with duckdb.connect() as connection:
        query = connection.sql(
            f"select dense, sparse, colbert, text from '{tmp_path}/part.parquet'"
        )
        rows = [dict(zip(query.columns, row, strict=True)) for row in query.fetchall()]
    for row, expected in zip(rows, table.to_pylist(), strict=True):
        assert list(row["dense"]) == expected["dense"]
        assert [list(token) for token in row["colbert"]] == expected["colbert"]
        assert row["sparse"] == expected["sparse"]
        assert row["text"] == expected["text"]


def test_part_bytes_are_the_values_for_any_reader(tmp_path):
    write_part(tmp_path / "part.parquet", rows_of(7, storage="bytes"))
    expected = rows_of(7)["colbert"].to_pylist()
    raw = pl.read_parquet(tmp_path / "part.parquet")["colbert"].to_list()
    numbers = [[np.frombuffer(token, "<f2").tolist() for token in tokens] for tokens in raw]
    assert numbers == expected


@given(
    rows=st.integers(0, 12),
    starts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=5),
)
def test_part_live_rows_are_those_that_nothing_masks(rows, starts):
    masked = [(first, min(first + n, rows)) for first, n in starts if first < rows]
    part = Part("part.parquet", rows, masked)
    expected = [n for n in range(rows) if not any(first <= n < stop for first, stop in masked)]
    assert [n for first, stop in part.live for n in range(first, stop)] == expected
    assert np.flatnonzero(part.live_mask()).tolist() == expected
    assert part.live_rows == len(expected)


@pytest.mark.parametrize("storage", ["values", "bytes"])
def test_part_vectors_have_no_dictionary(tmp_path, storage):
    file = write_part(tmp_path / "part.parquet", rows_of(50, storage=storage))
    group = file.metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    dictionaries = {c.path_in_schema.split(".")[0] for c in columns if c.has_dictionary_page}
    assert dictionaries == {"doc_id", "title"}
    assert set(VECTOR_COLUMNS) <= {c.path_in_schema.split(".")[0] for c in columns}


def test_part_row_groups_of_small_writes_are_bounded(tmp_path):
    dense = pa.table({"dense": dense_of(1000, 512)})  # 1 MiB
    file = write_part(tmp_path / "part.parquet", *[dense] * 30)
    metadata = file.metadata
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert max(sizes) <= 10 * MIB
    assert 3 <= len(sizes) <= 10
    assert metadata.num_rows == 30_000


def test_part_row_groups_of_one_large_write_are_bounded(tmp_path):
    """A micro-batch of 65,536 tokens is 128 MiB of ColBERT vectors at 1,024 dimensions."""
    colbert = pa.table({"colbert": colbert_of([256] * 128, 512)})  # 32 MiB
    file = write_part(tmp_path / "part.parquet", colbert)
    metadata = file.metadata
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert max(sizes) <= 17 * MIB
    assert file.read() == colbert


def test_part_without_rows_is_a_file_with_the_schema(tmp_path):
    table = rows_of(2)
    file = write_part(tmp_path / "part.parquet", table.slice(0, 0))
    assert file.metadata.num_rows == 0
    assert file.schema_arrow.equals(table.schema)


def test_part_writer_counts_its_rows(tmp_path):
    with PartWriter(tmp_path / "part.parquet", rows_of(1).schema) as writer:
        assert writer.rows == 0
        writer.write(rows_of(5))
        assert writer.rows == 5
        writer.write(rows_of(2))
        assert writer.rows == 7


def test_part_writer_error_inside_is_raised(tmp_path):
    def fail():
        with PartWriter(tmp_path / "part.parquet", rows_of(1).schema) as writer:
            writer.write(rows_of(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_part_writer_other_columns_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="schema"),
        PartWriter(tmp_path / "part.parquet", rows_of(1).schema) as writer,
    ):
        writer.write(rows_of(1).drop_columns(["text"]))


def test_describe_file_counts_and_hashes_the_bytes(tmp_path):
    path = tmp_path / "part.parquet"
    write_part(path, rows_of(3))
    record = describe_file(path, "data/run/part.parquet", 3)
    assert (record.path, record.rows) == ("data/run/part.parquet", 3)
    assert record.bytes == len(path.read_bytes())
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_write_table_puts_what_its_record_says(tmp_path):
    store, table = open_store(str(tmp_path)), rows_of(3)
    record = write_table(store, table, "documents/a.parquet")
    content = store.read("documents/a.parquet")
    assert (record.path, record.rows, record.bytes) == ("documents/a.parquet", 3, len(content))
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert pq.read_table(pa.BufferReader(content)) == table
