"""JSON lines and plain lines: real bytes in, documents out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import COMPRESS, column, documents, ids_before_the_break, place, source_of

from actors.errors import SourceError, UnreadableUnitError
from pipelines.source.formats import base, line_files

__all__ = ["place"]


def jsonl(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_line(tmp_path, line, **columns):
    """The one document of a file that has this line between two good ones."""
    line = line if isinstance(line, bytes) else line.encode()
    names = {columns.get("id", "id"): "x", columns.get("text", "text"): "fine"}
    good = json.dumps(names).encode()
    path = written(tmp_path / "a.jsonl", good + b"\n" + line + b"\n" + good + b"\n")
    first, *found, last = documents(path, columns=columns)
    assert first == last
    assert (first["text"], "fault" in first) == ("fine", False)
    [row] = found
    return row


ROWS = [{"id": f"d{i}", "text": f"text {i}\nof two lines", "title": f"t{i}"} for i in range(300)]


# Places and compression


@pytest.mark.parametrize("compression", COMPRESS)
def test_jsonl_in_every_store_gives_its_documents(place, compression):
    root, options, put = place
    put(f"a.jsonl{compression}", COMPRESS[compression](jsonl(ROWS)))
    columns = {"title": "title"}
    rows = documents(
        f"{root}/a.jsonl{compression}", columns=columns, storage_options=options, limit=None
    )
    assert rows == [{"doc_id": r["id"], "text": r["text"], "title": r["title"]} for r in ROWS]


def test_jsonl_folder_in_every_store_is_read_to_its_files(place):
    root, options, put = place
    put("a.jsonl", jsonl(ROWS[:5]))
    put("b.jsonl.gz", COMPRESS[".gz"](jsonl(ROWS[5:9])))
    rows = documents(f"{root}/", storage_options=options)
    assert column(rows, "doc_id") == [f"d{i}" for i in range(9)]


def test_jsonl_of_several_ranges_in_every_store_gives_each_document_once(
    place, request, monkeypatch
):
    monkeypatch.setattr(line_files, "RANGE_BYTES", 1000)
    root, options, put = place
    put("a.jsonl", jsonl(ROWS))
    source = source_of(f"{root}/a.jsonl", storage_options=options)
    units = source.units(source.list_files())
    # A server that does not give a part of a file, or does not say how long it is, is read at once.
    gives_ranges = request.node.callspec.params["place"] in ("local", "s3", "http-ranges")
    assert len(units) == (-(-len(jsonl(ROWS)) // 1000) if gives_ranges else 1)
    rows = documents(f"{root}/a.jsonl", storage_options=options)
    assert column(rows, "doc_id") == [row["id"] for row in ROWS]


@pytest.mark.parametrize("compression", COMPRESS)
def test_jsonl_ids_from_place_are_those_of_the_plain_file(tmp_path, compression):
    content = jsonl(ROWS[:20]) + b"\n  \n" + jsonl(ROWS[20:40])
    written(tmp_path / "docs/deep/a.jsonl", content)
    written(tmp_path / f"other/deep/a.jsonl{compression}", COMPRESS[compression](content))
    plain = documents(tmp_path / "docs", columns={"id": None})
    other = documents(tmp_path / "other", columns={"id": None})
    offsets = [i for i, byte in enumerate(content) if byte == ord("{")]
    assert column(plain, "doc_id") == [f"deep/a.jsonl:{offset}" for offset in offsets]
    assert [row["doc_id"].replace(compression, "", 1) for row in other] == column(plain, "doc_id")
    assert column(other) == column(plain)


def test_jsonl_ids_from_place_are_the_same_in_whatever_ranges(tmp_path, monkeypatch):
    path = written(tmp_path / "a.jsonl", jsonl(ROWS))
    whole = documents(path, columns={"id": None})
    monkeypatch.setattr(line_files, "RANGE_BYTES", 777)
    assert documents(path, columns={"id": None}) == whole


def test_jsonl_concatenated_gzip_members_are_one_file(tmp_path):
    content = COMPRESS[".gz"](jsonl(ROWS[:100])) + COMPRESS[".gz"](jsonl(ROWS[100:]))
    rows = documents(written(tmp_path / "a.jsonl.gz", content))
    assert column(rows, "doc_id") == [row["id"] for row in ROWS]


def test_jsonl_extension_in_capitals_is_decompressed_too(tmp_path):
    path = written(tmp_path / "A.JSONL.GZ", COMPRESS[".gz"](jsonl(ROWS[:3])))
    assert column(documents(path)) == column(ROWS[:3])


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("lost", [1, 10])
def test_jsonl_truncated_compressed_gives_what_comes_before_and_then_fails(
    tmp_path, compression, lost
):
    """All but what one small read and the compressor's own block hold back."""
    rows = [{"id": str(i), "text": f"{i * 7919 % 10007} words {i}" * 20} for i in range(30_000)]
    packed = COMPRESS[compression](jsonl(rows))
    path = written(tmp_path / f"a.jsonl{compression}", packed[: -lost or None])
    source = source_of(path)
    [unit] = source.units(source.list_files())
    got, message = ids_before_the_break(source, unit)
    assert f"a.jsonl{compression}: cannot be read (Truncated" in message
    assert got == [row["id"] for row in rows[: len(got)]]
    # bzip2 decompresses 900 kB blocks whole, or not at all.
    held_back = 1 << 20 if compression == ".bz2" else 300 << 10
    assert len(jsonl(rows[len(got) :])) < held_back


def test_jsonl_truncated_small_gzip_loses_a_few_kilobytes_only(tmp_path):
    packed = COMPRESS[".gz"](jsonl(ROWS))
    path = written(tmp_path / "a.jsonl.gz", packed[:-8])  # without its checksum
    source = source_of(path)
    [unit] = source.units(source.list_files())
    got, _ = ids_before_the_break(source, unit)
    assert len(jsonl(ROWS[len(got) :])) <= base._DECOMPRESSED_BYTES + len(jsonl(ROWS[:1]))


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
def test_jsonl_garbage_with_a_compressed_name_is_an_unreadable_unit(tmp_path, compression):
    written(tmp_path / "a.jsonl", jsonl(ROWS[:3]))
    written(tmp_path / f"b.jsonl{compression}", jsonl(ROWS))
    source = source_of(tmp_path)
    good, bad = source.units(source.list_files())
    assert sum(batch.table.num_rows for batch in source.read(good)) == 3
    with pytest.raises(UnreadableUnitError, match=rf"b\.jsonl{compression}: cannot be read"):
        list(source.read(bad))


def test_jsonl_empty_compressed_file_beside_others_has_no_documents(tmp_path):
    for end in (".gz", ".bz2", ".zst"):
        written(tmp_path / f"a.jsonl{end}", b"")
    written(tmp_path / "b.jsonl.gz", COMPRESS[".gz"](b""))
    written(tmp_path / "c.jsonl", b"")
    written(tmp_path / "d.jsonl", b"\n\n")
    written(tmp_path / "e.jsonl", jsonl(ROWS[:2]))
    assert column(documents(tmp_path), "doc_id") == ["d0", "d1"]


# Lines and ranges

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
        path = Path(folder) / "a.txt"
        path.write_bytes(content)
        source = source_of(path, format="lines")
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
def test_jsonl_of_any_text_round_trips_in_any_ranges(texts, size, ascii_only):
    content = "".join(
        json.dumps({"id": str(i), "text": text, "m": [text]}, ensure_ascii=ascii_only) + "\n"
        for i, text in enumerate(texts)
    ).encode()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(line_files, "RANGE_BYTES", size)
        path = Path(folder) / "a.jsonl"
        path.write_bytes(content)
        rows = documents(path, columns={"metadata": ["m"]})
        Path(folder, "a.jsonl.gz").write_bytes(COMPRESS[".gz"](content))
        assert documents(Path(folder, "a.jsonl.gz"), columns={"metadata": ["m"]}) == rows
    assert column(rows) == texts
    assert column(rows, "doc_id") == [str(i) for i in range(len(texts))]
    assert [json.loads(row["m"]) for row in rows] == [[text] for text in texts]


def test_jsonl_line_longer_than_several_ranges_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(line_files, "RANGE_BYTES", 50)
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y" * 500}, {"id": "c", "text": "z"}]
    path = written(tmp_path / "a.jsonl", jsonl(rows))
    assert column(documents(path)) == column(rows)


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n',
        b'{"id": "a", "text": "x"}\r\n{"id": "b", "text": "y"}\r\n',
        b'\n\n{"id": "a", "text": "x"}\n \t \n\r\n{"id": "b", "text": "y"}\n\n',
        b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}',
        b'  {"id": "a", "text": "x"}\n\t{"id": "b", "text": "y"}  \n',
        # Line ends that are JSON's own text, and those only Unicode calls so, end no line.
        '{"id": "a", "text": "x"}\n{"id": "b", "text": "y", "z": "\u2028\x85\\n"}\n'.encode(),
    ],
    ids=["bom", "crlf", "blank lines", "no final newline", "indented", "other line ends"],
)
def test_jsonl_however_written_gives_its_documents(tmp_path, content):
    rows = documents(written(tmp_path / "a.jsonl", content))
    assert [(row["doc_id"], row["text"]) for row in rows] == [("a", "x"), ("b", "y")]


# Records


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        ('{"id": "a", "text": "x"', "bad_record", "not JSON"),
        ("id,text", "bad_record", "not JSON"),
        ('"a string"', "bad_record", "expected an object, found str"),
        ("17", "bad_record", "expected an object, found int"),
        ("null", "bad_record", "expected an object, found NoneType"),
        ("[1]", "bad_record", "expected an object, found list"),
        ('{"id": "a", "text": "x"} {"id": "b", "text": "y"}', "bad_record", "not JSON"),
        ('{"text": "x"}', "missing_id", "byte 28"),
        ('{"id": null, "text": "x"}', "missing_id", "byte 28"),
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
        (b'{"id": "a", "text": "caf\xe9"}', "bad_encoding", "not valid UTF-8"),
        (b'{"id": "caf\xe9", "text": "x"}', "bad_encoding", "not valid UTF-8"),
        ("[" * 100_000, "bad_record", "not JSON"),
        ('{"id": "a", "text": "x", "n": ' + "9" * 5000 + "}", "bad_record", "not JSON"),
    ],
)
def test_jsonl_bad_line_is_a_fault_of_its_own(tmp_path, line, code, detail):
    row = read_line(tmp_path, line)
    assert row["fault"] == code
    assert detail in row["detail"]
    assert row["text"] is None


@pytest.mark.parametrize(
    ("line", "doc_id", "text"),
    [
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
    ],
)
def test_jsonl_odd_line_is_a_document_all_the_same(tmp_path, line, doc_id, text):
    row = read_line(tmp_path, line)
    assert row == {"doc_id": doc_id, "text": text, "title": None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"t"', "t"),
        ("5", "5"),
        ("1.5", "1.5"),
        ("true", "true"),
        ("null", None),
        ("NaN", "NaN"),
        ('{"b": ["é"]}', '{"b": ["é"]}'),
    ],
)
def test_jsonl_title_and_metadata_that_are_no_strings_become_text(tmp_path, value, expected):
    line = f'{{"id": "a", "text": "x", "t": {value}}}'
    row = read_line(tmp_path, line, title="t", metadata=["t"])
    assert row == {"doc_id": "a", "text": "x", "title": expected, "t": expected}


def test_jsonl_absent_title_and_metadata_of_one_line_are_null(tmp_path):
    content = jsonl([{"id": "a", "text": "x", "title": "t", "m": 1}, {"id": "b", "text": "y"}])
    path = written(tmp_path / "a.jsonl", content)
    rows = documents(path, columns={"title": "title", "metadata": ["m"]})
    assert [(row["title"], row["m"]) for row in rows] == [("t", "1"), (None, None)]


def test_jsonl_lone_surrogate_in_metadata_is_a_fault_that_keeps_the_id(tmp_path):
    row = read_line(tmp_path, r'{"id": "a", "text": "x", "m": ["\ud800"]}', metadata=["m"])
    assert (row["doc_id"], row["fault"]) == ("a", "bad_encoding")


def test_jsonl_of_any_depth_is_a_document_or_a_fault(tmp_path):
    """JSON that is just not too deep to parse may be too deep to write as metadata."""
    depths = range(1, 1100)
    values = ["[" * d + "]" * d for d in depths] + ['{"a":' * d + "1" + "}" * d for d in depths]
    lines = [f'{{"id": "{i}", "text": "x", "m": {value}}}\n' for i, value in enumerate(values)]
    path = written(tmp_path / "a.jsonl", "".join(lines).encode())
    rows = documents(path, columns={"metadata": ["m"]})
    assert len(rows) == len(lines)
    assert {row.get("fault") for row in rows} == {None, "bad_record"}
    assert rows[99]["m"] == values[99]


# Names


def test_jsonl_dotted_paths_lead_into_objects(tmp_path):
    row = {"meta": {"id": 5, "deep": {"title": "t"}}, "body": {"text": "x"}}
    path = written(tmp_path / "a.jsonl", jsonl([row, row | {"body": {"text": "y"}}]))
    columns = {
        "id": "meta.id",
        "text": "body.text",
        "title": "meta.deep.title",
        "metadata": ["meta.deep"],
    }
    first, second = documents(path, columns=columns)
    assert first == {"doc_id": "5", "text": "x", "title": "t", "meta.deep": '{"title": "t"}'}
    assert second["text"] == "y"


def test_jsonl_field_with_a_dot_in_its_name_comes_before_a_path(tmp_path):
    row = {"id": "a", "a.b": "literal", "a": {"b": "nested"}}
    path = written(tmp_path / "a.jsonl", jsonl([row]))
    assert column(documents(path, columns={"text": "a.b"})) == ["literal"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"id": "a", "body": null}', "bad_record"),
        ('{"id": "a", "body": "flat"}', "bad_record"),
        ('{"id": "a", "body": [{"text": "x"}]}', "bad_record"),
    ],
)
def test_jsonl_dotted_path_that_leads_nowhere_is_a_fault_of_its_line(tmp_path, line, code):
    good = '{"id": "g", "body": {"text": "x"}}'
    path = written(tmp_path / "a.jsonl", f"{good}\n{line}\n".encode())
    _, row = documents(path, columns={"text": "body.text"})
    assert (row["doc_id"], row["fault"]) == ("a", code)


def test_jsonl_field_that_no_line_has_is_refused_naming_those_present(tmp_path):
    path = written(tmp_path / "a.jsonl", jsonl(ROWS[:3]))
    message = r"source\.columns\.text: expected a column 'body' in .*, found id, text, title"
    with pytest.raises(SourceError, match=message):
        documents(path, columns={"text": "body"})


def test_jsonl_field_that_only_later_lines_have_is_found(tmp_path):
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "title": "t"}]
    path = written(tmp_path / "a.jsonl", jsonl(rows))
    assert column(documents(path, columns={"title": "title"}), "title") == [None, "t"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'[{"id": "a", "text": "x"}]', "an array"),
        (b'\n  [\n {"id": "a", "text": "x"}\n]', "an array"),
        (b'\xef\xbb\xbf[\n{"id": "a", "text": "x"}\n]', "an array"),
        (b'{\n  "id": "a",\n  "text": "x"\n}\n', "an object of several lines"),
    ],
)
def test_jsonl_file_that_is_one_json_value_is_refused_with_a_remedy(tmp_path, content, found):
    path = written(tmp_path / "a.json", content)
    with pytest.raises(SourceError, match=rf"expected one JSON object a line, found {found}") as e:
        documents(path)
    assert "jq -c" in e.value.remedy


# Lines of text


def test_lines_are_documents_with_the_ids_of_their_places(tmp_path):
    content = b"\xef\xbb\xbffirst\r\n\r\n  second \nno \xe9\nlast"
    rows = documents(written(tmp_path / "docs/deep/a.txt", content).parents[1], format="lines")
    assert [(r["doc_id"], r["text"], r.get("fault")) for r in rows] == [
        ("deep/a.txt:0", "first", None),
        ("deep/a.txt:12", "  second ", None),
        ("deep/a.txt:22", None, "bad_encoding"),
        ("deep/a.txt:27", "last", None),
    ]


def test_lines_have_no_other_columns(tmp_path):
    path = written(tmp_path / "a.txt", b"x\n")
    with pytest.raises(SourceError, match=r"source\.columns\.title: expected a column 'title'"):
        documents(path, format="lines", columns={"title": "title"})
