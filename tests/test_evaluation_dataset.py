"""Judged queries in BEIR's and TREC's files."""

from __future__ import annotations

import gzip
import json

import pytest
from conftest import ROOT
from reading import place

from actors.errors import SourceError
from pipelines.evaluation.dataset import (
    JudgedQueries,
    beir_files,
    read_judged,
    read_qrels,
    read_queries,
    unknown_documents,
)

__all__ = ["place"]

XQUAD = ROOT / "tests/data/xquad-en"
QRELS = {"q1": {"d1": 1, "d 2": 0}, "ü": {"d1": 2}}
TSV = "q1\td1\t1\nq1\td 2\t0\nü\td1\t2\n"


def written(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        TSV,
        "query-id\tcorpus-id\tscore\n" + TSV,
        "\ufeffquery-id\tcorpus-id\tscore\r\n" + TSV.replace("\n", "\r\n"),
        "\n" + TSV.rstrip("\n").replace("\t2", "\t2.0"),
        TSV.replace("\td", "\t0\td"),
    ],
)
def test_qrels_are_read_with_and_without_a_header(tmp_path, content):
    assert read_qrels(written(tmp_path, content)) == QRELS


def test_trec_qrels_are_read_between_any_white_space(tmp_path):
    path = written(tmp_path, "301 0 FR-1  2\n301\t0\tFR-2\t-1\n302 Q0 FR-1 0\n")
    assert read_qrels(path) == {"301": {"FR-1": 2, "FR-2": -1}, "302": {"FR-1": 0}}


def test_queries_and_qrels_are_read_from_any_store_and_compressed(place):
    root, options, put = place
    put("q/queries.jsonl.gz", gzip.compress(b'{"_id": 7, "text": "wo?", "metadata": {}}'))
    put("q/qrels/test.tsv.gz", gzip.compress(b"7\td\t1\n"))
    assert read_queries(f"{root}/q/queries.jsonl.gz", options) == {"7": "wo?"}
    assert read_qrels(f"{root}/q/qrels/test.tsv.gz", options) == {"7": {"d": 1}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q\td\t1\nq\td\n", r"line 2: expected query-id, corpus-id, score .*, found 2 columns"),
        ("q\td\t1\nq\te\thigh\n", r"line 2: expected the relevance as an integer, found 'high'"),
        ("q\td\t0.5\n", r"line 1: expected the relevance as an integer, found '0\.5'"),
        ("q\td\t1\n\nq\td\t2\n", r"line 3: expected one judgement of 'd' .*, found 1 and 2"),
        ("query-id\tcorpus-id\tscore\n", "expected judgements, found none"),
        ("a\tb\tc\nd\te\tf\n", "line 1: expected the relevance"),
        (b"q\td\t1\nq\t\xff\t1\n", "line 2: expected UTF-8"),
    ],
)
def test_bad_qrels_are_refused_with_the_line(tmp_path, content, expected):
    with pytest.raises(SourceError, match=expected):
        read_qrels(written(tmp_path, content))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: expected a JSON object, found no JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"id": "b", "text": "x"}', "line 2: expected '_id' to be a string, found no such key"),
        ('{"_id": true, "text": "x"}', "line 2: expected '_id' to be a string, found bool"),
        ('{"_id": "b", "text": null}', "line 2: expected 'text' to be a string, found NoneType"),
        (r'{"_id": "b", "text": "\ud800"}', "line 2: expected Unicode, found a lone surrogate"),
        ('{"_id": "a", "text": "again"}', "line 2: expected each query once, found 'a' again"),
    ],
)
def test_bad_queries_are_refused_with_the_line(tmp_path, line, expected):
    path = written(tmp_path, f'{{"_id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(SourceError, match=expected):
        read_queries(path)


@pytest.mark.parametrize(
    ("name", "expected"), [("missing.jsonl", "a file, found none"), (".", "a readable file, found")]
)
def test_file_that_is_not_there_is_refused(tmp_path, name, expected):
    with pytest.raises(SourceError, match=expected):
        read_queries(str(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(TSV.encode() * 99, mtime=0)[:-20]],
    ids=["no_gzip", "cut"],
)
def test_damaged_compression_is_refused(tmp_path, content):
    with pytest.raises(SourceError, match=r"file\.gz: expected"):
        read_qrels(written(tmp_path, content, "file.gz"))


def test_only_judged_queries_are_evaluated(tmp_path):
    lines = [{"_id": query, "text": f"{query}?"} for query in ("other", "ü", "q1")]
    queries = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "q")
    judged = read_judged(queries, written(tmp_path, TSV, "r"))
    assert judged == JudgedQueries({"q1": "q1?", "ü": "ü?"}, QRELS)
    assert list(judged.queries) == ["q1", "ü"]
    assert judged.judgements == 3
    assert judged.relevant() == {"d1"}
    assert unknown_documents(judged, ["d 2"]) == {"d1"}


def test_judged_query_without_a_text_is_refused(tmp_path):
    queries = written(tmp_path, '{"_id": "q1", "text": "x"}', "q")
    with pytest.raises(SourceError, match=r"all 2 queries .*, found 1 missing \(ü\)"):
        read_judged(queries, written(tmp_path, TSV, "r"))


def test_beir_folder_of_the_tests_is_whole():
    judged = read_judged(*beir_files(f"{XQUAD}/"))
    lines = (XQUAD / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(judged.queries) == judged.judgements == 426
    assert unknown_documents(judged, [json.loads(line)["_id"] for line in lines]) == set()
