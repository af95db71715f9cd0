"""Parquet: what the tests of the source leave out: nested columns, names, encodings, places."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import column, documents, ids_before_the_break, place, source_of

from actors.errors import SourceError

__all__ = ["place"]


def as_parquet(table, **how):
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **how)
    return sink.getvalue()


def read(tmp_path, table, *, columns=None, **how):
    (tmp_path / "a.parquet").write_bytes(as_parquet(table, **how))
    return documents(tmp_path / "a.parquet", columns=columns)


def raw(values):
    """A string column of these bytes, on trust."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_parquet_in_every_store_gives_its_documents(place):
    root, options, put = place
    rows = [{"id": f"d{i}", "text": f"text {i}" * 50} for i in range(500)]
    put("a.parquet", as_parquet(pa.Table.from_pylist(rows), row_group_size=200))
    source = source_of(f"{root}/a.parquet", storage_options=options)
    assert [u.documents for u in source.units(source.list_files())] == [200, 200, 100]
    found = documents(f"{root}/a.parquet", storage_options=options)
    assert [(r["doc_id"], r["text"]) for r in found] == [(r["id"], r["text"]) for r in rows]


NESTED = pa.table(
    {
        "doc": [
            {"id": 1, "body": {"text": "x", "lang": "en"}, "tags": ["a"]},
            None,
            {"id": 3, "body": None, "tags": None},
            {"id": None, "body": {"text": "y", "lang": None}, "tags": []},
        ],
        "title": ["t1", "t2", None, "t4"],
    }
)


def test_parquet_dotted_paths_lead_into_structs_and_null_parents_are_null(tmp_path):
    columns = {
        "id": "doc.id",
        "text": "doc.body.text",
        "title": "title",
        "metadata": ["doc.body.lang", "doc.tags"],
    }
    rows = read(tmp_path, NESTED, columns=columns)
    assert [tuple(row.values()) for row in rows] == [
        ("1", "x", "t1", "en", ["a"]),
        (None, None, "t2", None, None),
        ("3", None, None, None, None),
        (None, "y", "t4", None, []),
    ]
    assert list(rows[0])[3:] == ["doc.body.lang", "doc.tags"]


def test_parquet_struct_may_be_metadata_beside_its_own_fields(tmp_path):
    columns = {"id": "title", "text": "doc.body.text", "metadata": ["doc", "doc.body"]}
    rows = read(tmp_path, NESTED, columns=columns)
    assert column(rows, "doc") == NESTED["doc"].to_pylist()
    assert [row["doc.body"] for row in rows] == [
        {"text": "x", "lang": "en"},
        None,
        None,
        {"text": "y", "lang": None},
    ]


def test_parquet_column_with_a_dot_in_its_name_comes_before_a_path(tmp_path):
    table = {"id": ["a"], "a.b": ["literal"], "a": [{"b": "nested"}]}
    assert column(read(tmp_path, table, columns={"text": "a.b"})) == ["literal"]


def test_parquet_column_with_a_dot_in_its_name_needs_no_struct(tmp_path):
    table = {"x.id": ["a", None], "x.text": ["t", "u"], "x": [1, 2]}
    rows = read(tmp_path, table, columns={"id": "x.id", "text": "x.text", "metadata": ["x"]})
    assert [(row["doc_id"], row["text"], row["x"]) for row in rows] == [
        ("a", "t", 1),
        (None, "u", 2),
    ]


def test_parquet_column_named_like_the_beginning_of_another_is_itself(tmp_path):
    table = {"id": ["a"], "text": ["t"], "text_more": ["u"], "id2": [5]}
    assert read(tmp_path, table) == [{"doc_id": "a", "text": "t", "title": None}]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("doc.body.texts", r"a column 'doc.body.texts' in .*a\.parquet, found doc, title"),
        ("doc.body", r"expected strings in 'doc.body' of .*, found struct"),
        ("doc.tags.element", r"a column 'doc.tags.element'"),
        ("title.text", r"a column 'title.text'"),
    ],
)
def test_parquet_dotted_path_that_leads_nowhere_is_refused(tmp_path, path, message):
    with pytest.raises(SourceError, match=message):
        read(tmp_path, NESTED, columns={"id": "title", "text": path})


def test_parquet_ids_from_place_are_row_numbers_in_the_file(tmp_path):
    rows = read(tmp_path, {"text": ["x"] * 300}, columns={"id": None}, row_group_size=130)
    assert column(rows, "doc_id") == [f"a.parquet:{i}" for i in range(300)]


def test_parquet_absent_id_column_says_what_there_is_instead(tmp_path):
    with pytest.raises(SourceError, match=r"source\.columns\.id: ") as caught:
        read(tmp_path, {"text": ["x"]})
    assert "source.columns.id=null" in caught.value.remedy


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_undecodable_bytes_are_a_fault_where_they_are_used(tmp_path, dictionary):
    texts = raw([b"x", b"caf\xe9", b"x", b"x", None] * 60)
    table = {
        "id": raw([b"%d" % i if i % 5 != 2 else b"\xff%d" % i for i in range(300)]),
        "text": texts,
        "title": texts,
        "unused": raw([b"\xff"] * 300),
    }
    rows = read(tmp_path, table, use_dictionary=dictionary)
    assert [row.get("fault") for row in rows] == [None, *["bad_encoding"] * 2, None, None] * 60
    assert [row["doc_id"] for row in rows[:5]] == ["0", "1", None, "3", "4"]
    assert [row["text"] for row in rows[:5]] == ["x", None, "x", "x", None]


def test_parquet_undecodable_metadata_is_a_fault(tmp_path):
    table = {"id": ["a", "b", "c"], "text": ["x", "y", "z"], "m": raw([b"\xff", None, b"m"])}
    rows = read(tmp_path, table, columns={"metadata": ["m"]})
    assert [(row["m"], row.get("fault")) for row in rows] == [
        (None, "bad_encoding"),
        (None, None),
        ("m", None),
    ]


def test_parquet_undecodable_nested_metadata_is_a_fault(tmp_path):
    lists = pa.ListArray.from_arrays([0, 1, 2], raw([b"\xff", b"m"]))
    structs = pa.StructArray.from_arrays([raw([b"m", b"\xff"])], ["s"])
    table = {"id": ["a", "b"], "text": ["x", "y"], "l": lists, "o": structs}
    assert [r.get("fault") for r in read(tmp_path, table, columns={"metadata": ["l"]})] == [
        "bad_encoding",
        None,
    ]
    rows = read(tmp_path, table, columns={"metadata": ["l", "o"]})
    assert [row.get("fault") for row in rows] == ["bad_encoding"] * 2


def test_parquet_control_characters_are_text(tmp_path):
    text = "x\0\a\x1b[0m\x85\u2028\ufffe\U0010ffff"
    assert column(read(tmp_path, {"id": ["a"], "text": [text]})) == [text]


def test_parquet_column_of_nothing_but_nulls_is_read(tmp_path):
    rows = read(tmp_path, {"id": ["a"], "text": pa.nulls(1)})
    assert rows == [{"doc_id": "a", "text": None, "title": None}]


def test_parquet_files_may_differ_in_columns_that_are_not_used(tmp_path):
    (tmp_path / "a.parquet").write_bytes(as_parquet({"id": ["a"], "text": ["x"], "n": [1]}))
    (tmp_path / "b.pq").write_bytes(as_parquet({"n": ["1"], "text": ["y"], "id": [2]}))
    assert column(documents(tmp_path), "doc_id") == ["a", "2"]


@pytest.mark.parametrize("compression", ["snappy", "gzip", "brotli", "zstd", "lz4", "none"])
def test_parquet_of_every_codec_is_read(tmp_path, compression):
    rows = read(tmp_path, {"id": ["a"], "text": ["x" * 1000]}, compression=compression)
    assert column(rows) == ["x" * 1000]


@pytest.mark.parametrize("column_name", ["id", "text"])
def test_parquet_damage_that_only_a_checksum_shows_is_an_unreadable_unit(tmp_path, column_name):
    texts = {"id": [f"doc-{i}" for i in range(20)], "text": [f"text-{i}" for i in range(20)]}
    good = as_parquet(texts, compression="none", use_dictionary=False, write_page_checksum=True)
    needle = {"id": b"doc-7", "text": b"text-7"}[column_name]
    at = good.index(needle)
    (tmp_path / "a.parquet").write_bytes(good[:at] + b"X" + good[at + 1 :])
    source = source_of(tmp_path)
    [unit] = source.units(source.list_files())
    got, message = ids_before_the_break(source, unit)
    assert got == []
    assert "a.parquet, row group 0: cannot be read" in message


@pytest.mark.parametrize("name", ["id", "text"])
def test_parquet_with_two_columns_of_a_configured_name_is_refused(tmp_path, name):
    table = pa.table([["a"], ["x"], ["y"]], names=["id", "text", name])
    with pytest.raises(SourceError, match=f"expected one column '{name}', found several"):
        read(tmp_path, table)
