"""The reject table: each kind of bad input between good articles, through a whole run.

Every good article is embedded, every bad row is a reject that says where it is, and nothing else.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import EmbedError
from pipelines.config import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.records import Manifest

SMALL = {
    "model": {"max_length": 64},
    "outputs": ["dense"],
    "chunk": {"by": "none", "max_tokens": None, "overlap": 0},
    "slice": {"documents": 50},
    "ray": {"actors": 1},  # loading a model twice is what would take the time here
}
Reject = tuple[str | None, int, int, str, bool]
"""doc_id, unit, position, code, final."""


def config_of(make_config: Any, source: Path | str, **columns: Any) -> RunConfig:
    columns = {"title": "title", "metadata": []} | columns
    config: RunConfig = make_config(source, source={"columns": columns}, **SMALL)
    return config


def parts_of(config: RunConfig) -> list[Path]:
    """What was ever encoded: a slice encoded again would leave another part."""
    return sorted(Path(config.index.uri).glob("data/*/*.parquet"))


def reject_files_of(config: RunConfig) -> int:
    return len(list(Path(config.index.uri).glob("rejects/*/*.parquet")))


def check(config: RunConfig, manifest: Manifest, good: pa.Table, bad: list[Reject]) -> None:
    """The index holds these articles and these rejects, and its manifest counts them."""
    index = open_index(config.index.uri)
    live = index.to_table(["doc_id", "passage_no", "text", "title", "dense"]).to_pylist()
    expected = {row["id"]: (row["text"], row["title"]) for row in good.to_pylist()}
    assert {row["doc_id"]: (row["text"], row["title"]) for row in live} == expected
    assert len(live) == len(expected) == good.num_rows
    assert all(any(row["dense"]) for row in live)
    assert sorted(index.documents()["doc_id"].to_pylist()) == sorted(expected)
    rows = index.rejects().to_pylist()
    found = [(r["doc_id"], r["unit"], r["position"], r["code"], r["final"]) for r in rows]
    assert sorted(found, key=repr) == sorted(bad, key=repr)
    assert manifest.counts.rejects == dict(sorted(Counter(row[3] for row in bad).items()))
    assert manifest.counts.documents == manifest.counts.passages == good.num_rows
    assert index.info == manifest


def mixed(good: list[Any], bad: list[Any], every: int = 4) -> tuple[list[Any], list[int]]:
    """(bad ones put between good ones, the positions of the bad ones)."""
    rows, places = list(good), []
    for number, row in enumerate(bad):
        place = (number + 1) * every
        rows.insert(place, row)
        places.append(place)
    return rows, places


# JSON lines: plain files, and a compressed one that breaks off


def json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


# (line, doc_id of its reject, code)
BAD_LINES = [
    (b'{"id": "j0", "text": "cut off', None, "bad_record"),
    (b"id,text", None, "bad_record"),
    (b'["a", "b"]', None, "bad_record"),
    (b"[" * 5000, None, "bad_record"),
    (b'{"id": "j4", "title": "no text"}', "j4", "bad_record"),
    (b'{"id": "j5", "text": 5}', "j5", "bad_record"),
    (b'{"id": 1.5, "text": "a float"}', None, "bad_record"),
    (b'{"text": "no id"}', None, "missing_id"),
    (b'{"id": null, "text": "no id"}', None, "missing_id"),
    (b'{"id": "", "text": "no id"}', "", "missing_id"),
    (b'{"id": "j10", "text": null}', "j10", "null_text"),
    (b'{"id": "j11", "text": ""}', "j11", "empty_text"),
    (b'{"id": "j12", "text": " \\n\\t\\u00a0"}', "j12", "empty_text"),
    (b'{"id": "j13", "text": "caf\xe9"}', "j13", "bad_encoding"),
    (b'{"id": "j14", "text": "x", "title": "caf\xe9"}', "j14", "bad_encoding"),
    (b'{"id": "j15", "text": "lone \\ud800"}', "j15", "bad_encoding"),
]


def test_rejects_of_json_lines_are_told_apart_and_everything_else_is_embedded(
    tmp_path: Path, make_config: Any, articles: pa.Table, ray_cluster: None
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    good = articles.slice(0, 300)
    lines = [json_line(row) for row in good.to_pylist()]
    first, second = good["id"][0].as_py(), good["id"][299].as_py()
    doubles = [
        json_line({"id": "twin", "text": "the second, in the same slice"}),
        json_line({"id": first, "text": "the second, in another file"}),
    ]
    twin = json_line({"id": "twin", "text": "the first", "title": None, "url": None})
    a, bad_a = mixed(lines[:150], [line for line, _, _ in BAD_LINES])
    b, bad_b = mixed([twin, *lines[150:]], doubles, every=5)
    # Also a double in another slice of the same file, of which the earlier one stays.
    a.append(json_line(good.slice(1, 1).to_pylist()[0] | {"text": "the second, in another slice"}))
    (docs / "a.jsonl").write_bytes(b"\n".join(a) + b"\n")
    (docs / "b.jsonl").write_bytes(b"\r\n\r\n".join(b))
    broken = articles.slice(300, 700)
    content = gzip.compress(b"\n".join(json_line(row) for row in broken.to_pylist()))
    (docs / "c.jsonl.gz").write_bytes(content[: len(content) // 2])

    config = config_of(make_config, docs)
    message = r"1 of 3 units cannot be read \(first: .*c\.jsonl\.gz\)"
    with pytest.raises(EmbedError, match=message) as caught:
        embed_corpus(config)
    assert caught.value.exit_code == 1
    assert "allow_unreadable_units=true" in caught.value.remedy
    parts, tries = parts_of(config), reject_files_of(config)
    with pytest.raises(EmbedError, match=message):
        embed_corpus(config)  # tried again: its reject is written again, nothing is encoded again
    assert (parts_of(config), reject_files_of(config)) == (parts, tries + 1)
    update = {"allow_unreadable_units": True, "max_reject_fraction": 0.2}
    manifest = embed_corpus(config.model_copy(update=update))
    assert parts_of(config) == parts

    index = open_index(config.index.uri)
    [unreadable] = [r for r in index.rejects().to_pylist() if r["code"] == "unreadable_unit"]
    before = unreadable["position"]
    assert before % 50 == 0  # in whole slices
    assert 100 < before < 500
    assert "c.jsonl.gz: cannot be read (Truncated" in unreadable["detail"]
    bad: list[Reject] = [
        (doc_id, 0, place, code, True)
        for place, (_, doc_id, code) in zip(bad_a, BAD_LINES, strict=True)
    ]
    bad += [
        (good["id"][1].as_py(), 0, len(a) - 1, "duplicate_id", True),
        ("twin", 1, bad_b[0], "duplicate_id", True),
        (first, 1, bad_b[1], "duplicate_id", True),
        (None, 2, before, "unreadable_unit", False),
    ]
    embedded = pa.concat_tables(
        [
            good.select(["id", "title", "text"]),
            pa.table({"id": ["twin"], "title": pa.nulls(1, pa.string()), "text": ["the first"]}),
            broken.slice(0, before).select(["id", "title", "text"]),
        ]
    )
    assert second in embedded["id"].to_pylist()
    check(config, manifest, embedded, bad)


# Parquet: row groups, of which one is damaged


def bad_articles(schema: pa.Schema, first: str) -> tuple[pa.Table, list[tuple[str | None, str]]]:
    """(rows, (doc_id of the reject, code) of each)."""
    rows = [
        ("null", "t", None, "null_text"),
        ("empty", "t", "", "empty_text"),
        ("blank", "t", " \n\t\u2003 ", "empty_text"),
        (None, "t", "no id", "missing_id"),
        ("", "t", "an empty id", "missing_id"),
        (first, "t", "an id in another slice", "duplicate_id"),
        ("bytes", "t", b"caf\xe9", "bad_encoding"),
        ("title", b"caf\xe9", "text", "bad_encoding"),
        (b"\xff", "t", "text", "bad_encoding"),
    ]

    def raw(values: list[Any]) -> pa.Array:
        encoded = [value.encode() if isinstance(value, str) else value for value in values]
        return pa.array(encoded, pa.binary()).view(pa.string())

    ids, titles, texts, codes = (list(column) for column in zip(*rows, strict=True))
    columns = {"id": raw(ids), "url": pa.nulls(len(rows), pa.string())}
    table = pa.table(columns | {"title": raw(titles), "text": raw(texts)}, schema=schema)
    shown = [doc_id if isinstance(doc_id, str) else None for doc_id in ids]
    return table, list(zip(shown, codes, strict=True))


def flip_bytes_of(path: Path, row_group: int, column: int) -> None:
    """Damage one column chunk, in the middle of its compressed data."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(column)
    assert chunk.compression == "ZSTD"
    content = bytearray(path.read_bytes())
    middle = (chunk.dictionary_page_offset or chunk.data_page_offset) + (
        chunk.total_compressed_size // 2
    )
    for at in range(middle, middle + 16):
        content[at] ^= 0xFF
    path.write_bytes(content)


def test_rejects_of_parquet_are_told_apart_and_everything_else_is_embedded(
    tmp_path: Path, make_config: Any, articles: pa.Table
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    good, schema = articles.slice(0, 300), articles.schema
    rows, codes = bad_articles(schema, good["id"][0].as_py())
    # a: one row group with bad rows in the middle; b: three, of which the second is damaged.
    a = pa.concat_tables([good.slice(0, 60), rows, good.slice(60, 60)])
    twin = good.slice(180, 1).set_column(3, "text", pa.array(["the second, in the same slice"]))
    other = good.slice(2, 1).set_column(3, "text", pa.array(["the second, in another file"]))
    b = pa.concat_tables([good.slice(120, 98), twin, other])
    lost = articles.slice(400, 100)
    c = good.slice(218, 82)
    pq.write_table(a, docs / "a.parquet", compression="zstd")
    with pq.ParquetWriter(docs / "b.parquet", schema, compression="zstd") as writer:
        for table in (b, lost, c):
            writer.write_table(table)
    flip_bytes_of(docs / "b.parquet", 1, 3)

    config = config_of(make_config, docs)
    with pytest.raises(EmbedError, match=r"1 of 4 units .*b\.parquet, row group 1\)"):
        embed_corpus(config)
    parts = parts_of(config)
    update = {"allow_unreadable_units": True, "max_reject_fraction": 0.05}
    manifest = embed_corpus(config.model_copy(update=update))
    [unreadable] = [
        row
        for row in open_index(config.index.uri).rejects().to_pylist()
        if row["code"] == "unreadable_unit"
    ]
    before = unreadable["position"]
    assert parts_of(config) == parts
    assert before in (0, 50)
    bad: list[Reject] = [(doc_id, 0, 60 + i, code, True) for i, (doc_id, code) in enumerate(codes)]
    bad += [
        (good["id"][180].as_py(), 1, 98, "duplicate_id", True),
        (good["id"][2].as_py(), 1, 99, "duplicate_id", True),
        (None, 2, before, "unreadable_unit", False),
    ]
    check(config, manifest, pa.concat_tables([good, lost.slice(0, before)]), bad)


# CSV


def csv_field(value: str | None) -> bytes:
    return b'"' + (value or "").replace('"', '""').encode() + b'"'


BAD_RECORDS = [
    (b'c0,"never closed', None, "bad_record"),
    (b'c1,"closed" too early,t', None, "bad_record"),
    (b"c2", None, "bad_record"),
    (b"c3,one,field,too,many", None, "bad_record"),
    (b",no id,t", "", "missing_id"),
    (b"c5,,t", "c5", "empty_text"),
    (b'c6,"  \n ",t', "c6", "empty_text"),
    (b"c7,caf\xe9,t", "c7", "bad_encoding"),
    (b"c8,x,caf\xe9", "c8", "bad_encoding"),
    (b"c\xe99,x,t", None, "bad_encoding"),
]


def test_rejects_of_csv_are_told_apart_and_everything_else_is_embedded(
    tmp_path: Path, make_config: Any, articles: pa.Table
) -> None:
    good = articles.slice(0, 300).select(["id", "text", "title"])
    lines = [b",".join(map(csv_field, row.values())) for row in good.to_pylist()]
    first = good["id"][0].as_py()
    rows, places = mixed(lines, [line for line, _, _ in BAD_RECORDS], every=25)
    rows.append(f"{first},another,t".encode())
    (tmp_path / "a.csv").write_bytes(b"\r\n".join([b"id,text,title", *rows]))
    config = config_of(make_config, tmp_path / "a.csv")
    with pytest.raises(EmbedError, match=r"11 of 311 documents .*max_reject_fraction"):
        embed_corpus(config)
    parts = parts_of(config)
    manifest = embed_corpus(config.model_copy(update={"max_reject_fraction": 0.04}))
    assert parts_of(config) == parts
    bad: list[Reject] = [
        (doc_id, 0, place, code, True)
        for place, (_, doc_id, code) in zip(places, BAD_RECORDS, strict=True)
    ]
    check(config, manifest, good, [*bad, (first, 0, 310, "duplicate_id", True)])


# What must embed all the same


def test_documents_that_are_only_odd_are_embedded(
    tmp_path: Path, make_config: Any, articles: pa.Table, ray_cluster: None
) -> None:
    book = "\n\n".join(articles["text"].to_pylist())
    rows = [
        {
            "id": "long",
            "title": "of 50 MB",
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
    config = config_of(make_config, tmp_path / "a.jsonl")
    manifest = embed_corpus(config)
    titles = [str(row["title"]) if "title" in row else None for row in rows]
    table = {
        "id": [str(row["id"]) for row in rows],
        "text": [row["text"] for row in rows],
        "title": pa.array(titles, pa.string()),
    }
    check(config, manifest, pa.table(table), [])
    truncated = open_index(config.index.uri).to_table(["doc_id", "truncated"]).to_pylist()
    assert {r["doc_id"] for r in truncated if r["truncated"]} >= {"long"}
