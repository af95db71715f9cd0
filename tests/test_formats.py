"""What only one format can do, and what all share: batches, access to stores.

Damage, and what is the same in all formats, is in `test_any_format.py`.
"""

from __future__ import annotations

import csv
import errno
import html
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import (
    COMPRESS,
    column,
    documents,
    fill,
    ids_before_the_break,
    outcomes,
    place,
    source_of,
)
from test_any_format import as_jsonl, as_parquet

from actors.errors import SourceError
from pipelines.source.formats import base, line_files
from pipelines.source.formats.base import DocumentBatch, SourceRow, compression_of, to_batches

__all__ = ["place"]


def read(folder, name, content, **how):
    """The documents of a file of this content."""
    return documents(fill(Path(folder), {name: content}) / name, **how)


# Batches


def test_to_batches_are_bounded_by_characters(monkeypatch):
    monkeypatch.setattr(base, "_BATCH_CHARACTERS", 1000)
    lengths = [400, 400, 400, 5000, 1, 1]
    records = [SourceRow(str(i), "x" * length) for i, length in enumerate(lengths)]
    assert [batch.table.num_rows for batch in to_batches(records, [])] == [3, 1, 2]


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


def test_compression_of_a_name_is_its_last_extension():
    cases = {"a.jsonl.gz": "gzip", "a.JSONL.GZ": "gzip", "deep.gz/a.zst": "zstd", "a.bz2": "bz2"}
    cases |= {"deep.gz/a.jsonl": None, "a.gzip": None, "/local/what?.gz": "gzip"}
    cases["https://host/a.jsonl.gz?download=true&x=/a.txt"] = "gzip"
    cases["https://host/a.jsonl?name=b.gz"] = None
    assert {path: compression_of(path) for path in cases} == cases


# CSV


def as_csv(rows, **how):
    file = io.StringIO(newline="")
    csv.writer(file, **how).writerows(rows)
    return file.getvalue().encode()


@settings(deadline=None, max_examples=150)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
@example(texts=['"', '""', '","', "\n", "\r", "\r\n", "\0"], delimiter=",", end="\n", quoting=0)
def test_csv_of_any_text_round_trips(texts, delimiter, end, quoting):
    rows = [["id", "text", "m"], *([str(i), text, text] for i, text in enumerate(texts))]
    how = {"delimiter": delimiter, "lineterminator": end, "quoting": quoting}
    if quoting == csv.QUOTE_MINIMAL:  # csv.writer does not quote a carriage return before "\n"
        rows = [[field.replace("\r", " ") for field in row] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        content = as_csv(rows, **how)
        columns = {"metadata": ["m"]}
        found = read(folder, "a.csv", content, columns=columns, csv={"delimiter": delimiter})
    assert [[row["doc_id"], row["text"], row["m"]] for row in found] == rows[1:]
    assert not any("fault" in row for row in found)


def test_csv_with_other_quotes_is_read_as_configured(tmp_path):
    rows = read(tmp_path, "a.tab", 'id\ttext\na\t"x\nb\ty"\n', csv={"quote": None})
    assert outcomes(rows) == [("a", '"x'), ("b", 'y"')]
    how = {"delimiter": ";", "quote": "'"}
    rows = read(tmp_path, "a.csv", "id;text\na;'x;'' \"y\"'\n", csv=how)
    assert outcomes(rows) == [("a", 'x;\' "y"')]


def test_csv_field_of_a_whole_book_is_one_document(tmp_path):
    """csv's own limit is 131,072 characters."""
    book = "a word, " * 100_000
    rows = read(tmp_path, "a.csv", as_csv([["id", "text"], ["a", book], ["b", "y"]]))
    assert column(rows) == [book, "y"]


def test_csv_many_quotes_never_closed_lose_their_own_records_only(tmp_path):
    lines = [f'{i},"open {i}' if i % 3 == 0 else f"{i},x" for i in range(300)]
    rows = read(tmp_path, "a.csv", "\n".join(["id,text", *lines]) + "\n")
    expected = [(None, "bad_record") if i % 3 == 0 else (str(i), "x") for i in range(300)]
    assert outcomes(rows) == expected


def test_csv_quote_that_is_never_closed_is_looked_for_in_a_bounded_part_of_the_file(tmp_path):
    limit = csv.field_size_limit(1000)
    try:
        closed = "".join(f"{i},x\n" for i in range(1, 999))
        rows = read(tmp_path, "a.csv", f'id,text\n0,"open\n{closed}')
    finally:
        csv.field_size_limit(limit)
    assert [row.get("fault") for row in rows] == ["bad_record"] + [None] * 998
    assert "limit" in rows[0]["detail"]
    assert limit > 100_000_000


def test_csv_header_is_used_where_it_can_be(tmp_path):
    for content, message in (
        ("id,text,text,x,x\na,b,c,d,e\n", r"a\.csv: expected one column 'text', found several"),
        ('id,"text\na,x\n', r"a\.csv: expected a header line"),
    ):
        with pytest.raises(SourceError, match=message):
            read(tmp_path, "a.csv", content)
    assert outcomes(read(tmp_path, "a.csv", "id,text,x,x\na,b,c,d\n")) == [("a", "b")]
    assert column(read(tmp_path, "a.csv", "text\nx\n\ny\n", columns={"id": None})) == ["x", "y"]


# Lines


ROWS = [{"id": f"d{i}", "text": f"text {i}\nof two lines", "title": f"t{i}"} for i in range(300)]


def test_jsonl_of_several_ranges_in_every_store_gives_each_document_once(
    place, request, monkeypatch
):
    monkeypatch.setattr(line_files, "RANGE_BYTES", 1000)
    root, options, put = place
    put("a.jsonl", as_jsonl(ROWS))
    source = source_of(f"{root}/a.jsonl", storage_options=options)
    units = source.units(source.list_files())
    # A server that does not give a part of a file, or does not say how long it is, is read at once.
    gives_ranges = request.node.callspec.params["place"] in ("local", "s3", "http-ranges")
    assert len(units) == (-(-len(as_jsonl(ROWS)) // 1000) if gives_ranges else 1)
    rows = documents(f"{root}/a.jsonl", storage_options=options)
    assert column(rows, "doc_id") == [row["id"] for row in ROWS]


def test_jsonl_concatenated_gzip_members_are_one_file(tmp_path):
    content = COMPRESS[".gz"](as_jsonl(ROWS[:100])) + COMPRESS[".gz"](as_jsonl(ROWS[100:]))
    rows = read(tmp_path, "A.JSONL.GZ", content)  # also: capitals
    assert column(rows, "doc_id") == [row["id"] for row in ROWS]


def test_jsonl_truncated_small_gzip_loses_a_few_kilobytes_only(tmp_path):
    packed = COMPRESS[".gz"](as_jsonl(ROWS))
    source = source_of(fill(tmp_path, {"a.jsonl.gz": packed[:-8]}))  # without its checksum
    [unit] = source.units(source.list_files())
    got, _ = ids_before_the_break(source, unit)
    assert len(as_jsonl(ROWS[len(got) :])) <= base._DECOMPRESSED_BYTES + len(as_jsonl(ROWS[:1]))


LINE = st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))


@settings(deadline=None, max_examples=300)
@given(
    lines=st.lists(LINE, max_size=12),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=12, max_size=12),
    size=st.integers(1, 50),
    last_has_end=st.booleans(),
)
@example(lines=[b"a", b"b"], ends=[b"\n"] * 12, size=2, last_has_end=False)
@example(lines=[b"a" * 30, b"b"], ends=[b"\n"] * 12, size=3, last_has_end=True)
def test_lines_of_all_ranges_are_the_lines_of_the_file_each_once(lines, ends, size, last_has_end):
    """A line belongs to the range it begins in, whatever the ranges."""
    ends = ends[: len(lines)]
    if ends and not last_has_end:
        ends[-1] = b""
    content = b"".join(a + b for a, b in zip(lines, ends, strict=True))
    expected, offset = [], 0
    for line, end in zip(lines, ends, strict=True):
        bare = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
        if bare.strip():
            expected.append((offset, bare))
        offset += len(line + end)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(line_files, "RANGE_BYTES", size)
        source = source_of(fill(Path(folder), {"a.txt": content}), format="lines")
        listing = source.list_files()
        reader = source._format("lines")
        pieces = reader.inspect(source._access, listing.files[0], "a.txt").pieces
        found = [line for piece in pieces for line in line_files.lines(source._access, piece)]
        if content:
            assert len(pieces) == -(-len(content) // size)
    assert found == expected


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(), min_size=1, max_size=20),
    size=st.integers(20, 300),
    ascii_only=st.booleans(),
)
@example(texts=["x", "y" * 500, "z"], size=50, ascii_only=True)
def test_jsonl_of_any_text_round_trips_in_any_ranges(texts, size, ascii_only):
    content = "".join(
        json.dumps({"id": str(i), "text": text, "m": [text]}, ensure_ascii=ascii_only) + "\n"
        for i, text in enumerate(texts)
    ).encode()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), {"a.jsonl": content, "b.jsonl.gz": COMPRESS[".gz"](content)})
        plain = Path(folder) / "a.jsonl"
        whole = documents(plain, columns={"id": None})
        patch.setattr(line_files, "RANGE_BYTES", size)
        rows = documents(plain, columns={"metadata": ["m"]})
        assert documents(plain, columns={"id": None}) == whole
        assert documents(Path(folder) / "b.jsonl.gz", columns={"metadata": ["m"]}) == rows
    assert column(rows) == texts
    assert column(rows, "doc_id") == [str(i) for i in range(len(texts))]
    assert [json.loads(row["m"]) for row in rows] == [[text] for text in texts]


BAD_LINES = [
    ('{"id": "a", "text": "x"', "bad_record", "not JSON"),
    ("id,text", "bad_record", "not JSON"),
    ('"a string"', "bad_record", "expected an object, found str"),
    ("17", "bad_record", "expected an object, found int"),
    ("null", "bad_record", "expected an object, found NoneType"),
    ("[1]", "bad_record", "expected an object, found list"),
    ('{"id": "a", "text": "x"} {"id": "b", "text": "y"}', "bad_record", "not JSON"),
    ('{"text": "x"}', "missing_id", ""),
    ('{"id": null, "text": "x"}', "missing_id", ""),
    ('{"id": true, "text": "x"}', "bad_record", "id: expected a string or an integer"),
    ('{"id": 1.5, "text": "x"}', "bad_record", "found float"),
    ('{"id": NaN, "text": "x"}', "bad_record", "found float"),
    ('{"id": ["a"], "text": "x"}', "bad_record", "found list"),
    ('{"id": "a"}', "bad_record", "text: expected a string, found no such field"),
    ('{"id": "a", "text": 5}', "bad_record", "text: expected a string, found int"),
    ('{"id": "a", "text": NaN}', "bad_record", "found float"),
    ('{"id": "a", "text": {"b": 1}}', "bad_record", "found dict"),
    (r'{"id": "a", "text": "x \ud800 y"}', "bad_encoding", "not valid UTF-8"),
    (r'{"id": "\udc00", "text": "x"}', "bad_encoding", "not valid UTF-8"),
    (r'{"id": "a", "text": "x", "m": ["\ud800"]}', "bad_encoding", "not valid UTF-8"),
    (b'{"id": "a", "text": "caf\xe9"}', "bad_encoding", "not valid UTF-8"),
    (b'{"id": "caf\xe9", "text": "x"}', "bad_encoding", "not valid UTF-8"),
    ("[" * 100_000, "bad_record", "not JSON"),
    ('{"id": "a", "text": "x", "n": ' + "9" * 5000 + "}", "bad_record", "not JSON"),
]


def test_jsonl_bad_line_is_a_fault_of_its_own(tmp_path):
    good, content, offsets = as_jsonl([{"id": "x", "text": "fine"}]), b"", []
    for line, *_ in BAD_LINES:
        offsets.append(len(content + good))
        content += good + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    rows = read(tmp_path, "a.jsonl", content + good, columns={"metadata": ["m"]})
    assert column(rows[::2]) == ["fine"] * (len(BAD_LINES) + 1)
    for row, offset, (line, code, detail) in zip(rows[1::2], offsets, BAD_LINES, strict=True):
        assert (row["fault"], row["text"]) == (code, None), line
        assert detail in row["detail"], line
        if code != "bad_encoding":
            assert row["detail"].startswith(f"byte {offset}"), line
    ids = dict(zip([line for line, *_ in BAD_LINES], column(rows[1::2], "doc_id"), strict=True))
    assert ids[r'{"id": "a", "text": "x", "m": ["\ud800"]}'] == "a"
    assert ids['{"id": "a", "text": 5}'] == "a"
    assert ids[r'{"id": "\udc00", "text": "x"}'] is None


ODD_LINES = [
    ('{"id": 7, "text": "x"}', "7", "x"),
    ('{"id": -7000000000000000000000, "text": "x"}', "-7000000000000000000000", "x"),
    ('{"id": "", "text": "x"}', "", "x"),  # for whoever chunks to reject
    ('{"id": "a", "text": null}', "a", None),
    ('{"id": "a", "text": ""}', "a", ""),
    ('{"id": "a", "text": "first", "text": "last"}', "a", "last"),
    (r'{"id": "a", "text": "\ud83d\ude00"}', "a", "\U0001f600"),
    (r'{"id": "a", "text": "\u0000\u0007\u001b[0m"}', "a", "\0\x07\x1b[0m"),
    ('{"id": "a", "text": "x", "other": NaN}', "a", "x"),
    (r'{"id": "a", "text": "x", "other": "\ud800"}', "a", "x"),
    (b'{"id": "a", "text": "x", "other": "caf\xe9"}', "a", "x"),
    (b'{"id": "a", "text": "x", "caf\xe9": "y"}', "a", "x"),
]


def test_jsonl_odd_line_is_a_document_all_the_same(tmp_path):
    lines = [line if isinstance(line, bytes) else line.encode() for line, *_ in ODD_LINES]
    rows = read(tmp_path, "a.jsonl", b"\n".join(lines))
    for row, (line, doc_id, text) in zip(rows, ODD_LINES, strict=True):
        assert row == {"doc_id": doc_id, "text": text, "title": None}, line


def test_jsonl_title_and_metadata_that_are_no_strings_become_text(tmp_path):
    cases = {'"t"': "t", "5": "5", "1.5": "1.5", "true": "true", "null": None, "NaN": "NaN"}
    cases |= {'{"b": ["é"]}': '{"b": ["é"]}'}
    lines = [f'{{"id": "a", "text": "x", "t": {value}}}\n' for value in cases]
    content = "".join([*lines, '{"id": "a", "text": "x"}'])
    rows = read(tmp_path, "a.jsonl", content, columns={"title": "t", "metadata": ["t"]})
    for row, expected in zip(rows, [*cases.values(), None], strict=True):
        assert row == {"doc_id": "a", "text": "x", "title": expected, "t": expected}


def test_jsonl_of_any_depth_is_a_document_or_a_fault(tmp_path):
    """JSON that is just not too deep to parse may be too deep to write as metadata."""
    depths = range(1, 1100)
    values = ["[" * d + "]" * d for d in depths] + ['{"a":' * d + "1" + "}" * d for d in depths]
    lines = [f'{{"id": "{i}", "text": "x", "m": {value}}}\n' for i, value in enumerate(values)]
    rows = read(tmp_path, "a.jsonl", "".join(lines), columns={"metadata": ["m"]})
    assert len(rows) == len(lines)
    assert {row.get("fault") for row in rows} == {None, "bad_record"}
    assert rows[99]["m"] == values[99]


def test_jsonl_dotted_paths_lead_into_objects(tmp_path):
    row = {"meta": {"id": 5, "deep": {"title": "t"}}, "body": {"text": "x"}}
    nowhere = [row | {"body": body} for body in (None, "flat", [{"text": "x"}])]
    title = "meta.deep.title"
    columns = {"id": "meta.id", "text": "body.text", "title": title, "metadata": ["meta.deep"]}
    first, *bad = read(tmp_path, "a.jsonl", as_jsonl([row, *nowhere]), columns=columns)
    assert first == {"doc_id": "5", "text": "x", "title": "t", "meta.deep": '{"title": "t"}'}
    assert [(row["doc_id"], row["fault"]) for row in bad] == [("5", "bad_record")] * 3


def test_jsonl_field_that_only_later_lines_have_is_found(tmp_path):
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "title": "t"}]
    found = read(tmp_path, "a.jsonl", as_jsonl(rows), columns={"title": "title"})
    assert column(found, "title") == [None, "t"]


def test_jsonl_file_that_is_one_json_value_is_refused_with_a_remedy(tmp_path):
    array = '[\n{"id": "a", "text": "x"}\n]'
    cases = dict.fromkeys(['[{"id": "a"}]', f"\n  {array}", f"\ufeff{array}"], "an array")
    for content, found in (cases | {'{\n  "id": "a"\n}\n': "an object of several lines"}).items():
        message = f"a.json: expected one JSON object per line, found {found}"
        with pytest.raises(SourceError, match=message) as caught:
            read(tmp_path, "a.json", content)
        remedy = "jq -c '.[]' array" if found == "an array" else "jq -c . objects"
        assert f"Rewrite it: {remedy}.json > lines.jsonl" in caught.value.remedy


# Parquet


def raw(values):
    """A string column of these bytes, on trust."""
    return pa.array(values, pa.binary()).view(pa.string())


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
    copied = ["doc.body.lang", "doc.tags", "doc"]  # a struct may be beside its own fields
    columns = {"id": "doc.id", "text": "doc.body.text", "title": "title", "metadata": copied}
    rows = read(tmp_path, "a.parquet", as_parquet(NESTED), columns=columns)
    assert [tuple(row.values())[:-1] for row in rows] == [
        ("1", "x", "t1", "en", ["a"]),
        (None, None, "t2", None, None),
        ("3", None, None, None, None),
        (None, "y", "t4", None, []),
    ]
    assert list(rows[0])[3:] == copied
    assert column(rows, "doc") == NESTED["doc"].to_pylist()


@pytest.mark.parametrize(
    ("table", "columns", "expected"),
    [
        (
            {"x.id": ["a", None], "x.text": ["t", "u"], "x": [1, 2]},  # no struct is needed
            {"id": "x.id", "text": "x.text", "metadata": ["x"]},
            [("a", "t", 1), (None, "u", 2)],
        ),
        (
            {"id": ["a"], "text": ["t"], "text_more": ["u"], "id2": [5]},
            {"metadata": ["text_more"]},
            [("a", "t", "u")],
        ),
        ({"id": ["a"], "text": pa.nulls(1)}, {"metadata": ["id"]}, [("a", None, "a")]),
    ],
    ids=["dots in names", "common beginnings", "nothing but nulls"],
)
def test_parquet_columns_are_those_named(tmp_path, table, columns, expected):
    rows = read(tmp_path, "a.parquet", as_parquet(table), columns=columns)
    assert [(r["doc_id"], r["text"], r[columns["metadata"][0]]) for r in rows] == expected


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
        read(tmp_path, "a.parquet", as_parquet(NESTED), columns={"id": "title", "text": path})


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_undecodable_bytes_are_a_fault_where_they_are_used(tmp_path, dictionary):
    texts = raw([b"x", b"caf\xe9", b"x", b"x", None] * 60)
    table = {
        "id": raw([b"%d" % i if i % 5 != 2 else b"\xff%d" % i for i in range(300)]),
        "text": texts,
        "title": texts,
        "unused": raw([b"\xff"] * 300),
    }
    rows = read(tmp_path, "a.parquet", as_parquet(table, use_dictionary=dictionary))
    assert [row.get("fault") for row in rows] == [None, *["bad_encoding"] * 2, None, None] * 60
    assert [row["doc_id"] for row in rows[:5]] == ["0", "1", None, "3", "4"]
    assert [row["text"] for row in rows[:5]] == ["x", None, "x", "x", None]


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        (raw([b"\xff", None, b"m"]), [0]),
        (pa.ListArray.from_arrays([0, 1, 2, 2], raw([b"\xff", b"m"])), [0]),
        (pa.StructArray.from_arrays([raw([b"m", b"\xff", b"m"])], ["s"]), [1]),
    ],
    ids=["strings", "lists", "structs"],
)
def test_parquet_undecodable_metadata_is_a_fault_of_its_row(tmp_path, values, bad):
    table = {"id": ["a", "b", "c"], "text": ["x", "y", "z"], "m": values}
    rows = read(tmp_path, "a.parquet", as_parquet(table), columns={"metadata": ["m"]})
    assert [i for i, row in enumerate(rows) if row.get("fault") == "bad_encoding"] == bad
    kept = [value.as_py() for i, value in enumerate(values) if i not in bad]
    assert [row["m"] for i, row in enumerate(rows) if i not in bad] == kept


def test_parquet_of_every_codec_gives_any_text(tmp_path):
    text = "x\0\a\x1b[0m\x85\u2028\ufffe\U0010ffff" * 100
    for codec in ("snappy", "gzip", "brotli", "zstd", "lz4", "none"):
        content = as_parquet({"id": ["a"], "text": [text]}, compression=codec)
        assert column(read(tmp_path, "a.parquet", content)) == [text], codec


@pytest.mark.parametrize("needle", [b"doc-7", b"text-7"])
def test_parquet_damage_that_only_a_checksum_shows_is_an_unreadable_unit(tmp_path, needle):
    texts = {"id": [f"doc-{i}" for i in range(20)], "text": [f"text-{i}" for i in range(20)]}
    good = as_parquet(texts, compression="none", use_dictionary=False, write_page_checksum=True)
    at = good.index(needle)
    (tmp_path / "a.parquet").write_bytes(good[:at] + b"X" + good[at + 1 :])
    source = source_of(tmp_path)
    [unit] = source.units(source.list_files())
    got, message = ids_before_the_break(source, unit)
    assert got == []
    assert "a.parquet, row group 0: cannot be read" in message


# Text, a document a file


def test_text_files_many_to_a_unit_are_read_in_any_range(tmp_path):
    source = source_of(fill(tmp_path, {f"{i:04}.txt": f"text {i}" for i in range(1205)}))
    first, second = source.units(source.list_files())
    assert (first.documents, second.documents) == (1000, 205)
    for unit, start, stop in ((first, 0, None), (first, 990, 995), (second, 204, None)):
        ids = [b.table["doc_id"][0].as_py() for b in source.read(unit, start, stop)]
        assert ids == [
            f"{i + 1000 * unit.number:04}.txt" for i in range(start, stop or unit.documents)
        ]


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_file_of_any_text_round_trips(text):
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), {"a.txt": text, "b.txt.zst": COMPRESS[".zst"](text.encode())})
        assert column(documents(folder)) == [text.removeprefix("\ufeff")] * 2


@pytest.mark.parametrize("end", [".gz", ".bz2", ".zst"])
def test_text_file_that_is_damaged_is_a_fault_of_its_own(tmp_path, end):
    """Hundreds of files are one unit: one that never decompresses must not be in their way."""
    damaged = {f"b.txt{end}": COMPRESS[end](b"x" * 9999)[:-9], f"c.txt{end}": b"never compressed"}
    rows = documents(fill(tmp_path, {"a.txt": b"good"} | damaged | {"d.txt": b""}))
    assert column(rows, "doc_id") == ["a.txt", *damaged, "d.txt"]
    assert [row.get("fault") for row in rows] == [None, "bad_record", "bad_record", None]
    assert rows[3]["text"] == ""  # for whoever chunks to reject
    assert all(row["detail"].startswith("damaged: ") for row in rows[1:3])


class FailingFile(io.RawIOBase):
    """Of a store that breaks off."""

    def readable(self):
        return True

    def readinto(self, _):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_text_file_that_the_store_does_not_give_is_named_among_those_of_its_unit(tmp_path, end):
    """It is no fault of the file: the next start tries again."""
    files = {"a.txt": b"good", f"b.txt{end}": COMPRESS[end](b"good"), "c.txt": b"good"}
    source = source_of(fill(tmp_path, files))
    [unit] = source.units(source.list_files())
    real = source._access.fs.open

    def failing(path, *rest, **options):
        return FailingFile() if "b.txt" in path else real(path, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source._access.fs, "open", failing)
        got, message = ids_before_the_break(source, unit)
    assert got == ["a.txt"]
    assert f"/b.txt{end}: cannot be read (" in message
    assert "Input/output error" in message
    assert column(documents(tmp_path)) == ["good"] * 3


# WikiExtractor


def doc(number, title, text):
    """As WikiExtractor 3 writes it: the title again, then the text, escaped."""
    body = html.escape(text, quote=False)
    return f'<doc id="{number}" url="u{number}" title="{title}">\n{title}\n\n{body}\n\n</doc>\n'


def read_wiki(tmp_path, content):
    return read(tmp_path, "wiki_00", content, columns={"title": "title", "metadata": ["url"]})


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)


@settings(deadline=None, max_examples=150)
@given(title=TEXT, lines=st.lists(TEXT, min_size=1, max_size=5))
@example(title='a "b" c', lines=["</doc>", '<doc id="1">', "&lt;", "&amp;lt;", "&#x27;&nbsp;"])
@example(title="x", lines=["x", "x"])
@example(title='"', lines=['"'])
@example(title='x="y"', lines=["x"])
@example(title='"" ""', lines=["x"])
@example(title="5 > 4 = <b>", lines=["x"])
def test_wikiextractor_of_any_text_round_trips(title, lines):
    text = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        content = doc(1, title, text) + doc(2, "after", "y")
        rows = read(folder, "a", content, columns={"title": "title"}, format="wikiextractor")
    assert outcomes(rows) == [("1", text), ("2", "y")]
    if "&" not in title:  # WikiExtractor leaves titles as they are in the dump: escaped
        assert rows[0]["title"] == title


def test_wikiextractor_entities_are_undone_once(tmp_path):
    body = "AT&amp;T\n\n&lt;b&gt; &amp;lt; &quot;q&quot; &#39; &#x27; &nbsp; &eacute; &"
    content = f'<doc id="1" url="u?a=1&amp;b=2" title="AT&amp;T">\n{body}\n</doc>\n'
    [row] = read_wiki(tmp_path, content)
    assert row == {
        "doc_id": "1",
        "text": "<b> &lt; \"q\" ' ' &nbsp; &eacute; &",
        "title": "AT&T",
        "url": "u?a=1&b=2",
    }


def test_wikiextractor_title_repeated_as_first_line_is_left_out(tmp_path):
    texts = {
        "April\n\nApril is a month.\n": "April is a month.",
        "April\n\n\nApril is a month.\n": "April is a month.",
        "April is a month.\n": "April is a month.",
        "April\nis a month.\n": "April\nis a month.",
        "May\n\nApril\n": "May\n\nApril",
        "April\n": "",
        "April\n\n": "",
        "": "",
    }
    elements = [f'<doc id="1" url="u" title="April">\n{body}</doc>\n' for body in texts]
    rows = read_wiki(tmp_path, "".join(elements))
    assert column(rows) == list(texts.values())
    assert not any("fault" in row for row in rows)


@pytest.mark.parametrize("name", ["id", "text"])
def test_parquet_with_two_columns_of_a_configured_name_is_refused(tmp_path, name):
    table = pa.table([["a"], ["x"], ["y"]], names=["id", "text", name])
    with pytest.raises(SourceError, match=f"expected one column '{name}', found several"):
        read(tmp_path, "a.parquet", as_parquet(table))
