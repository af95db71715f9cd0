"""Every format gives the same documents, and has one table of what it does with damage.

What only one format can do is in `test_formats.py`.
"""

from __future__ import annotations

import csv
import html
import io
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for
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

from actors.errors import SourceError, UnreadableUnitError
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index

__all__ = ["place"]

NAMED = {"title": "title", "metadata": ["url"]}
PACKED = [".gz", ".bz2", ".zst"]


def as_parquet(rows, row_group_size=130, **how):
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else pa.table(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size, **how)
    return sink.getvalue()


def as_nested(rows):
    pages = [{"meta": row, "page": {"title": row["title"], "b": row}} for row in rows]
    return as_parquet(pages)


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, delimiter=","):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_wiki(rows):
    """As WikiExtractor 3 does: the title again, then the text, escaped."""
    return "".join(
        f'<doc id="{row["id"]}" url="{html.escape(row["url"])}" '
        f'title="{html.escape(row["title"])}">\n{html.escape(row["title"])}\n\n'
        f"{html.escape(row['text'], quote=False)}\n\n</doc>\n"
        for row in rows
    ).encode()


def as_lines(rows):
    return "".join(f"{row['text']}\n" for row in rows).encode()


NESTED = {"id": "meta.id", "text": "page.b.text", "title": "page.title", "metadata": ["meta.url"]}
# Format -> (file name, its bytes, what else the source is told).
FORMATS = {
    "parquet": ("a.parquet", as_parquet, {"columns": NAMED}),
    "nested parquet": ("a.parquet", as_nested, {"columns": NESTED}),
    "jsonl": ("a.jsonl", as_jsonl, {"columns": NAMED}),
    "csv": ("a.csv", as_csv, {"columns": NAMED}),
    "tsv": ("a.tsv", partial(as_csv, delimiter="\t"), {"columns": NAMED}),
    "wikiextractor": ("AA/wiki_00", as_wiki, {"columns": NAMED, "format": "wikiextractor"}),
    "lines": ("a.txt", as_lines, {"format": "lines"}),
    "text": (None, None, {"format": "text"}),
}
STREAMS = ["jsonl", "csv", "wikiextractor", "lines"]
COMPRESSIBLE = [name for name in FORMATS if "parquet" not in name]


def files_of(name, rows, end=""):
    """File name -> bytes of a folder of these documents, compressed as `end` says."""
    file, encode, _ = FORMATS[name]
    files = {f"{row['id']}.txt": row["text"].encode() for row in rows}
    if encode:
        files = {file: encode(rows)}
    return {f"{path}{end}": COMPRESS[end](content) for path, content in files.items()}


def expected_of(name, rows, end=""):
    """What is read of them. Plain text has no ids but places, and no titles."""
    if name == "text":
        return [(f"{row['id']}.txt{end}", row["text"], None, None) for row in rows]
    if name == "lines":
        ends = np.cumsum([len(row["text"].encode()) + 1 for row in rows])
        places = zip([0, *ends[:-1]], rows, strict=True)
        return [(f"a.txt{end}:{at}", row["text"], None, None) for at, row in places]
    return [(row["id"], row["text"], row["title"], row["url"]) for row in rows]


def found_in(rows):
    found = [row.get("url", row.get("meta.url")) for row in rows]
    return [(r["doc_id"], r["text"], r["title"], url) for r, url in zip(rows, found, strict=True)]


@pytest.fixture(scope="module")
def real(articles):
    """Articles that no format changes: some do not keep white space around a text."""
    rows = articles.slice(0, 150).to_pylist()
    return [row | {"text": row["text"].strip()} for row in rows]


@pytest.fixture(scope="module")
def flat(real):
    """The same, each text on one line."""
    return [row | {"text": " ".join(row["text"].split())} for row in real]


def simple_rows(n):
    names = ("id", "text", "title", "url")
    return [{name: f"{name} {i}" for name in names} for i in range(n)]


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_in_every_store_however_compressed_gives_its_documents(
    place, request, real, flat, name
):
    root, options, put = place
    rows = flat if name == "lines" else real
    if name == "text":
        rows = sorted([*rows[:5], rows[5] | {"text": "x"}], key=lambda row: f"{row['id']}.txt")
    for number, end in enumerate(COMPRESS if name in COMPRESSIBLE else [""]):
        for file, content in files_of(name, rows, end).items():
            put(f"{number}/{file}", content)
        put(f"{number}/picture.png" if name == "text" else f"{number}/_SUCCESS", b"\x89PNG")
        if name == "text" and "http-bare" not in request.node.callspec.id:
            put(f"{number}/empty.txt{end}", b"")
        file = FORMATS[name][0]
        uri = f"{root}/{number}/{file}{end}" if file else f"{root}/{number}/"
        found = documents(uri, storage_options=options, **FORMATS[name][2])
        assert [row for row in found_in(found) if row[1]] == expected_of(name, rows, end), end


@pytest.mark.parametrize("name", ["parquet", "jsonl", "csv", "wikiextractor"])
def test_any_format_ids_from_place_are_those_of_the_plain_file(tmp_path, name):
    rows = simple_rows(300)
    file, encode, how = FORMATS[name]
    places = [i for i, c in enumerate(encode(rows)) if c == ord("{")] if name == "jsonl" else None
    for end in COMPRESS if name in COMPRESSIBLE else [""]:
        fill(tmp_path / f"of{end}/deep", files_of(name, rows, end))
        found = documents(tmp_path / f"of{end}", **how | {"columns": {"id": None}})
        assert column(found, "doc_id") == [
            f"deep/{file}{end}:{position}" for position in places or range(300)
        ], end


# Damage


@pytest.mark.parametrize("end", PACKED)
@pytest.mark.parametrize("name", STREAMS)
def test_any_format_truncated_compressed_gives_what_comes_before_and_then_fails(
    tmp_path, name, end
):
    """All but what one small read and the compressor's own block hold back."""
    words = [f"{i * 7919 % 10007} words {i}" * 20 for i in range(6000)]
    rows = [{"id": str(i), "text": t, "title": "", "url": ""} for i, t in enumerate(words)]
    ids = [row[0] for row in expected_of(name, rows, end)]
    # bzip2 decompresses 900 kB blocks whole, or not at all.
    held_back = 1 << 20 if end == ".bz2" else 300 << 10
    [(file, packed)] = files_of(name, rows, end).items()
    for lost in (1, 10):
        fill(tmp_path, {file: packed[:-lost]})
        source = source_of(tmp_path, **FORMATS[name][2])
        [unit] = source.units(source.list_files())
        got, message = ids_before_the_break(source, unit)
        assert f"{file}: cannot be read (Truncated" in message
        assert got == ids[: len(got)]
        assert len(FORMATS[name][1](rows[len(got) :] or rows[:1])) < held_back


@pytest.mark.parametrize("end", PACKED)
@pytest.mark.parametrize("name", STREAMS)
def test_any_format_garbage_with_a_compressed_name_is_an_unreadable_unit(tmp_path, name, end):
    rows = simple_rows(3)
    file, encode, how = FORMATS[name]
    fill(tmp_path / "a", files_of(name, rows))
    fill(tmp_path / "b", {f"{file}{end}": encode(rows)})
    source = source_of(tmp_path, **how)
    good, bad = source.units(source.list_files())
    assert sum(batch.table.num_rows for batch in source.read(good)) == 3
    with pytest.raises(UnreadableUnitError, match=rf"{file}{end}: cannot be read"):
        list(source.read(bad))


@pytest.mark.parametrize("name", STREAMS)
def test_any_format_empty_files_beside_others_have_no_documents(tmp_path, name):
    rows = simple_rows(2)
    file, encode, how = FORMATS[name]
    for end in COMPRESS:
        fill(tmp_path / "nothing", {f"{file}{end}": b""})
        fill(tmp_path / "nothing packed", {f"{file}{end}": COMPRESS[end](b"")})
        fill(tmp_path / "blank", {f"{file}{end}": COMPRESS[end](b"\n\n")})
    if name == "csv":
        fill(tmp_path, {"only a header.csv": b"id,text,title,url\n"})
    fill(tmp_path, {file: encode(rows)})
    assert column(documents(tmp_path, **how)) == column(rows)
    source = source_of(tmp_path / file, **how)
    [unit] = source.units(source.list_files())
    assert source.no_documents(unit).table.schema == next(source.read(unit)).table.schema


BOM, WIKI = b"\xef\xbb\xbf", '<doc id="{}" url="u" title="{}">\n{}\n</doc>\n'
AB, A = [("a", "x"), ("b", "y")], ("a", "x")
BAD, BAD_A = (None, "bad_encoding"), ("a", "bad_encoding")
JSON_A, JSON_B = b'{"id": "a", "text": "x"}', b'{"id": "b", "text": "y"}'
WIKI_A, WIKI_B, WIKI_C = (WIKI.format(*row).encode() for row in ("aAx", "bBy", "cCz"))
OPEN_B = WIKI_B.removesuffix(b"</doc>\n")


def bad(detail, doc_id=None):
    return doc_id, "bad_record", detail


# (format, what is special, bytes, [(doc_id, text or fault, in the detail of the fault)]).
CASES = [
    ("csv", "bom", BOM + b"id,text\na,x\nb,y\n", AB),
    ("csv", "bom and quotes", BOM + b'"id","text"\r\n"a","x"\r\n"b","y"\r\n', AB),
    ("csv", "crlf, no final line end", b"id,text\r\na,x\r\nb,y", AB),
    ("csv", "cr", b"id,text\ra,x\rb,y\r", AB),
    ("csv", "blank lines", b"\n\nid,text\n\na,x\n\n\nb,y\n\n", AB),
    ("csv", "other order", b'text,"id",more\nx,a,1\ny,b,2\n', AB),
    ("csv", "empty fields", b"id,text,title\n,,\n", [("", "")]),
    ("csv", "control", b"id,text\na,x\0\a\x1b[0m\x0b\x0cy\n", [("a", "x\0\a\x1b[0m\x0b\x0cy")]),
    (
        "csv",
        "quote never closed",
        b'id,text\na,x\nb,"never closed\nc,z\n\nd,"two\nlines"\ne,v\n',
        [A, bad("line 3: "), ("c", "z"), ("d", "two\nlines"), ("e", "v")],
    ),
    ("csv", "too early", b'id,text\na,x\nb,"x" y\n', [A, bad("line 3: ")]),
    ("csv", "never in the end", b'id,text\na,x\n"b,x\n', [A, bad("line 3: ")]),
    (
        "csv",
        "number of fields",
        b"id,text,title\nb\na,x,t\nb,y,t,more\nb,y\nb,y,t,\nc,z,t\n",
        [
            bad("line 2: expected 3 fields, found 1"),
            A,
            bad("line 4: expected 3 fields, found 4"),
            bad("line 5: expected 3 fields, found 2"),
            bad("line 6: expected 3 fields, found 4"),
            ("c", "z"),
        ],
    ),
    (
        "csv",
        "last lines of faults",
        b'id,text\na,"1\n2\n3"\nb\n\n"c\n\n"\n',
        [("a", "1\n2\n3"), bad("line 5:"), bad("line 9:")],
    ),
    (
        "csv",
        "undecodable",
        b"id,text,more\na,\xe9,t\n\xe9,y,t\nc,z,\xe9\n",
        [BAD_A, BAD, ("c", "z")],
    ),
    ("csv", "undecodable title", b"id,text,title\nc,z,\xe9\na,x,t\n", [("c", "bad_encoding"), A]),
    ("tsv", "quotes", b'id\ttext\na\tx, "y"\nb\t"a\tb"\n', [("a", 'x, "y"'), ("b", "a\tb")]),
    ("jsonl", "bom", BOM + JSON_A + b"\n" + JSON_B + b"\n", AB),
    ("jsonl", "crlf", JSON_A + b"\r\n" + JSON_B + b"\r\n", AB),
    ("jsonl", "blank lines", b"\n\n" + JSON_A + b"\n \t \n\r\n" + JSON_B + b"\n\n", AB),
    ("jsonl", "no final line end", JSON_A + b"\n" + JSON_B, AB),
    ("jsonl", "indented", b"  " + JSON_A + b"\n\t" + JSON_B + b"  \n", AB),
    ("jsonl", "unicode line ends", '{"id": "a", "text": "x", "z": "\u2028\x85\\n"}'.encode(), [A]),
    (
        "lines",
        "however ended",
        BOM + b"first\r\n\r\n  second \nno \xe9\nlast",
        [("a:0", "first"), ("a:12", "  second "), ("a:22", "bad_encoding"), ("a:27", "last")],
    ),
    ("text", "blank", b" \n", [("a", " \n")]),  # for whoever chunks to reject
    ("text", "bom", BOM + b"x\r\ny", [("a", "x\r\ny")]),
    ("text", "control characters", b"\0\x07\x1b[0m", [("a", "\0\x07\x1b[0m")]),
    ("text", "undecodable", b"caf\xe9", [BAD_A]),
    ("text", "utf-16", "x".encode("utf-16"), [BAD_A]),
    ("wikiextractor", "bom", BOM + WIKI_A + WIKI_B, AB),
    ("wikiextractor", "crlf", (WIKI_A + WIKI_B).replace(b"\n", b"\r\n"), AB),
    ("wikiextractor", "undecodable", WIKI_A.replace(b"x", b"\xe9") + WIKI_B, [BAD_A, AB[1]]),
    (
        "wikiextractor",
        "outside of elements",
        b"stray\n\nlines\n" + WIKI_A + b"\n\n" + WIKI_B + b"end\n",
        [bad("line 1: text outside of <doc>"), *AB, bad("line 12: text outside of <doc>")],
    ),
    (
        "wikiextractor",
        "missing ends",
        WIKI_A + OPEN_B + WIKI_C + OPEN_B,
        [A, bad("line 4: expected </doc>", "b"), ("c", "z"), bad("line 9: expected </doc>", "b")],
    ),
    ("wikiextractor", "no id", WIKI_A + WIKI_B.replace(b' id="b"', b""), [A, (None, "y")]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_any_format_odd_or_damaged_record_is_told_and_costs_no_other(tmp_path, case):
    name, _, content, expected = case
    fill(tmp_path, {"a": content})
    columns = {"title": "title"} if b"title" in content else {}
    rows = documents(tmp_path / "a", columns=columns, format=name)
    assert outcomes(rows) == [outcome[:2] for outcome in expected]
    for row, outcome in zip(rows, expected, strict=True):
        assert ("fault" in row) == (row["text"] is None)
        assert row.get("detail", "").startswith(outcome[2:] or ("",)), row


# Columns


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("parquet", {"id": "key"}, r"id: expected a column 'key' in .*a\.parquet, found id, text"),
        ("parquet", {"title": "head"}, r"title: expected a column 'head'"),
        ("parquet", {"metadata": ["url", "lang"]}, r"metadata\[1\]: expected a column 'lang'"),
        ("csv", {"text": "body"}, r"text: expected a column 'body' in .*a\.csv, found id, text"),
        ("jsonl", {"text": "body"}, r"text: expected a column 'body' in .*, found id, text, title"),
        ("lines", {"title": "title"}, r"title: expected a column 'title'"),
        ("text", {"metadata": ["url"]}, r"metadata\[0\]: expected a column 'url'"),
        ("wikiextractor", {"metadata": ["lang"]}, r"metadata\[0\]: .*found id, url, title, text"),
    ],
)
def test_any_format_absent_column_is_refused_naming_those_present(tmp_path, name, columns, message):
    fill(tmp_path, files_of(name, simple_rows(2)))
    with pytest.raises(SourceError, match=rf"source\.columns\.{message}") as caught:
        documents(tmp_path, **FORMATS[name][2] | {"columns": columns})
    remedy = "If there are no ids: source.columns.id=null makes them of file and position."
    assert caught.value.remedy == (remedy if "id" in columns else "")


@pytest.mark.parametrize("name", ["parquet", "jsonl", "csv"])
def test_any_format_columns_are_found_by_name_in_each_file(tmp_path, name):
    """Also where a name has a dot, as a path into a struct has."""
    file, encode, _ = FORMATS[name]
    row = {"n": "1", "a.text": "y", "a": {"text": "nested"}, "id": "b"}
    fill(tmp_path, {f"a/{file}": encode([{"id": "a", "a.text": "x"}]), f"b/{file}": encode([row])})
    assert outcomes(documents(tmp_path, columns={"text": "a.text"})) == AB


# The same index


def indexed(folder, name, rows):
    fill(folder / "docs", files_of(name, rows))
    config = config_for(
        folder / "docs",
        source={"uri": str(folder / "docs"), "columns": {}} | FORMATS[name][2],
        index={"uri": str(folder / "index")},
        model={"max_length": 64, "dtype": "float32"},
        outputs=["dense", "sparse"],
        chunk={"max_tokens": 64, "overlap": 0},
        slice={"documents": 40 if name == "parquet" else 17},
    )
    manifest = embed_corpus(config)
    assert (manifest.counts.documents, manifest.counts.rejects) == (len(rows), {})
    return open_index(config.index.uri).to_table()


@pytest.mark.parametrize("name", ["nested parquet", "text", "lines"])
def test_any_format_gives_the_passages_texts_and_vectors_of_parquet(tmp_path, real, flat, name):
    rows = (flat if name == "lines" else real)[:30]
    ids = {row["id"]: e[0] for row, e in zip(rows, expected_of(name, rows), strict=True)}
    theirs = indexed(tmp_path / "parquet", "parquet", rows).to_pylist()
    mine = {r["passage_id"]: r for r in indexed(tmp_path / name, name, rows).to_pylist()}
    same = ["passage_no", "text", "n_tokens", "truncated", "char_start", "char_end", "passage_hash"]
    assert len(mine) == len(theirs) > 5 * len(rows)
    for their in theirs:
        my = mine[f"{ids[their['doc_id']]}#{their['passage_no']}"]
        assert {key: my[key] for key in same} == {key: their[key] for key in same}
        assert my["sparse"]["indices"] == their["sparse"]["indices"]
        numbers = [np.float32([*row["dense"], *row["sparse"]["values"]]) for row in (my, their)]
        # A step of fp16: what is beside a passage in a batch moves its last bit.
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-3)
