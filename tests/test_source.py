"""The source: which files, which units, and what reading them gives."""

from __future__ import annotations

import os
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import SourceChangedError, SourceError, UnreadableUnitError
from pipelines.config.sections import SourceConfig
from pipelines.source import Source, Unit
from pipelines.source.units import FileRange, Listing, SourceFile


def table(n, first=0):
    numbers = range(first, first + n)
    return pa.table(
        {
            "id": [f"d{i}" for i in numbers],
            "text": [f"text {i}" for i in numbers],
            "title": [f"title {i}" for i in numbers],
            "url": [f"u/{i}" for i in numbers],
        }
    )


def write(path, rows=10, *, group=None, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = rows if isinstance(rows, pa.Table) else table(rows, first)
    pq.write_table(data, path, row_group_size=group or max(data.num_rows, 1))
    return path


def source_of(uri, *, columns=None, **more):
    return Source(SourceConfig(uri=str(uri), columns=columns or {}, **more))


def read_all(source, unit, start=0, stop=None):
    return pa.concat_tables([batch.table for batch in source.read(unit, start, stop)])


def only_unit(source):
    [unit] = source.units(source.list_files())
    return unit


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder for documents: (its uri, storage options, a function that copies a file there)."""
    if request.param == "local":
        root, options = str(tmp_path / "docs"), {}
    else:
        bucket, options = request.getfixturevalue("s3_bucket")
        root = f"{bucket}/some/docs"
    filesystem = fsspec.core.url_to_fs(root, **options)[0]

    def put(name, rows=10, **how):
        local = write(tmp_path / "staging" / "file", rows, **how)
        filesystem.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(local), f"{root}/{name}")

    return root, options, put


# Listing


def test_list_files_of_a_folder_is_sorted_and_without_hidden_or_other_files(place):
    root, options, put = place
    for name in (
        "b.parquet",
        "a.parquet",
        "deep/er/c.parquet",
        "_d.parquet",
        ".e.parquet",
        "f.txt",
    ):
        put(name, 1)
    files = source_of(root, storage_options=options).list_files().files
    names = [file.path.rpartition("some/docs/" if options else "/docs/")[2] for file in files]
    assert names == ["a.parquet", "b.parquet", "deep/er/c.parquet"]
    assert all(file.size > 100 and file.etag for file in files)


def test_list_files_of_a_glob_takes_any_extension(place):
    root, options, put = place
    for name in ("2.pq", "1.pq", "_3.pq", "4.parquet", "deep/5.pq"):
        put(name, 1)
    files = source_of(f"{root}/*.pq", storage_options=options).list_files().files
    assert [file.path.rpartition("/")[2] for file in files] == ["1.pq", "2.pq"]


def test_list_files_of_one_file_takes_any_name(place):
    root, options, put = place
    put("corpus.data", 1)
    put("other.parquet", 1)
    [file] = source_of(f"{root}/corpus.data", storage_options=options).list_files().files
    assert file.path.endswith("docs/corpus.data")


def test_list_files_sees_what_was_added_since(place):
    root, options, put = place
    put("a.parquet", 1)
    source = source_of(root, storage_options=options)
    assert len(source.list_files().files) == 1
    put("b.parquet", 1)
    assert len(source.list_files().files) == 2


@pytest.mark.parametrize("uri", ["absent", "absent/x.parquet", "absent/*.parquet", "docs/*.csv"])
def test_list_files_nothing_there_names_the_location(place, uri):
    root, options, put = place
    put("a.parquet", 1)
    uri = root.removesuffix("docs") + uri
    with pytest.raises(SourceError, match=r"source\.uri: expected .*, found ") as caught:
        source_of(uri, storage_options=options).list_files()
    assert uri in caught.value.message


def test_list_files_folder_without_parquet_is_refused(place):
    root, options, put = place
    put("notes.bin.gz", 1)
    put("_SUCCESS.parquet", 1)
    with pytest.raises(SourceError, match=r"expected files of a known format .*notes\.bin"):
        source_of(root, storage_options=options).list_files()


def test_list_files_relative_path_is_of_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path / "docs/a.parquet")
    monkeypatch.chdir(tmp_path)
    source = source_of("docs")
    monkeypatch.chdir("/")
    assert [file.path for file in source.list_files().files] == [str(tmp_path / "docs/a.parquet")]


@pytest.mark.parametrize("uri", ["nonsense://bucket/x", "nonsense://"])
def test_source_unknown_protocol_is_refused(uri):
    with pytest.raises(SourceError, match=r"source\.uri: cannot read nonsense://"):
        source_of(uri)


# Units


def shape(units):
    return [
        (unit.number, piece.file.path[-9:], piece.row_group, unit.documents)
        for unit in units
        for piece in unit.pieces
    ]


def test_units_are_row_groups_in_the_order_of_the_files(place):
    root, options, put = place
    put("a.parquet", 10, group=4)
    put("b.parquet", 3)
    source = source_of(root, storage_options=options)
    assert shape(source.units(source.list_files())) == [
        (0, "a.parquet", 0, 4),
        (1, "a.parquet", 1, 4),
        (2, "a.parquet", 2, 2),
        (3, "b.parquet", 0, 3),
    ]


@pytest.mark.parametrize(
    ("limit", "documents"),
    [
        (1, [1]),
        (3, [3]),
        (4, [4]),
        (6, [4, 2]),
        (10, [4, 4, 2]),
        (11, [4, 4, 2, 1]),
        (13, [4, 4, 2, 3]),
        (99, [4, 4, 2, 3]),
    ],
)
def test_units_with_a_limit_are_the_first_documents(tmp_path, limit, documents):
    write(tmp_path / "a.parquet", 10, group=4)
    write(tmp_path / "b.parquet", 3)
    source = source_of(tmp_path, limit=limit)
    assert [unit.documents for unit in source.units(source.list_files())] == documents


def test_units_empty_row_group_is_a_unit_without_documents(tmp_path):
    write(tmp_path / "a.parquet", table(2).slice(0, 0))
    write(tmp_path / "b.parquet", 2)
    source = source_of(tmp_path)
    units = source.units(source.list_files())
    assert [unit.documents for unit in units] == [0, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": "key"}, r"source\.columns\.id: expected a column 'key' in .*docs\.parquet"),
        ({"text": "body"}, r"source\.columns\.text: expected a column 'body'"),
        ({"title": "head"}, r"source\.columns\.title: expected a column 'head'"),
        (
            {"metadata": ["url", "lang"]},
            r"source\.columns\.metadata\[1\]: expected a column 'lang'",
        ),
    ],
)
def test_units_absent_column_names_those_present(tmp_path, columns, message):
    source = source_of(write(tmp_path / "docs.parquet"), columns=columns)
    with pytest.raises(SourceError, match=message) as caught:
        source.units(source.list_files())
    assert caught.value.message.endswith("found id, text, title, url.")


def test_units_absent_column_in_the_last_file_is_found(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", table(2).drop_columns(["text"]))
    source = source_of(tmp_path)
    with pytest.raises(SourceError, match=r"'text' in .*b\.parquet, found id, title, url"):
        source.units(source.list_files())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([["a"], ["b"]]), "list<"),
    ],
)
@pytest.mark.parametrize("key", ["text", "title"])
def test_units_text_that_is_no_text_is_refused(tmp_path, key, values, kind):
    data = {"id": ["a", "b"], "text": ["x", "y"], "title": ["t", "u"]} | {key: values}
    source = source_of(write(tmp_path / "docs.parquet", pa.table(data)), columns={"title": "title"})
    message = rf"source\.columns\.{key}: expected strings in '{key}' of .*, found {kind}"
    with pytest.raises(SourceError, match=message):
        source.units(source.list_files())


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (pa.array([0.5, 1.0]), "double"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([True, False]), "bool"),
        (pa.array([["a"], ["b"]]), "list<"),
    ],
)
def test_units_id_that_is_neither_string_nor_integer_is_refused(tmp_path, ids, kind):
    data = pa.table({"id": ids, "text": ["x", "y"]})
    source = source_of(write(tmp_path / "docs.parquet", data))
    message = rf"source\.columns\.id: expected strings or integers in 'id' of .*, found {kind}"
    with pytest.raises(SourceError, match=message):
        source.units(source.list_files())


@pytest.mark.parametrize("content", [b"", b"id,text\n1,hello\n", b"PAR1" + b"x" * 50 + b"PAR1"])
def test_units_not_a_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "docs.parquet").write_bytes(content)
    source = source_of(tmp_path)
    with pytest.raises(SourceError, match=r"docs\.parquet: expected a Parquet file"):
        source.units(source.list_files())


# Reading


def test_read_gives_the_canonical_columns(place):
    root, options, put = place
    put("a.parquet", 3)
    columns = {"title": "title", "metadata": ["url"]}
    source = source_of(root, columns=columns, storage_options=options)
    assert read_all(source, only_unit(source)) == table(3).rename_columns(
        ["doc_id", "text", "title", "url"]
    )


def test_read_without_a_title_column_gives_nulls(tmp_path):
    source = source_of(write(tmp_path / "a.parquet", 2))
    read = read_all(source, only_unit(source))
    assert read.schema == pa.schema(dict.fromkeys(["doc_id", "text", "title"], pa.string()))
    assert read["title"].to_pylist() == [None, None]


def test_read_one_column_may_play_two_roles(tmp_path):
    source = source_of(
        write(tmp_path / "a.parquet", 2), columns={"id": "url", "metadata": ["url", "id"]}
    )
    read = read_all(source, only_unit(source))
    assert read["doc_id"].to_pylist() == read["url"].to_pylist() == ["u/0", "u/1"]
    assert read["id"].to_pylist() == ["d0", "d1"]


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 300), (0, 1), (127, 129), (128, 256), (100, 290), (299, 300), (256, 300), (5, 5)],
)
def test_read_range_is_those_documents(tmp_path, start, stop):
    path = write(tmp_path / "a.parquet", 600, group=300)
    source = source_of(path)
    unit = source.units(source.list_files())[1]
    ids = [
        doc_id
        for part in source.read(unit, start, stop)
        for doc_id in part.table["doc_id"].to_pylist()
    ]
    assert ids == [f"d{300 + i}" for i in range(start, stop)]


def test_read_in_pieces_equals_read_at_once(tmp_path):
    source = source_of(write(tmp_path / "a.parquet", 300))
    unit = only_unit(source)
    pieces = [read_all(source, unit, a, b) for a, b in ((0, 77), (77, 140), (140, 300))]
    assert pa.concat_tables(pieces) == read_all(source, unit)


def test_read_unit_cut_by_a_limit_reads_no_further(tmp_path):
    source = source_of(write(tmp_path / "a.parquet", 10), limit=4)
    assert read_all(source, only_unit(source))["doc_id"].to_pylist() == ["d0", "d1", "d2", "d3"]


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
    path = write(tmp_path / "a.parquet", pa.table({"id": ids, "text": ["x", "y", "z"]}))
    source = source_of(path)
    read = read_all(source, only_unit(source))
    assert read["doc_id"].type == pa.string()
    assert read["doc_id"].to_pylist() == expected


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_read_texts_become_strings(tmp_path, kind):
    words = pa.array(["yes", None, "no", "yes"] * 50).cast(kind)
    data = pa.table({"id": [str(i) for i in range(200)], "text": words, "title": words})
    source = source_of(write(tmp_path / "a.parquet", data), columns={"title": "title"})
    read = read_all(source, only_unit(source))
    assert read.schema.field("text").type == read.schema.field("title").type == pa.string()
    assert read["text"].to_pylist() == read["title"].to_pylist() == ["yes", None, "no", "yes"] * 50


@pytest.mark.parametrize(
    ("kind", "copied"), [(pa.string_view(), pa.string()), (pa.binary_view(), pa.binary())], ids=str
)
def test_read_metadata_of_views_become_what_can_be_filtered(tmp_path, kind, copied):
    words = pa.array(["yes", None, "no"]).cast(copied)
    data = pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"], "tag": words.cast(kind)})
    source = source_of(write(tmp_path / "a.parquet", data), columns={"metadata": ["tag"]})
    read = read_all(source, only_unit(source))
    assert read["tag"].combine_chunks() == words
    assert source.no_documents(only_unit(source)).table.schema == read.schema


def test_no_documents_has_the_types_of_read(tmp_path):
    data = pa.table(
        {
            "id": pa.array([1, 2]),
            "text": pa.array(["a", "b"], pa.large_string()),
            "tags": pa.array([["x"], None]),
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    source = source_of(write(tmp_path / "a.parquet", data), columns={"metadata": ["tags", "day"]})
    unit = only_unit(source)
    nothing = source.no_documents(unit).table
    assert nothing.num_rows == 0
    assert nothing.schema == read_all(source, unit).schema


# Changes


def rewrite(put):
    put("a.parquet", 11)


def same_size(put):
    put("a.parquet", 10, first=10)  # as many bytes: the same number of digits


@pytest.mark.parametrize("change", [rewrite, same_size])
def test_read_changed_file_raises_and_names_the_remedy(place, change):
    root, options, put = place
    put("a.parquet", 10, first=20)
    source = source_of(root, storage_options=options)
    unit = only_unit(source)
    assert read_all(source, unit).num_rows == 10
    change(put)
    with pytest.raises(SourceChangedError, match=r"a\.parquet: changed since") as caught:
        read_all(source, unit)
    assert "--fresh" in caught.value.remedy
    assert caught.value.exit_code == 1


def test_read_removed_file_raises(place):
    root, options, put = place
    put("a.parquet")
    source = source_of(root, storage_options=options)
    unit = only_unit(source)
    filesystem = fsspec.core.url_to_fs(root, **options)[0]
    filesystem.rm_file(unit.pieces[0].file.path)
    with pytest.raises(SourceChangedError, match=r"a\.parquet: expected the file the plan pinned"):
        read_all(source, unit)


def test_read_file_restored_to_its_state_is_read(tmp_path):
    path = write(tmp_path / "a.parquet")
    source = source_of(path)
    unit = only_unit(source)
    shutil.copy2(path, tmp_path / "kept")
    write(path, 3)
    shutil.copy2(tmp_path / "kept", path)
    assert read_all(source, unit).num_rows == 10


def test_list_files_touched_file_is_another_state(tmp_path):
    path = write(tmp_path / "a.parquet")
    source = source_of(path)
    before = source.list_files()
    os.utime(path, (1, 1))
    assert source.list_files() != before


FILES = [SourceFile("b/1", 10, "e1"), SourceFile("b/2", 20, "e2")]


@pytest.mark.parametrize(
    "other",
    [
        [FILES[0], SourceFile("b/3", 20, "e2")],
        [FILES[0], SourceFile("b/2", 21, "e2")],
        [FILES[0], SourceFile("b/2", 20, "e3")],
        [SourceFile("b/1", 1, "0e1"), FILES[1]],
        FILES[:1],
        [*FILES, SourceFile("b/3", 0, "")],
        [],
    ],
)
def test_listing_hash_of_another_state_differs(other):
    assert Listing(other, "parquet", "").hash != Listing(FILES, "parquet", "").hash


def test_listing_hash_of_an_equal_state_is_equal():
    files = [SourceFile("b/1", 10, "e1"), SourceFile("b/2", 20, "e2")]
    assert Listing(files, "parquet", "").hash == Listing(FILES, "parquet", "").hash


def test_unit_files_of_one_file_are_one(tmp_path):
    """Units are compared by the state of their file."""
    write(tmp_path / "a.parquet", 10, group=5)
    source = source_of(tmp_path)
    first, second = source.units(source.list_files())
    file = second.pieces[0].file
    assert first == Unit(0, "parquet", (FileRange(file, "a.parquet", 0, 5, 0, 5),), 5)
    assert second == Unit(1, "parquet", (FileRange(file, "a.parquet", 5, 10, 1, 5),), 5)


def test_read_damaged_unit_raises_and_names_its_row_group(tmp_path):
    path = write(tmp_path / "a.parquet", 20, group=10)
    state = path.stat()
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # damaged before it was listed
    source = source_of(path)
    good, bad = source.units(source.list_files())
    assert read_all(source, good).num_rows == 10
    with pytest.raises(UnreadableUnitError, match=r"a\.parquet, row group 1: cannot be") as caught:
        read_all(source, bad)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message


def test_units_metadata_of_two_types_is_refused_naming_both_files(tmp_path):
    for name, years in (("a", [1999]), ("b", ["1999"])):
        table = pa.table({"id": [name], "text": ["x"], "year": years})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    config = SourceConfig(uri=str(tmp_path), columns={"metadata": ["year"]})
    source = Source(config)
    with pytest.raises(SourceError, match=r"int64 for 'year' in .*b.parquet.*a.parquet.*string"):
        source.units(source.list_files())


def test_units_of_a_file_without_row_groups_are_no_documents(tmp_path):
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "none.parquet", schema):
        pass
    source = Source(SourceConfig(uri=str(tmp_path)))
    with pytest.raises(SourceError, match="expected documents"):
        source.units(source.list_files())


def test_list_files_follows_local_links_to_files_and_folders(tmp_path):
    write(tmp_path / "elsewhere/x.parquet")
    write(tmp_path / "elsewhere/deep/y.parquet")
    docs = tmp_path / "docs"
    write(docs / "z.parquet")
    (docs / "x.parquet").symlink_to(tmp_path / "elsewhere/x.parquet")
    (docs / "linked").symlink_to(tmp_path / "elsewhere/deep")
    (docs / "loop").symlink_to(docs)
    names = [file.path.removeprefix(f"{docs}/") for file in source_of(docs).list_files().files]
    assert names == ["linked/y.parquet", "x.parquet", "z.parquet"]
    found = source_of(docs / "*.parquet").list_files().files
    assert [file.path.rpartition("/")[2] for file in found] == ["x.parquet", "z.parquet"]
    target = (tmp_path / "elsewhere/x.parquet").stat()
    assert (found[0].size, found[0].etag) == (target.st_size, str(target.st_mtime_ns))


def test_list_files_name_with_brackets_is_that_file(tmp_path):
    write(tmp_path / "wiki[1].parquet")
    [file] = source_of(tmp_path / "wiki[1].parquet").list_files().files
    assert file.path.endswith("wiki[1].parquet")


def test_units_of_a_damaged_footer_name_the_file(tmp_path):
    write(tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[-60:-12] = bytes(48)
    (tmp_path / "a.parquet").write_bytes(data)
    source = source_of(tmp_path)
    with pytest.raises(SourceError, match=r"a\.parquet: expected a Parquet file"):
        source.units(source.list_files())


def test_list_files_of_an_unreachable_store_is_one_line(monkeypatch):
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with pytest.raises(SourceError, match="no connection"):
        Source(SourceConfig(uri="s3://bucket/docs", storage_options=options)).list_files()
