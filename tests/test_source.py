"""The source: its units, what may be in them, and what reading them gives."""

from __future__ import annotations

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import source_of

from actors.errors import SourceError, UnreadableUnitError
from pipelines.source import Unit
from pipelines.source.units import FileRange


def table(n):
    return pa.table({c: [f"{c[0]}{i}" for i in range(n)] for c in ("id", "text", "title", "url")})


def write(path, rows=10, *, group=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = table(rows) if isinstance(rows, int) else pa.table(rows)
    pq.write_table(data, path, row_group_size=group or max(data.num_rows, 1))
    return path


def units_of(source):
    return source.units(source.list_files())


def read_all(source, unit=None, start=0, stop=None):
    unit = unit or units_of(source)[0]
    return pa.concat_tables([batch.table for batch in source.read(unit, start, stop)])


# Units


def test_units_are_row_groups_in_the_order_of_the_files(tmp_path):
    write(tmp_path / "a.parquet", 10, group=4)
    write(tmp_path / "b.parquet", table(2).slice(0, 0))
    write(tmp_path / "c.parquet", 3)
    source = source_of(tmp_path)
    listing = source.list_files()
    expected = [(0, 0, 4, 0), (0, 4, 8, 1), (0, 8, 10, 2), (1, 0, 0, 0), (2, 0, 3, 0)]
    assert source.units(listing) == [
        Unit(
            number,
            "parquet",
            (
                FileRange(
                    listing.files[file], "abc"[file] + ".parquet", start, stop, group, stop - start
                ),
            ),
            stop - start,
        )
        for number, (file, start, stop, group) in enumerate(expected)
    ]


def test_units_with_a_limit_are_the_first_documents(tmp_path):
    write(tmp_path / "a.parquet", 10, group=4)
    write(tmp_path / "b.parquet", 3)
    cases = {1: [1], 3: [3], 4: [4], 6: [4, 2], 10: [4, 4, 2], 11: [4, 4, 2, 1], 13: [4, 4, 2, 3]}
    for limit, documents in (cases | {99: [4, 4, 2, 3]}).items():
        source = source_of(tmp_path, limit=limit)
        units = units_of(source)
        assert [unit.documents for unit in units] == documents, limit
        assert [read_all(source, unit).num_rows for unit in units] == documents, limit


def test_units_absent_column_in_the_last_file_is_found(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", table(2).drop_columns(["text"]))
    with pytest.raises(SourceError, match=r"'text' in .*b\.parquet, found id, title, url"):
        units_of(source_of(tmp_path))


NO_TEXTS = {"int64": [1, 2], "binary": [b"a", b"b"], "list<": [["a"], ["b"]]}
NO_IDS = {"double": [0.5, 1.0], "binary": [b"a", b"b"], "bool": [True, False]}


@pytest.mark.parametrize(
    ("key", "values", "wanted"),
    [
        ("text", NO_TEXTS, "strings"),
        ("title", NO_TEXTS, "strings"),
        ("id", NO_IDS | {"list<": [["a"], ["b"]]}, "strings or integers"),
    ],
)
def test_units_column_of_another_type_is_refused_naming_both(tmp_path, key, values, wanted):
    for kind, column in values.items():
        data = {"id": ["a", "b"], "text": ["x", "y"], "title": ["t", "u"]} | {key: column}
        source = source_of(write(tmp_path / "docs.parquet", data), columns={"title": "title"})
        message = rf"source\.columns\.{key}: expected {wanted} in '{key}' of .*, found {kind}"
        with pytest.raises(SourceError, match=message):
            units_of(source)


def test_units_metadata_of_two_types_is_refused_naming_both_files(tmp_path):
    for name, years in (("a", [1999]), ("b", ["1999"])):
        write(tmp_path / f"{name}.parquet", {"id": [name], "text": ["x"], "year": years})
    source = source_of(tmp_path, columns={"metadata": ["year"]})
    with pytest.raises(SourceError, match=r"int64 for 'year' in .*b.parquet.*a.parquet.*string"):
        units_of(source)


def damaged_footer(path):
    content = bytearray(write(path).read_bytes())
    content[-60:-12] = bytes(48)
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"id,text\n1,x\n", b"PAR1" + b"x" * 50 + b"PAR1", None])
def test_units_not_a_parquet_file_is_refused(tmp_path, content):
    path = tmp_path / "docs.parquet"
    path.write_bytes(damaged_footer(path) if content is None else content)
    with pytest.raises(SourceError, match=r"docs\.parquet: expected a Parquet file"):
        units_of(source_of(tmp_path))


def test_units_of_a_file_without_row_groups_are_no_documents(tmp_path):
    with pq.ParquetWriter(tmp_path / "none.parquet", table(1).schema):
        pass
    with pytest.raises(SourceError, match="expected documents"):
        units_of(source_of(tmp_path))


# Reading


def test_read_gives_the_canonical_columns(tmp_path):
    path = write(tmp_path / "a.parquet", 3)
    columns = {"title": "title", "metadata": ["url"]}
    names = ["doc_id", "text", "title", "url"]
    assert read_all(source_of(path, columns=columns)) == table(3).rename_columns(names)
    without_title = read_all(source_of(path))
    assert without_title.schema == pa.schema(dict.fromkeys(names[:3], pa.string()))
    assert without_title["title"].to_pylist() == [None] * 3


def test_read_one_column_may_play_two_roles(tmp_path):
    columns = {"id": "url", "metadata": ["url", "id"]}
    read = read_all(source_of(write(tmp_path / "a.parquet", 2), columns=columns))
    assert read["doc_id"].to_pylist() == read["url"].to_pylist() == ["u0", "u1"]
    assert read["id"].to_pylist() == ["i0", "i1"]


def test_read_range_is_those_documents(tmp_path):
    source = source_of(write(tmp_path / "a.parquet", 600, group=300))
    unit = units_of(source)[1]
    ranges = [(0, 300), (0, 1), (127, 129), (128, 256), (100, 290), (299, 300), (256, 300), (5, 5)]
    for start, stop in ranges:
        batches = source.read(unit, start, stop)
        ids = [doc_id for batch in batches for doc_id in batch.table["doc_id"].to_pylist()]
        assert ids == [f"i{300 + i}" for i in range(start, stop)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, -1, None], pa.int64()), ["7", "-1", None]),
        (pa.array([2**64 - 1, 0, 1], pa.uint64()), ["18446744073709551615", "0", "1"]),
        (pa.array([7, 8, 9], pa.int8()), ["7", "8", "9"]),
        (pa.array(["a", "", None], pa.large_string()), ["a", "", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)
def test_read_ids_become_strings(tmp_path, ids, expected):
    path = write(tmp_path / "a.parquet", {"id": ids, "text": ["x", "y", "z"]})
    assert read_all(source_of(path))["doc_id"] == pa.chunked_array([pa.array(expected, "string")])


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_read_texts_become_strings(tmp_path, kind):
    words = pa.array(["yes", None, "no", "yes"] * 50)
    data = {"id": [str(i) for i in range(200)], "text": words.cast(kind), "title": words.cast(kind)}
    read = read_all(source_of(write(tmp_path / "a.parquet", data), columns={"title": "title"}))
    assert read["text"].combine_chunks() == read["title"].combine_chunks() == words


@pytest.mark.parametrize(
    ("tags", "copied"),
    [
        (pa.array(["yes", None]).cast(pa.string_view()), pa.string()),
        (pa.array([b"yes", None]).cast(pa.binary_view()), pa.binary()),  # views are not filtered
        (pa.array([["x"], None]), pa.list_(pa.string())),
        (pa.array([0, 1], pa.date32()), pa.date32()),
    ],
    ids=["strings", "bytes", "lists", "days"],
)
def test_read_metadata_has_a_type_that_can_be_filtered_with_and_without_documents(
    tmp_path, tags, copied
):
    data = {"id": pa.array([1, 2]), "text": pa.array(["a", "b"], pa.large_string()), "tag": tags}
    source = source_of(write(tmp_path / "a.parquet", data), columns={"metadata": ["tag"]})
    read = read_all(source)
    assert read.schema.field("tag").type == copied
    assert read["tag"].to_pylist() == tags.to_pylist()
    nothing = source.no_documents(units_of(source)[0]).table
    assert (nothing.num_rows, nothing.schema) == (0, read.schema)


def test_read_damaged_unit_raises_and_names_its_row_group(tmp_path):
    path = write(tmp_path / "a.parquet", 20, group=10)
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    source = source_of(path)
    good, bad = units_of(source)
    assert read_all(source, good).num_rows == 10
    with pytest.raises(UnreadableUnitError, match=r"a\.parquet, row group 1: cannot be") as caught:
        read_all(source, bad)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message


# States


def test_state_of_a_file_is_another_once_touched_and_as_it_was_once_restored(tmp_path):
    path = write(tmp_path / "a.parquet")
    source = source_of(path)
    before, units = source.list_files(), units_of(source)
    shutil.copy2(path, tmp_path / "kept")
    write(path, 3)
    shutil.copy2(tmp_path / "kept", path)
    assert read_all(source, units[0]).num_rows == 10
    os.utime(path, (1, 1))
    assert source.list_files() != before
