"""The same articles in every format give the same index: passages, texts and vectors.

Parquet is read on Ray, the others by the same code in this process: Ray knows no formats.
"""

from __future__ import annotations

import csv
import gzip
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for

from pipelines.config import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index

COUNT = 150
TOLERANCE = 1e-3
"""A step of fp16: slices end elsewhere, and what is beside a passage in a batch moves its last bit
(of the tiny model on CPUs: by 2e-7, in sparse weights only)."""

Rows = list[dict[str, str]]


def write_parquet(folder: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=70)


def write_nested(folder: Path, rows: Rows) -> None:
    nested = [
        {"meta": {"id": row["id"], "url": row["url"]}, "page": {"title": row["title"], "b": row}}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(nested), folder / "a.parquet")


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_jsonl(folder: Path, rows: Rows) -> None:
    for name, some in (("a", rows[:50]), ("b", rows[50:])):
        (folder / f"{name}.jsonl").write_bytes(json_lines(some))


def write_jsonl_gz(folder: Path, rows: Rows) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(rows)))


def write_jsonl_zst(folder: Path, rows: Rows) -> None:
    packed = pa.Codec("zstd").compress(json_lines(rows), asbytes=True)
    (folder / "a.jsonl.zst").write_bytes(packed)


def write_csv(folder: Path, rows: Rows, name: str = "a.csv", delimiter: str = ",") -> None:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(folder: Path, rows: Rows) -> None:
    write_csv(folder, rows, "a.tsv", "\t")


def write_wikiextractor(folder: Path, rows: Rows) -> None:
    """As WikiExtractor 3 does, in two files."""
    for name, some in (("AA/wiki_00", rows[:85]), ("AA/wiki_01", rows[85:])):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            "".join(
                f'<doc id="{row["id"]}" url="{html.escape(row["url"])}" '
                f'title="{html.escape(row["title"])}">\n'
                f"{html.escape(row['title'])}\n\n"
                f"{html.escape(row['text'], quote=False)}\n\n</doc>\n"
                for row in some
            ),
            encoding="utf-8",
        )


def write_text(folder: Path, rows: Rows) -> None:
    """A file's name is its document's id."""
    for row in rows:
        (folder / row["id"]).write_bytes(row["text"].encode())


def write_lines(folder: Path, rows: Rows) -> None:
    (folder / "a.txt").write_bytes("".join(row["text"] + "\n" for row in rows).encode())


NAMED = {"title": "title", "metadata": ["url"]}
NESTED = {
    "id": "meta.id",
    "text": "page.b.text",
    "title": "page.title",
    "metadata": ["meta.url"],
}
FORMATS: dict[str, tuple[Callable[[Path, Rows], None], dict[str, Any]]] = {
    "jsonl": (write_jsonl, {"columns": NAMED}),
    "jsonl.gz": (write_jsonl_gz, {"columns": NAMED}),
    "jsonl.zst": (write_jsonl_zst, {"columns": NAMED}),
    "csv": (write_csv, {"columns": NAMED}),
    "tsv": (write_tsv, {"columns": NAMED}),
    "wikiextractor": (write_wikiextractor, {"columns": NAMED}),
    "nested parquet": (write_nested, {"columns": NESTED}),
    "text": (
        write_text,
        {"format": "text", "uri": "*", "columns": {"title": None, "metadata": []}},
    ),
    "lines": (write_lines, {"format": "lines", "columns": {"title": None, "metadata": []}}),
}


def config_of(folder: Path, source: dict[str, Any]) -> RunConfig:
    uri = str(folder / "docs" / source.get("uri", ""))
    return config_for(
        uri,
        source=source | {"uri": uri},
        index={"uri": str(folder / "index")},
        model={"max_length": 64, "dtype": "float32"},
        outputs=["dense", "sparse"],
        chunk={"max_tokens": 64, "overlap": 0},
        slice={"documents": 40},
        ray={"actors": 1},
    )


def embedded(folder: Path, rows: Rows, write: Any, source: dict[str, Any]) -> pa.Table:
    """The rows of an index of these documents, by document and passage."""
    (folder / "docs").mkdir(parents=True)
    write(folder / "docs", rows)
    config = config_of(folder, source)
    manifest = embed_corpus(config)
    assert manifest.counts.documents == len(rows)
    assert manifest.counts.rejects == {}
    table = open_index(config.index.uri).to_table()
    return table.rename_columns([name.removeprefix("meta.") for name in table.column_names])


def by_passage(table: pa.Table, ids: list[str]) -> list[dict[str, Any]]:
    place = {doc_id: i for i, doc_id in enumerate(ids)}
    return sorted(table.to_pylist(), key=lambda row: (place[row["doc_id"]], row["passage_no"]))


@pytest.fixture(scope="module")
def rows(articles: pa.Table) -> Rows:
    """Articles that no format changes: some formats do not keep white space around a text."""
    found: Rows = articles.slice(0, COUNT).to_pylist()
    return [row | {"text": row["text"].strip()} for row in found]


@pytest.fixture(scope="module")
def flat_rows(rows: Rows) -> Rows:
    """The same, each text on one line."""
    return [row | {"text": " ".join(row["text"].split())} for row in rows]


def parquet_rows(folder: Path, documents: Rows) -> list[dict[str, Any]]:
    table = embedded(folder, documents, write_parquet, {"columns": NAMED})
    return by_passage(table, [row["id"] for row in documents])


@pytest.fixture(scope="module")
def of_parquet(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The index rows that other formats are compared with."""
    return parquet_rows(tmp_path_factory.mktemp("parquet"), rows)


@pytest.fixture(scope="module")
def flat_of_parquet(
    flat_rows: Rows, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The same of the flat ones."""
    return parquet_rows(tmp_path_factory.mktemp("flat"), flat_rows)


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_gives_the_passages_texts_and_vectors_of_parquet(
    tmp_path: Path,
    rows: Rows,
    flat_rows: Rows,
    of_parquet: list[dict[str, Any]],
    flat_of_parquet: list[dict[str, Any]],
    name: str,
) -> None:
    write, source = FORMATS[name]
    documents, expected = (flat_rows, flat_of_parquet) if name == "lines" else (rows, of_parquet)
    table = embedded(tmp_path, documents, write, source)
    ids = [row["id"] for row in documents]
    if name == "lines":  # whose ids are places
        offsets = np.cumsum([0] + [len(row["text"].encode()) + 1 for row in documents])
        ids = [f"a.txt:{offset}" for offset in offsets[:-1]]
    found = by_passage(table, ids)
    place = dict(zip([row["id"] for row in documents], ids, strict=True))
    same = ["passage_no", "text", "n_tokens", "truncated", "char_start", "char_end", "passage_hash"]
    if name not in ("text", "lines"):
        same += ["title", "url"]
    assert len(found) == len(expected) > 5 * COUNT
    for mine, theirs in zip(found, expected, strict=True):
        assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
        assert mine["passage_id"] == f"{place[theirs['doc_id']]}#{theirs['passage_no']}"
        assert mine["sparse"]["indices"] == theirs["sparse"]["indices"]
    for column, part in (("dense", None), ("sparse", "values")):
        a, b = (
            np.concatenate([row[column] if part is None else row[column][part] for row in each])
            for each in (found, expected)
        )
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), rtol=0, atol=TOLERANCE
        )
