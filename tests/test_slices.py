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


def documents(*texts, **columns):
    n = len(texts)
    names = {"id": "d{}", "title": "title {}", "url": "u/{}"}
    made = {name: [form.format(i) for i in range(n)] for name, form in names.items()}
    made = {"text": texts} | made | {name.removesuffix("s"): c for name, c in columns.items()}
    return pa.table({name: pa.array(values, pa.string()) for name, values in made.items()})


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
        columns = {"title": "title", "metadata": ["url"]}
        source = {"uri": str(path), "columns": columns} | sections.pop("source", {})
        config = make_config(path, source=source, **sections)
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
    """(first document, documents, is the last) of each."""
    return [(piece.first_document, piece.documents, piece.last) for piece in pieces]


def rejected(piece):
    rows = piece.rejects.to_pylist()
    assert all(row["final"] for row in rows)
    return [(row["doc_id"], row["position"], row["code"]) for row in rows]


# Where slices are cut


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 333, None])
@pytest.mark.parametrize("max_documents", [1, 7, 20, 1000])
def test_slices_end_with_the_document_that_reaches_a_limit(read, max_tokens, max_documents):
    limits = {"documents": max_documents, "max_tokens": max_tokens or 1 << 20}
    pieces = read(varied(300), slice=limits)
    tokens = {
        row["position"]: row["n_tokens"] for piece in pieces for row in piece.ledger.to_pylist()
    }
    expected, first, total = [], 0, 0
    for i in range(300):
        total += tokens.get(i, 0)
        if i - first + 1 == max_documents or total >= limits["max_tokens"] or i == 299:
            expected.append((first, i - first + 1, i == 299))
            first, total = i + 1, 0
    assert names(pieces) == expected  # also where the last is a full one
    for piece in pieces:  # every document is accounted for
        positions = piece.ledger["position"].to_pylist() + piece.rejects["position"].to_pylist()
        end = piece.first_document + piece.documents
        assert sorted(positions) == [*range(piece.first_document, end)]


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
    for k in range(0, len(pieces), max(len(pieces) // 12, 1)):
        assert [*reader.slices(unit, pieces[k].first_document, 290)] == pieces[k:]
    start, stop = pieces[1].first_document, pieces[-1].first_document  # a gap
    assert [*reader.slices(unit, start, stop)] == pieces[1:-1]


def test_slices_of_a_unit_start_at_its_own_first_document(open_corpus):
    reader, units, _ = open_corpus(documents(*[LOREM] * 25), group=10, slice={"documents": 6})
    [piece] = reader.slices(units[2], 0, 5)
    assert (piece.unit, names([piece])) == (2, [(0, 5, True)])
    assert piece.ledger["doc_id"].to_pylist() == [f"d{i}" for i in range(20, 25)]
    assert piece.ledger["position"].to_pylist() == [0, 1, 2, 3, 4]


def test_slices_of_a_unit_cut_by_a_limit_end_there(read):
    pieces = read(documents(*[LOREM] * 50), source={"limit": 25})
    assert names(pieces) == [(0, 20, False), (20, 5, True)]


def test_slices_of_an_empty_unit_are_one_empty_one_with_the_types_of_a_full_one(open_corpus, read):
    reader, [unit], _ = open_corpus(documents(LOREM).slice(0, 0))
    assert unit.documents == 0
    [empty] = reader.slices(unit, 0, 0)
    assert names([empty]) == [(0, 0, True)]
    assert empty.passages.num_rows == empty.ledger.num_rows == empty.rejects.num_rows == 0
    [full] = read(documents(LOREM, None))
    assert empty.passages.schema == full.passages.schema
    assert empty.ledger.schema == full.ledger.schema
    assert empty.rejects.schema == full.rejects.schema == REJECTS_SCHEMA


# Rejects


def test_slices_unusable_documents_are_rejects(read):
    texts = [LOREM, None, "", " \n\t\u3000", LOREM, LOREM, LOREM, None]
    [piece] = read(documents(*texts, ids=["d0", "d1", "d2", "d3", "d4", None, "", None]))
    assert rejected(piece) == [
        ("d1", 1, "null_text"),
        ("d2", 2, "empty_text"),
        ("d3", 3, "empty_text"),
        (None, 5, "missing_id"),
        ("", 6, "missing_id"),
        (None, 7, "missing_id"),
    ]
    assert piece.ledger["position"].to_pylist() == [0, 4]
    assert piece.passages["doc_id"].to_pylist() == ["d0", "d4"]


def test_slices_first_of_equal_ids_stays(read):
    long = " ".join([LOREM] * 6)
    texts = ["first a", long, None, "second a", "third a", long, "second c"]
    [piece] = read(documents(*texts, ids=["a", "b", "c", "a", "a", "b", "c"]))
    assert rejected(piece) == [
        ("c", 2, "null_text"),  # it does not take the second along
        ("a", 3, "duplicate_id"),
        ("a", 4, "duplicate_id"),
        ("b", 5, "duplicate_id"),
    ]
    assert piece.ledger["position"].to_pylist() == [0, 1, 6]
    assert piece.passages["text"].to_pylist()[0] == "first a"
    rows = piece.ledger["n_rows"][1].as_py()
    assert piece.passages["doc_id"].to_pylist() == ["a"] + ["b"] * rows + ["c"]
    assert len(set(piece.passages["passage_id"].to_pylist())) == piece.passages.num_rows


def test_slices_equal_ids_in_different_slices_both_stay(read):
    """Those are the commit's to find."""
    pieces = read(documents(LOREM, LOREM, ids=["a", "a"]), slice={"documents": 1})
    assert [piece.ledger["doc_id"].to_pylist() for piece in pieces] == [["a"], ["a"]]


def test_slices_all_rejected_is_a_slice_without_passages(read):
    pieces = read(documents(*[None, ""] * 5, LOREM), slice={"documents": 10})
    assert names(pieces) == [(0, 10, False), (10, 1, True)]
    assert [piece.rejects.num_rows for piece in pieces] == [10, 0]
    assert [piece.passages.num_rows for piece in pieces] == [0, 1]
    assert pieces[0].passages.schema == pieces[1].passages.schema


# Rows that travel


def test_slice_row_among_others_and_through_arrow_ipc_gives_the_slice_back(open_corpus):
    empty = documents(LOREM).slice(0, 0)
    for table in (varied(120), empty, documents(None, " "), documents(LOREM, None)):
        reader, [unit], _ = open_corpus(table, slice={"documents": 17})
        pieces = [*reader.slices(unit)]
        rows = pa.concat_tables([piece.to_row() for piece in pieces])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        read_back = pa.ipc.open_stream(sink.getvalue()).read_all()
        for traveled in (rows, rows.combine_chunks(), read_back):
            back = [Slice.from_row(traveled.slice(i, 1)) for i in range(len(traveled))]
            assert back == pieces
            assert back[0].passages.schema == pieces[0].passages.schema


def test_slice_from_several_rows_is_refused(read):
    row = read(documents(LOREM))[0].to_row()
    with pytest.raises(AssertionError, match="one slice a call, got 2"):
        Slice.from_row(pa.concat_tables([row, row]))


def test_read_slices_of_a_todo_table_are_those_not_done(open_corpus):
    reader, units, config = open_corpus(varied(90), group=40, slice={"documents": 15})
    job = EncodeJob(config, "run", "attempt", "")
    found = [*read_slices(job, reader, todo_table(units, []))]
    assert found == [piece for unit in units for piece in reader.slices(unit)]
    lasts = [(0, False), (0, False), (0, True), (1, False), (1, False), (1, True), (2, True)]
    assert [(piece.unit, piece.last) for piece in found] == lasts


# Passages


def test_passages_have_the_columns_of_an_output_row(read):
    types = {"doc_id": pa.string(), "passage_id": pa.string(), "passage_no": pa.int32()}
    types |= {"text": pa.string(), "title": pa.string(), "n_tokens": pa.int32()}
    types |= {"truncated": pa.bool_(), "char_start": pa.int32(), "char_end": pa.int32()}
    types |= {"passage_hash": pa.binary(16), "url": pa.string(), "input_ids": pa.list_(pa.int32())}
    [piece] = read(varied(20))
    assert piece.passages.schema == pa.schema(types)
    [bare] = read(varied(20), index={"store_text": False})
    assert piece.passages.drop_columns(["text"]) == bare.passages
    assert piece.ledger == bare.ledger


def test_passages_are_numbered_within_their_document_and_added_up_in_the_ledger(read):
    long = " ".join([LOREM] * 8)
    [piece] = read(documents(long, "short", None, long, ids=["a", "b#", "c", "d"]))
    rows = piece.passages.to_pylist()
    n = piece.ledger["n_rows"].to_pylist()
    assert n[1] == 1 < n[0] == n[2]
    expected = [("a", i) for i in range(n[0])] + [("b#", 0)] + [("d", i) for i in range(n[0])]
    assert [(row["doc_id"], row["passage_no"]) for row in rows] == expected
    assert [row["passage_id"] for row in rows] == [f"{doc}#{i}" for doc, i in expected]
    assert piece.ledger["doc_id"].to_pylist() == ["a", "b#", "d"]
    assert piece.ledger["n_tokens"].to_pylist() == [
        sum(row["n_tokens"] for row in rows if row["doc_id"] == doc_id)
        for doc_id in ("a", "b#", "d")
    ]


def test_passages_of_real_articles_lie_in_their_documents(read, articles):
    sample = {row["id"]: row for row in articles.slice(0, 60).to_pylist()}
    tokenizer = TextTokenizer(ensure_tiny_m3(), 128)
    for piece in read(articles.slice(0, 60)):
        for row in piece.passages.to_pylist():
            document = sample[row["doc_id"]]
            assert row["text"] == document["text"][row["char_start"] : row["char_end"]]
            assert row["input_ids"] == tokenizer.tokenize([row["text"]]).values.tolist()
            assert row["n_tokens"] == len(row["input_ids"]) <= 96
            assert not row["truncated"]
            assert row["title"] == document["title"]


def test_passages_truncated_ones_say_so(read):
    [piece] = read(documents("short", " ".join([LOREM] * 9)), chunk={"by": "none"})
    assert piece.passages["truncated"].to_pylist() == [False, True]
    assert piece.passages["n_tokens"].to_pylist()[1] == 128


def test_passages_metadata_of_any_type_is_copied(read):
    table = documents(LOREM, None, " ".join([LOREM] * 5))
    table = table.append_column("tags", pa.array([["x", "y"], None, []]))
    table = table.append_column("year", pa.array([1999, None, 2001], pa.int16()))
    [piece] = read(table, source={"columns": {"metadata": ["year", "tags", "url"]}})
    assert piece.passages.schema.field("year").type == pa.int16()
    first, *others = ((row["year"], row["tags"], row["url"]) for row in piece.passages.to_pylist())
    assert first == (1999, ["x", "y"], "u/0")
    assert others == [(2001, [], "u/2")] * len(others) != []


def test_metadata_named_like_an_output_column_is_refused(make_config, tmp_path):
    """Else it would silently take that column's place."""
    for name in ("doc_id", "text", "n_tokens", "passage_hash", "input_ids", "dense"):
        columns = {"id": "key", "text": "body", "metadata": [name]}
        with pytest.raises(ConfigError, match=rf"source\.columns\.metadata.*{name}"):
            make_config(tmp_path, source={"uri": str(tmp_path), "columns": columns})


# Hashes


def test_passage_hash_is_equal_where_the_ids_are(read):
    texts = ["one two", "one two", "① ②", "1 2", "one three", "one  two"]
    rows = read(documents(*texts))[0].passages.select(["passage_hash", "input_ids"]).to_pylist()
    pairs = {(row["passage_hash"], tuple(row["input_ids"])) for row in rows}
    assert len(pairs) == len({h for h, _ in pairs}) == len({i for _, i in pairs}) == 3
    instructed = read(documents(texts[0]), model={"passage_instruction": "passage: "})
    assert instructed[0].passages["passage_hash"][0].as_py() not in {h for h, _ in pairs}


def test_doc_hash_is_of_the_content_whatever_the_id_neighbours_and_chunks(read):
    base = {"texts": "some text", "ids": "a", "titles": "a title", "urls": "u/a"}

    def hashes(*changes, **sections):
        table = {key: [(base | change)[key] for change in changes] for key in base}
        [piece] = read(documents(*table.pop("texts"), **table), **sections)
        return piece.ledger["doc_hash"].to_pylist()

    [same] = hashes({})
    others = [{"texts": "other text"}, {"texts": "some text "}, {"titles": "other title"}]
    others += [
        {"titles": None},
        {"urls": "u/b"},
        {"urls": None},
        {"titles": "u/a", "urls": "a title"},
    ]
    different = hashes({}, *(change | {"ids": str(i)} for i, change in enumerate(others)))
    assert different.pop(0) == same
    assert len({same, *different}) == 1 + len(others)
    assert hashes({"texts": None, "ids": "p"}, {"texts": "x", "ids": "q"}, {"ids": "b"})[1] == same
    long = {"texts": " ".join([LOREM] * 9)}
    chunks = ({"by": "none"}, {"max_tokens": 50}, {"max_tokens": 50, "overlap": 20})
    assert len({hashes(long, chunk=chunk)[0] for chunk in chunks}) == 1


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
