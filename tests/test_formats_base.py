"""What all formats share: batches, faults, names of compressions, access to stores."""

from __future__ import annotations

import bz2
import gzip

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import http_place

from pipelines.source.formats import base
from pipelines.source.formats.base import (
    Access,
    DocumentBatch,
    SourceRow,
    compression_of,
    derived_id,
    to_batch,
    to_batches,
)
from pipelines.source.listing import describe_file
from pipelines.source.units import FileRange, SourceFile

RECORDS = [
    SourceRow(str(i), f"text {i}", None, ("m",))
    if i % 7
    else SourceRow(None, fault=("bad_record", "why"))
    for i in range(300)
]


def test_to_batches_are_bounded_by_documents():
    batches = list(to_batches(iter(RECORDS), ["m"]))
    assert [batch.table.num_rows for batch in batches] == [128, 128, 44]
    ids = [doc_id for batch in batches for doc_id in batch.table["doc_id"].to_pylist()]
    assert ids == [record.doc_id for record in RECORDS]
    assert [sorted(batch.faults) for batch in batches] == [
        [row for row in range(len(batch.table)) if (row + 128 * n) % 7 == 0]
        for n, batch in enumerate(batches)
    ]


def test_to_batches_are_bounded_by_characters(monkeypatch):
    monkeypatch.setattr(base, "_BATCH_CHARACTERS", 1000)
    records = [
        SourceRow(str(i), "x" * length) for i, length in enumerate([400, 400, 400, 5000, 1, 1])
    ]
    sizes = [batch.table.num_rows for batch in to_batches(records, [])]
    assert sizes == [3, 1, 2]


def test_to_batches_of_nothing_is_nothing():
    assert list(to_batches([], ["m"])) == []


def test_to_batches_gives_what_comes_before_the_damage():
    def damaged():
        yield from RECORDS[:130]
        raise OSError("damaged")

    batches = to_batches(damaged(), ["m"])
    got = [doc_id for _ in range(2) for doc_id in next(batches).table["doc_id"].to_pylist()]
    assert got == [record.doc_id for record in RECORDS[:130]]
    with pytest.raises(OSError, match="damaged"):
        next(batches)


@pytest.mark.parametrize("field", range(4))
def test_to_batch_string_that_is_not_unicode_is_a_fault_of_its_record(field):
    values = ["id", "text", "title", "m"]
    values[field] = "lone \ud800 surrogate"
    good = SourceRow("g", "text", "title", ("m",))
    bad = SourceRow(*values[:3], (values[3],))
    batch = to_batch([good, bad, good], ["m"])
    assert batch.faults == {1: ("bad_encoding", "not valid UTF-8")}
    rows = batch.table.to_pylist()
    assert rows[0] == rows[2] == {"doc_id": "g", "text": "text", "title": "title", "m": "m"}
    doc_id = None if field == 0 else "id"
    assert rows[1] == {"doc_id": doc_id, "text": None, "title": None, "m": None}


def test_to_batch_without_records_has_the_types_of_one_with():
    assert to_batch([], ["m"]).table.schema == to_batch(RECORDS[:3], ["m"]).table.schema
    assert to_batch([], ["m"]).table.column_names == ["doc_id", "text", "title", "m"]


@settings(deadline=None)
@given(low=st.integers(0, 20), n=st.integers(0, 20), faults=st.sets(st.integers(0, 19)))
def test_batch_slice_keeps_the_faults_of_its_rows(low, n, faults):
    table = pa.table({"doc_id": [str(i) for i in range(20)]})
    batch = DocumentBatch(table, {row: ("bad_record", str(row)) for row in faults})
    high = min(low + n, 20)
    part = batch.slice(min(low, high), high)
    ids = part.table["doc_id"].to_pylist()
    assert ids == [str(i) for i in range(min(low, high), high)]
    assert {ids[row]: detail for row, (_, detail) in part.faults.items()} == {
        str(row): str(row) for row in faults if low <= row < high
    }


@pytest.mark.parametrize(
    ("path", "codec"),
    [
        ("a.jsonl.gz", "gzip"),
        ("a.JSONL.GZ", "gzip"),
        ("deep.gz/a.zst", "zstd"),
        ("a.bz2", "bz2"),
        ("deep.gz/a.jsonl", None),
        ("a.gzip", None),
        ("https://host/a.jsonl.gz?download=true&x=/a.txt", "gzip"),
        ("https://host/a.jsonl?name=b.gz", None),
        ("/local/what?.gz", "gzip"),
    ],
)
def test_compression_of_a_name_is_its_last_extension(path, codec):
    assert compression_of(path) == codec


def test_derived_id_is_the_name_and_the_position():
    piece = FileRange(SourceFile("/some/docs/deep/a.csv", 1, ""), "deep/a.csv", 0, 1)
    assert derived_id(piece, 17) == "deep/a.csv:17"


# Access

CONTENT = b"".join(b"%07d\n" % i for i in range(200_000))


@pytest.mark.parametrize("kind", ["http-ranges", "http", "http-bare"])
def test_access_over_http_with_or_without_ranges_gives_the_bytes(tmp_path, kind):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT))
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "empty.gz").write_bytes(b"")
    url, stop = http_place(tmp_path, kind)
    fs = fsspec.filesystem("http")
    access = Access(fs)
    try:
        file = describe_file(fs, f"{url}/a.bin")
        assert file.size == (-1 if kind == "http-bare" else len(CONTENT))
        assert access.gives_ranges(file) == (kind == "http-ranges")
        with access.open(file) as opened:
            opened.seek(-8, 2)
            assert opened.read() == CONTENT[-8:]
            opened.seek(800)
            assert opened.read(8) == b"0000100\n"
        for name, content in (("a.bin", CONTENT), ("a.gz", CONTENT), ("one", b"x")):
            with access.open_stream(describe_file(fs, f"{url}/{name}")) as stream:
                assert stream.readline() == content[:8]
                assert stream.read() == content[8:]
        if kind != "http-bare":
            with access.open_stream(describe_file(fs, f"{url}/empty.gz")) as stream:
                assert stream.read() == b""
    finally:
        stop()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_open_stream_in_small_steps_gives_the_bytes(tmp_path, compress, monkeypatch):
    monkeypatch.setattr(base, "_DECOMPRESSED_BYTES", 3)
    path = tmp_path / ("a.gz" if compress is gzip.compress else "a.bz2")
    path.write_bytes(compress(CONTENT[:5000]))
    access = Access(fsspec.filesystem("file"))
    with access.open_stream(SourceFile(str(path), path.stat().st_size, "")) as stream:
        assert stream.readlines() == CONTENT[:5000].splitlines(keepends=True)
