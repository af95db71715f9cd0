"""The reject table: each kind of bad input between good articles, through a whole run.

Every good article is embedded, every bad row is a reject that says where it is, and nothing else.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import EmbedError
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index

SMALL = {
    "model": {"max_length": 64},
    "outputs": ["dense"],
    "chunk": {"by": "none", "max_tokens": None, "overlap": 0},
    "slice": {"documents": 50},
    "ray": {"actors": 1},  # loading a model twice is what would take the time here
}
COLUMNS = {"title": "title", "metadata": []}


def files_of(config, place):
    """Parts: what was ever encoded; a slice encoded again would leave another one."""
    return sorted(Path(config.index.uri).glob(f"{place}/*/*.parquet"))


def allowing(config, **update):
    return embed_corpus(config.model_copy(update=update))


def check(config, manifest, good, bad):
    """The index holds these articles and these rejects, and its manifest counts them.

    `bad`: doc_id, unit, position, code; final but for unreadable units.
    """
    index = open_index(config.index.uri)
    live = index.to_table(["doc_id", "passage_no", "text", "title", "dense"]).to_pylist()
    expected = {row["id"]: (row["text"], row["title"]) for row in good.to_pylist()}
    assert {row["doc_id"]: (row["text"], row["title"]) for row in live} == expected
    assert len(live) == len(expected) == good.num_rows
    assert all(any(row["dense"]) for row in live)
    assert sorted(index.documents()["doc_id"].to_pylist()) == sorted(expected)
    rows = index.rejects().to_pylist()
    found = [(row["doc_id"], row["unit"], row["position"], row["code"]) for row in rows]
    assert sorted(found, key=repr) == sorted(bad, key=repr)
    assert all(row["final"] == (row["code"] != "unreadable_unit") for row in rows)
    assert manifest.counts.rejects == dict(sorted(Counter(row[3] for row in bad).items()))
    assert manifest.counts.documents == manifest.counts.passages == good.num_rows
    assert index.info == manifest


def unreadable_of(config):
    rows = open_index(config.index.uri).rejects().to_pylist()
    [unreadable] = [row for row in rows if row["code"] == "unreadable_unit"]
    return unreadable


def mixed(good, bad, every):
    """(bad ones put between good ones, the positions of the bad ones)."""
    rows, places = list(good), [(number + 1) * every for number in range(len(bad))]
    for place, row in zip(places, bad, strict=True):
        rows.insert(place, row)
    return rows, places


def json_line(row):
    return json.dumps(row, ensure_ascii=False).encode()


# JSON lines: plain files, and a compressed one that breaks off. (line, doc_id of its reject, code)
BAD_LINES = [
    (b'{"id": "j0", "text": "cut off', None, "bad_record"),
    (b"[" * 5000, None, "bad_record"),
    (b'{"id": "j4", "title": "no text"}', "j4", "bad_record"),
    (b'{"id": 1.5, "text": "a float"}', None, "bad_record"),
    (b'{"text": "no id"}', None, "missing_id"),
    (b'{"id": "", "text": "no id"}', "", "missing_id"),
    (b'{"id": "j10", "text": null}', "j10", "null_text"),
    (b'{"id": "j12", "text": " \\n\\t\\u00a0"}', "j12", "empty_text"),
    (b'{"id": "j13", "text": "caf\xe9"}', "j13", "bad_encoding"),
    (b'{"id": "j14", "text": "x", "title": "caf\xe9"}', "j14", "bad_encoding"),
    (b'{"id": "j15", "text": "lone \\ud800"}', "j15", "bad_encoding"),
]


def test_rejects_of_json_lines_are_told_apart_and_everything_else_is_embedded(
    tmp_path, make_config, articles
):
    docs = tmp_path / "docs"
    docs.mkdir()
    good = articles.slice(0, 300).select(["id", "title", "text"])
    lines = [json_line(row) for row in good.to_pylist()]
    first, second = good["id"][0].as_py(), good["id"][1].as_py()
    a, bad_a = mixed(lines[:150], [line for line, *_ in BAD_LINES], every=4)
    a.append(json_line({"id": second, "text": "the second, in another slice"}))
    doubles = [
        json_line({"id": "twin", "text": "the second, in the same slice"}),
        json_line({"id": first, "text": "the second, in another file"}),
    ]
    b, bad_b = mixed([json_line({"id": "twin", "text": "one"}), *lines[150:]], doubles, every=5)
    (docs / "a.jsonl").write_bytes(b"\n".join(a) + b"\n")
    (docs / "b.jsonl").write_bytes(b"\r\n\r\n".join(b))
    broken = articles.slice(300, 700).select(["id", "title", "text"])
    content = gzip.compress(b"\n".join(json_line(row) for row in broken.to_pylist()))
    (docs / "c.jsonl.gz").write_bytes(content[: len(content) // 2])

    config = make_config(docs, source={"columns": COLUMNS}, **SMALL)
    message = r"1 of 3 units cannot be read \(first: .*c\.jsonl\.gz\)"
    with pytest.raises(EmbedError, match=message) as caught:
        embed_corpus(config)
    assert caught.value.exit_code == 1
    assert "allow_unreadable_units=true" in caught.value.remedy
    parts, tries = files_of(config, "data"), len(files_of(config, "rejects"))
    with pytest.raises(EmbedError, match=message):
        embed_corpus(config)  # tried again: its reject is written again, nothing is encoded again
    assert len(files_of(config, "rejects")) == tries + 1
    manifest = allowing(config, allow_unreadable_units=True, max_reject_fraction=0.2)
    assert files_of(config, "data") == parts

    unreadable = unreadable_of(config)
    before = unreadable["position"]
    assert before % 50 == 0  # in whole slices
    assert 100 < before < 500
    assert "c.jsonl.gz: cannot be read (Truncated" in unreadable["detail"]
    bad = [(i, 0, place, code) for place, (_, i, code) in zip(bad_a, BAD_LINES, strict=True)]
    bad += [
        (second, 0, len(a) - 1, "duplicate_id"),
        ("twin", 1, bad_b[0], "duplicate_id"),
        (first, 1, bad_b[1], "duplicate_id"),
        (None, 2, before, "unreadable_unit"),
    ]
    twin = pa.table({"id": ["twin"], "title": pa.nulls(1, pa.string()), "text": ["one"]})
    check(config, manifest, pa.concat_tables([good, twin, broken.slice(0, before)]), bad)


# Parquet: row groups, of which one is damaged. (id, title, text, code)
BAD_ROWS = [
    ("null", "t", None, "null_text"),
    ("blank", "t", " \n\t\u2003 ", "empty_text"),
    (None, "t", "no id", "missing_id"),
    ("", "t", "an empty id", "missing_id"),
    ("bytes", "t", b"caf\xe9", "bad_encoding"),
    ("title", b"caf\xe9", "text", "bad_encoding"),
    (b"\xff", "t", "text", "bad_encoding"),
]


def raw(values):
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return pa.array(encoded, pa.binary()).view(pa.string())


def flip_bytes_of(path, row_group, column):
    """Damage one column chunk, in the middle of its compressed data."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(column)
    assert chunk.compression == "ZSTD"
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    for at in range(16):
        content[start + chunk.total_compressed_size // 2 + at] ^= 0xFF
    path.write_bytes(content)


def test_rejects_of_parquet_are_told_apart_and_everything_else_is_embedded(
    tmp_path, make_config, articles
):
    docs = tmp_path / "docs"
    docs.mkdir()
    articles = articles.select(["id", "title", "text"])
    good, lost = articles.slice(0, 300), articles.slice(400, 100)
    ids, titles, texts, codes = (list(column) for column in zip(*BAD_ROWS, strict=True))
    rows = pa.table([raw(ids), raw(titles), raw(texts)], schema=good.schema)
    # a: one row group with bad rows in the middle; b: three, of which the second is damaged.
    a = pa.concat_tables([good.slice(0, 60), rows, good.slice(60, 60)])
    doubles = pa.concat_tables([good.slice(180, 1), good.slice(2, 1)])  # of this slice, of a file
    b = pa.concat_tables(
        [good.slice(120, 98), doubles.set_column(2, "text", pa.array(["2nd"] * 2))]
    )
    pq.write_table(a, docs / "a.parquet", compression="zstd")
    with pq.ParquetWriter(docs / "b.parquet", good.schema, compression="zstd") as writer:
        for table in (b, lost, good.slice(218, 82)):
            writer.write_table(table)
    flip_bytes_of(docs / "b.parquet", 1, 2)

    config = make_config(docs, source={"columns": COLUMNS}, **SMALL)
    with pytest.raises(EmbedError, match=r"1 of 4 units .*b\.parquet, row group 1\)"):
        embed_corpus(config)
    parts = files_of(config, "data")
    with pytest.raises(EmbedError, match=r"9 of 309 documents .*max_reject_fraction"):
        allowing(config, allow_unreadable_units=True)
    manifest = allowing(config, allow_unreadable_units=True, max_reject_fraction=0.05)
    assert files_of(config, "data") == parts
    before = unreadable_of(config)["position"]
    assert before in (0, 50)
    shown = [doc_id if isinstance(doc_id, str) else None for doc_id in ids]
    bad = [(i, 0, 60 + n, code) for n, (i, code) in enumerate(zip(shown, codes, strict=True))]
    bad += [(i, 1, 98 + n, "duplicate_id") for n, i in enumerate(doubles["id"].to_pylist())]
    bad.append((None, 2, before, "unreadable_unit"))
    check(config, manifest, pa.concat_tables([good, lost.slice(0, before)]), bad)


def test_documents_that_are_only_odd_are_embedded(tmp_path, make_config, articles, ray_cluster):
    book = "\n\n".join(articles["text"].to_pylist())
    rows = [
        {
            "id": "long",
            "title": "50 MB",
            "text": (book * (50_000_000 // len(book) + 1))[:50_000_000],
        },
        {"id": "control", "text": "a\0b\x07c\x1b[0m d\x85e\u2028f\ufffeg\x7f"},
        {"id": "only control", "text": "\0\x01"},
        {"id": "no letters", "text": "\u200b\ufeff"},
        {"id": "one character", "text": "\U0010ffff"},
        {"id": "id with\nline end #1", "text": "x"},
        {"id": "one word", "text": "x" * 1_000_000},
        {"id": 17, "text": "a number as id", "title": 5},
        {"id": "other bytes", "text": "x", "unused": "caf?"},
    ]
    content = b"\n".join(json_line(row) for row in rows).replace(b"caf?", b"caf\xe9")
    (tmp_path / "a.jsonl").write_bytes(content)
    config = make_config(tmp_path / "a.jsonl", source={"columns": COLUMNS}, **SMALL)
    manifest = embed_corpus(config)
    good = [
        {"id": str(row["id"]), "text": row["text"], "title": str(row.get("title", "")) or None}
        for row in rows
    ]
    check(config, manifest, pa.Table.from_pylist(good), [])
    truncated = open_index(config.index.uri).to_table(["doc_id", "truncated"]).to_pylist()
    assert {row["doc_id"] for row in truncated if row["truncated"]} >= {"long"}
