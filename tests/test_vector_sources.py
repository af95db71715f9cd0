"""Where the vectors of a slice come from: put together, they are those that encoding all gives."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.encoded import EncodedBatch
from pipelines.encode import reuse as vector_sources
from pipelines.encode.reuse import VectorSources
from pipelines.index.parts import side_by_side, stored_vectors
from pipelines.index.schemas import HASH
from pipelines.store import open_store

DIM = 4
TYPES = pa.schema(
    [
        ("dense", pa.list_(pa.float16(), DIM)),
        (
            "sparse",
            pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]),
        ),
        ("colbert", pa.list_(pa.list_(pa.float16(), DIM))),
    ]
)


def hash_of(content):
    return hashlib.blake2b(str(content).encode(), digest_size=16).digest()


def hashes_of(contents):
    return pa.chunked_array([pa.array(map(hash_of, contents), HASH)], HASH)


def vectors_of(contents):
    """What an encoder gives for passages: of a content's own, of several lengths."""
    rows = [
        {
            "dense": np.full(DIM, c, np.float16),
            "sparse": {"indices": list(range(c % 3)), "values": [c + 0.5] * (c % 3)},
            "colbert": [np.full(DIM, c + n, np.float16) for n in range(c % 4)],
        }
        for c in contents
    ]
    return pa.Table.from_pylist(rows, TYPES)


def write_part(store, path, contents, storage, group=3):
    rows = side_by_side(
        pa.table({"passage_hash": hashes_of(contents)}),
        stored_vectors(vectors_of(contents), storage),
    )
    pq.write_table(rows, store.path(path), row_group_size=group)


def encoded(contents, size):
    """Micro-batches of `size`."""
    for start in range(0, len(contents), size):
        stop = min(start + size, len(contents))
        yield EncodedBatch(start, stop, vectors_of(contents[start:stop]), {})


def put_together(sources, contents, size):
    asked = [contents[p] for p in sources.to_encode]
    batches = list(sources.put_together(encoded(asked, size)))
    ends = [0, *(batch.stop for batch in batches)]
    assert [batch.start for batch in batches] == ends[:-1]
    assert ends[-1] == len(contents)
    for batch in batches:
        assert batch.columns.num_rows == batch.stop - batch.start
    return pa.concat_tables(batch.columns for batch in batches)


small = st.lists(st.integers(0, 6), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("index")
    (path / "data").mkdir()
    return path


@settings(max_examples=150, deadline=None)
@given(
    contents=st.lists(st.integers(0, 9), min_size=1, max_size=25),
    olds=st.lists(small.filter(bool), max_size=2),
    size=st.integers(1, 6),
    window=st.sampled_from([1, 200, 1 << 20]),
    storage=st.sampled_from(["values", "bytes"]),
)
def test_vectors_of_any_slice_are_those_of_encoding_all_of_it(
    folder, contents, olds, size, window, storage
):
    store = open_store(str(folder))
    edited = []
    for number, old in enumerate(olds):
        write_part(store, f"data/{number}.parquet", [99, *old, 98], storage)
        edited.append((f"data/{number}.parquet", 1, len(old)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_sources, "_WINDOW_BYTES", window)
        sources = VectorSources(store, hashes_of(contents), edited, TYPES.empty_table(), storage)
        found = put_together(sources, contents, size)
    expected = stored_vectors(vectors_of(contents), storage)
    assert found.to_pylist() == expected.to_pylist()
    assert found.schema == expected.schema
    held = {c for old in olds for c in old}
    assert len(sources.to_encode) == len(set(contents) - held)


def test_vectors_of_rows_beside_an_edited_document_are_not_taken(folder):
    """They are some other document's, which may be gone by now."""
    store = open_store(str(folder))
    write_part(store, "data/x.parquet", [1, 2, 3, 4, 5], "values")
    edited = [("data/x.parquet", 1, 2)]
    sources = VectorSources(store, hashes_of([1, 2, 3, 4]), edited, TYPES.empty_table(), "values")
    assert sources.to_encode.tolist() == [0, 3]


def test_vectors_of_equal_passages_that_fail_fail_all(folder):
    contents = [1, 2, 1, 3, 2]
    sources = VectorSources(
        open_store(str(folder)), hashes_of(contents), [], TYPES.empty_table(), "values"
    )
    assert sources.to_encode.tolist() == [0, 1, 3]
    batches = [
        EncodedBatch(0, 2, vectors_of([1, 2]), {1: "NaN"}),
        EncodedBatch(2, 3, vectors_of([3]), {}),
    ]
    failures = {}
    for batch in sources.put_together(batches):
        failures |= batch.failures
    assert failures == {1: "NaN", 4: "NaN"}


def test_vectors_of_passages_that_differ_are_passed_on_as_they_come(folder):
    sources = VectorSources(
        open_store(str(folder)), hashes_of([1, 2, 3]), [], TYPES.empty_table(), "values"
    )
    batch = EncodedBatch(0, 3, vectors_of([1, 2, 3]), {})
    (found,) = sources.put_together([batch])
    assert found.columns is batch.columns
