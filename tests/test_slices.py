"""Slices: always cut in the same places, whatever was done before, and complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError
from actors.models.files import resolve_model
from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer
from pipelines.index.schemas import REJECTS_SCHEMA
from pipelines.passages.rows import passage_blocks
from pipelines.passages.slices import Slice
from pipelines.plan.plan import todo_table
from pipelines.run.engine import EncodeJob, read_slices, slice_reader
from pipelines.source import Source

ROOT = Path(__file__).parents[1]
LOREM = "the quick brown fox jumps over the lazy dog and then some more of it follows here"


def documents(*texts, ids=None, titles=None, urls=None):
    n = len(texts)
    return pa.table(
        {
            "id": pa.array(ids or [f"d{i}" for i in range(n)], pa.string()),
            "text": pa.array(texts, pa.string()),
            "title": pa.array(titles or [f"title {i}" for i in range(n)], pa.string()),
            "url": pa.array(urls or [f"u/{i}" for i in range(n)], pa.string()),
        }
    )


def varied(n):
    """Documents of 0 to 5 passages, a few of them rejects; short cycles that do not align."""
    texts = [LOREM[: 3 + 7 * (i % 11)] * (1 + 9 * (i % 13 == 5)) for i in range(n)]
    for i in range(0, n, 17):
        texts[i] = [None, "", " \n "][i % 3]
    return documents(*texts)


@pytest.fixture
def open_corpus(tmp_path, make_config):
    """(reader, units, config) of a table written as one Parquet file."""

    def make(table, *, group=None, **sections):
        path = tmp_path / "docs.parquet"
        pq.write_table(table, path, row_group_size=group or max(table.num_rows, 1))
        config = make_config(path, **sections)
        source = Source(config.source)
        return slice_reader(config), source.units(source.list_files()), config

    return make


@pytest.fixture
def read(open_corpus):
    """All slices of a table written as one row group."""

    def make(table, **sections):
        reader, [unit], _ = open_corpus(table, **sections)
        return [*reader.slices(unit)]

    return make


def names(pieces):
    return [(piece.first_document, piece.documents) for piece in pieces]


def rejected(piece):
    return [
        (row["doc_id"], row["position"], row["code"], row["final"])
        for row in piece.rejects.to_pylist()
    ]


# Where slices are cut


def test_slices_are_cut_at_so_many_documents(read):
    pieces = read(documents(*[LOREM] * 50), slice={"documents": 20})
    assert names(pieces) == [(0, 20), (20, 20), (40, 10)]
    assert [piece.last for piece in pieces] == [False, False, True]
    assert [piece.unit for piece in pieces] == [0, 0, 0]


def test_slices_exact_multiple_ends_with_a_full_one(read):
    pieces = read(documents(*[LOREM] * 40), slice={"documents": 20})
    assert names(pieces) == [(0, 20), (20, 20)]
    assert [piece.last for piece in pieces] == [False, True]


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 333])
@pytest.mark.parametrize("max_documents", [1, 7, 1000])
def test_slices_end_with_the_document_that_reaches_a_limit(read, max_tokens, max_documents):
    pieces = read(varied(300), slice={"documents": max_documents, "max_tokens": max_tokens})
    tokens = {
        row["position"]: row["n_tokens"] for piece in pieces for row in piece.ledger.to_pylist()
    }
    expected, first, total = [], 0, 0
    for i in range(300):
        total += tokens.get(i, 0)
        if i - first + 1 == max_documents or total >= max_tokens:
            expected.append((first, i - first + 1))
            first, total = i + 1, 0
    if first < 300:
        expected.append((first, 300 - first))
    assert names(pieces) == expected
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_slices_ledger_adds_up_the_passages(read):
    [piece] = read(varied(100), slice={"documents": 1000})
    tokens = {doc_id: [] for doc_id in piece.passages["doc_id"].to_pylist()}
    for row in piece.passages.to_pylist():
        tokens[row["doc_id"]].append(row["n_tokens"])
    assert piece.ledger["doc_id"].to_pylist() == [*tokens]
    assert piece.ledger["n_tokens"].to_pylist() == [sum(each) for each in tokens.values()]
    assert piece.ledger["n_rows"].to_pylist() == [len(each) for each in tokens.values()]
    assert max(piece.ledger["n_rows"].to_pylist()) > 2


@pytest.mark.parametrize(
    "limits",
    [
        {"documents": 1},
        {"documents": 37},
        {"documents": 128},
        {"documents": 1000, "max_tokens": 500},
        {"documents": 13, "max_tokens": 250},
    ],
)
def test_slices_from_any_first_document_are_the_same(open_corpus, limits):
    reader, [unit], _ = open_corpus(varied(290), slice=limits)
    pieces = [*reader.slices(unit, 0, 290)]
    assert len(pieces) >= 3
    step = max(len(pieces) // 12, 1)
    for k in range(0, len(pieces), step):
        first = pieces[k].first_document
        assert [*reader.slices(unit, first, 290)] == pieces[k:]


def test_slices_of_a_gap_are_those_that_were_there(open_corpus):
    reader, [unit], _ = open_corpus(varied(200), slice={"documents": 30, "max_tokens": 400})
    pieces = [*reader.slices(unit, 0, 200)]
    start, stop = pieces[2].first_document, pieces[5].first_document
    assert [*reader.slices(unit, start, stop)] == pieces[2:5]


def test_slices_of_a_unit_start_at_its_own_first_document(open_corpus):
    reader, units, _ = open_corpus(documents(*[LOREM] * 25), group=10, slice={"documents": 6})
    pieces = [*reader.slices(units[2], 0, 5)]
    assert (pieces[0].unit, names(pieces), pieces[0].last) == (2, [(0, 5)], True)
    assert pieces[0].ledger["doc_id"].to_pylist() == [f"d{i}" for i in range(20, 25)]
    assert pieces[0].ledger["position"].to_pylist() == [0, 1, 2, 3, 4]


def test_slices_of_a_unit_cut_by_a_limit_end_there(open_corpus, tmp_path):
    columns = {"title": "title", "metadata": ["url"]}
    source = {"uri": str(tmp_path / "docs.parquet"), "columns": columns, "limit": 25}
    reader, [unit], _ = open_corpus(documents(*[LOREM] * 50), source=source)
    pieces = [*reader.slices(unit)]
    assert names(pieces) == [(0, 20), (20, 5)]
    assert [piece.last for piece in pieces] == [False, True]


def test_slices_of_an_empty_unit_are_one_empty_one(open_corpus):
    reader, [unit], _ = open_corpus(documents(LOREM).slice(0, 0))
    assert unit.documents == 0
    [piece] = reader.slices(unit, 0, 0)
    assert (piece.first_document, piece.documents, piece.last) == (0, 0, True)
    assert piece.passages.num_rows == piece.ledger.num_rows == piece.rejects.num_rows == 0


def test_slices_empty_ones_have_the_types_of_full_ones(open_corpus, read):
    reader, [unit], _ = open_corpus(documents(LOREM).slice(0, 0))
    [empty] = reader.slices(unit, 0, 0)
    [full] = read(documents(LOREM, None))
    assert empty.passages.schema == full.passages.schema
    assert empty.ledger.schema == full.ledger.schema
    assert empty.rejects.schema == full.rejects.schema == REJECTS_SCHEMA


# Rejects


def test_slices_unusable_documents_are_rejects(read):
    [piece] = read(
        documents(LOREM, None, "", " \n\t\u3000", LOREM, LOREM, None, LOREM),
        slice={"documents": 100},
    )
    assert rejected(piece) == [
        ("d1", 1, "null_text", True),
        ("d2", 2, "empty_text", True),
        ("d3", 3, "empty_text", True),
        ("d6", 6, "null_text", True),
    ]
    assert piece.ledger["doc_id"].to_pylist() == ["d0", "d4", "d5", "d7"]
    assert piece.ledger["position"].to_pylist() == [0, 4, 5, 7]


def test_slices_documents_without_id_are_rejects(read):
    [piece] = read(documents(LOREM, LOREM, LOREM, None, ids=[None, "", "a", None]))
    assert rejected(piece) == [
        (None, 0, "missing_id", True),
        ("", 1, "missing_id", True),
        (None, 3, "missing_id", True),
    ]
    assert piece.passages["doc_id"].to_pylist() == ["a"]


def test_slices_first_of_equal_ids_stays(read):
    long = " ".join([LOREM] * 6)
    table = documents(
        "first a", long, None, "second a", "third a", long, ids=["a", "b", "c", "a", "a", "b"]
    )
    [piece] = read(table)
    assert rejected(piece) == [
        ("c", 2, "null_text", True),
        ("a", 3, "duplicate_id", True),
        ("a", 4, "duplicate_id", True),
        ("b", 5, "duplicate_id", True),
    ]
    assert piece.ledger["position"].to_pylist() == [0, 1]
    assert piece.passages["text"].to_pylist()[0] == "first a"
    assert piece.passages["doc_id"].to_pylist() == ["a"] + ["b"] * piece.ledger["n_rows"][1].as_py()
    assert len(set(piece.passages["passage_id"].to_pylist())) == piece.passages.num_rows


def test_slices_rejected_first_of_equal_ids_does_not_take_the_second_along(read):
    [piece] = read(documents(None, LOREM, ids=["a", "a"]))
    assert rejected(piece) == [("a", 0, "null_text", True)]
    assert piece.ledger["position"].to_pylist() == [1]


def test_slices_equal_ids_in_different_slices_both_stay(read):
    """Those are the commit's to find."""
    pieces = read(documents(LOREM, LOREM, ids=["a", "a"]), slice={"documents": 1})
    assert [piece.ledger["doc_id"].to_pylist() for piece in pieces] == [["a"], ["a"]]


def test_slices_all_rejected_is_a_slice_without_passages(read):
    pieces = read(documents(*[None, ""] * 15, LOREM), slice={"documents": 10})
    assert names(pieces) == [(0, 10), (10, 10), (20, 10), (30, 1)]
    assert [piece.rejects.num_rows for piece in pieces] == [10, 10, 10, 0]
    assert [piece.passages.num_rows for piece in pieces] == [0, 0, 0, 1]
    assert pieces[0].passages.schema == pieces[3].passages.schema


def test_slices_account_for_every_document(read):
    for piece in read(varied(300), slice={"documents": 41}):
        positions = piece.ledger["position"].to_pylist() + piece.rejects["position"].to_pylist()
        end = piece.first_document + piece.documents
        assert sorted(positions) == [*range(piece.first_document, end)]


# Rows that travel


@pytest.mark.parametrize("combined", [False, True])
def test_slice_row_among_others_gives_the_slice_back(read, combined):
    pieces = read(varied(120), slice={"documents": 17})
    rows = pa.concat_tables([piece.to_row() for piece in pieces])
    if combined:
        rows = rows.combine_chunks()
    assert rows.num_rows == len(pieces) == 8
    assert [Slice.from_row(rows.slice(i, 1)) for i in range(8)] == pieces


@pytest.mark.parametrize("texts", [[], [None, " "], [LOREM, None]])
def test_slice_row_through_arrow_ipc_gives_the_slice_back(open_corpus, texts):
    table = documents(*texts) if texts else documents(LOREM).slice(0, 0)
    reader, [unit], _ = open_corpus(table)
    [piece] = reader.slices(unit)
    sink = pa.BufferOutputStream()
    row = piece.to_row()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)
    back = Slice.from_row(pa.ipc.open_stream(sink.getvalue()).read_all())
    assert back == piece
    assert back.passages.schema == piece.passages.schema


def test_slice_from_several_rows_is_refused(read):
    row = read(documents(LOREM))[0].to_row()
    with pytest.raises(AssertionError, match="one slice a call, got 2"):
        Slice.from_row(pa.concat_tables([row, row]))


def test_read_slices_of_a_todo_table_are_those_not_done(open_corpus):
    reader, units, config = open_corpus(varied(90), group=40, slice={"documents": 15})
    job = EncodeJob(config, "run", "attempt", "")
    found = [*read_slices(job, reader, todo_table(units, []))]
    expected = [piece for unit in units for piece in reader.slices(unit)]
    assert found == expected
    assert [Slice.from_row(piece.to_row()) for piece in found] == expected
    assert [(piece.unit, piece.last) for piece in expected] == [
        (0, False),
        (0, False),
        (0, True),
        (1, False),
        (1, False),
        (1, True),
        (2, True),
    ]


# Passages


def test_passages_have_the_columns_of_an_output_row(read):
    [piece] = read(documents(LOREM))
    assert piece.passages.schema == pa.schema(
        {
            "doc_id": pa.string(),
            "passage_id": pa.string(),
            "passage_no": pa.int32(),
            "text": pa.string(),
            "title": pa.string(),
            "n_tokens": pa.int32(),
            "truncated": pa.bool_(),
            "char_start": pa.int32(),
            "char_end": pa.int32(),
            "passage_hash": pa.binary(16),
            "url": pa.string(),
            "input_ids": pa.list_(pa.int32()),
        }
    )


def test_passages_without_stored_text_are_otherwise_the_same(read):
    [stored], [bare] = (
        read(varied(20), index={"store_text": store_text}) for store_text in (True, False)
    )
    assert "text" not in bare.passages.column_names
    assert stored.passages.drop_columns(["text"]) == bare.passages
    assert stored.ledger == bare.ledger


def test_passages_are_numbered_within_their_document(read):
    long = " ".join([LOREM] * 8)
    [piece] = read(documents(long, "short", None, long, ids=["a", "b#", "c", "d"]))
    rows = piece.passages.to_pylist()
    n = piece.ledger["n_rows"].to_pylist()
    assert n[1] == 1 < n[0] == n[2]
    expected = [("a", i) for i in range(n[0])] + [("b#", 0)] + [("d", i) for i in range(n[0])]
    assert [(row["doc_id"], row["passage_no"]) for row in rows] == expected
    assert [row["passage_id"] for row in rows] == [f"{doc}#{i}" for doc, i in expected]


def test_passages_of_real_articles_lie_in_their_documents(read, articles):
    sample = articles.slice(0, 60)
    texts = dict(zip(sample["id"].to_pylist(), sample["text"].to_pylist(), strict=True))
    titles = dict(zip(sample["id"].to_pylist(), sample["title"].to_pylist(), strict=True))
    for piece in read(sample):
        for row in piece.passages.to_pylist():
            text = texts[row["doc_id"]]
            assert row["text"] == text[row["char_start"] : row["char_end"]]
            assert row["n_tokens"] == len(row["input_ids"]) <= 96
            assert not row["truncated"]
            assert row["title"] == titles[row["doc_id"]]


def test_passages_truncated_ones_say_so(read):
    [piece] = read(documents("short", " ".join([LOREM] * 9)), chunk={"by": "none"})
    assert piece.passages["truncated"].to_pylist() == [False, True]
    assert piece.passages["n_tokens"].to_pylist()[1] == 128


def test_passages_ids_are_those_of_the_text(read):
    [piece] = read(varied(20))
    tokenizer = TextTokenizer(ensure_tiny_m3(), 128)
    assert piece.passages.num_rows > 20
    for row in piece.passages.select(["text", "input_ids"]).to_pylist():
        assert row["input_ids"] == tokenizer.tokenize([row["text"]]).values.tolist()


def test_passages_metadata_of_any_type_is_copied(read, tmp_path):
    table = documents(LOREM, None, " ".join([LOREM] * 5)).append_column(
        "tags", pa.array([["x", "y"], None, []])
    )
    table = table.append_column("year", pa.array([1999, None, 2001], pa.int16()))
    columns = {"title": "title", "metadata": ["year", "tags", "url"]}
    [piece] = read(table, source={"uri": str(tmp_path / "docs.parquet"), "columns": columns})
    assert piece.passages.schema.field("year").type == pa.int16()
    rows = piece.passages.to_pylist()
    assert (rows[0]["year"], rows[0]["tags"], rows[0]["url"]) == (1999, ["x", "y"], "u/0")
    assert {(row["year"], tuple(row["tags"]), row["url"]) for row in rows[1:]} == {
        (2001, (), "u/2")
    }


@pytest.mark.parametrize(
    "name", ["doc_id", "text", "n_tokens", "passage_hash", "input_ids", "dense"]
)
def test_metadata_named_like_an_output_column_is_refused(make_config, tmp_path, name):
    """Else it would silently take that column's place."""
    columns = {"id": "key", "text": "body", "metadata": [name]}
    with pytest.raises(ConfigError, match=rf"source\.columns\.metadata.*{name}"):
        make_config(tmp_path, source={"uri": str(tmp_path), "columns": columns})


# Hashes


def test_passage_hash_is_equal_where_the_ids_are(read):
    [piece] = read(documents("one two", "one two", "① ②", "1 2", "one three", "one  two"))
    rows = piece.passages.select(["passage_hash", "input_ids"]).to_pylist()
    for a in rows:
        for b in rows:
            same_hash = a["passage_hash"] == b["passage_hash"]
            assert same_hash == (a["input_ids"] == b["input_ids"])
    assert len({row["passage_hash"] for row in rows}) == 3


def test_passage_hash_counts_the_instruction_in(read):
    hashes = [
        read(documents(LOREM), model={"passage_instruction": text})[0].passages["passage_hash"][0]
        for text in ("", "passage: ")
    ]
    assert hashes[0] != hashes[1]


BASE = {"texts": ["some text"], "ids": ["a"], "titles": ["a title"], "urls": ["u/a"]}


def doc_hash_of(read, doc_id="a", **changes):
    fields = BASE | changes
    [piece] = read(documents(*fields.pop("texts"), **fields))
    return {row["doc_id"]: row["doc_hash"] for row in piece.ledger.to_pylist()}[doc_id]


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": ["other text"]},
        {"texts": ["some text "]},
        {"titles": ["other title"]},
        {"titles": [None]},
        {"urls": ["u/b"]},
        {"urls": [None]},
        {"titles": ["u/a"], "urls": ["a title"]},
    ],
)
def test_doc_hash_of_another_content_differs(read, changes):
    assert doc_hash_of(read, **changes) != doc_hash_of(read)


def test_doc_hash_does_not_depend_on_the_id(read):
    assert doc_hash_of(read, doc_id="b", ids=["b"]) == doc_hash_of(read)


def test_doc_hash_does_not_depend_on_neighbours_or_place(read):
    among = doc_hash_of(
        read,
        texts=[None, "x", "some text", "y"],
        ids=["p", "q", "a", "r"],
        titles=["", "t", "a title", None],
        urls=["", "", "u/a", ""],
    )
    assert among == doc_hash_of(read)


def test_doc_hash_does_not_depend_on_how_it_is_chunked(read):
    text = [" ".join([LOREM] * 9)]
    hashes = {
        read(documents(*text), chunk=chunk)[0].ledger["doc_hash"][0].as_py()
        for chunk in ({"by": "none"}, {"max_tokens": 50}, {"max_tokens": 50, "overlap": 20})
    }
    assert len(hashes) == 1


# Before and around it


def test_passage_blocks_budget_beyond_the_model_is_refused(make_config, tmp_path):
    config = make_config(tmp_path / "docs", chunk={"max_tokens": 500})
    with pytest.raises(ConfigError, match=r"chunk\.max_tokens: expected at most 128"):
        passage_blocks(config, resolve_model(config.encoder))


def test_reading_slices_imports_no_torch(open_corpus):
    _, _, config = open_corpus(varied(30))
    script = (
        "import sys\n"
        "from pipelines.config import RunConfig\n"
        "from pipelines.plan.plan import todo_table\n"
        "from pipelines.run.engine import EncodeJob, read_slices, slice_reader\n"
        "from pipelines.source.source import Source\n"
        "config = RunConfig.model_validate_json(sys.stdin.read())\n"
        "source = Source(config.source)\n"
        "units = source.units(source.list_files())\n"
        "job = EncodeJob(config, 'run', 'attempt', '')\n"
        "print(len([*read_slices(job, slice_reader(config), todo_table(units, []))]))\n"
        "print(*sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=config.model_dump_json(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == ["2", ""]
