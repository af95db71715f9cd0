"""Is an index what its manifests say? Every damage is found, and an undamaged one has none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import config_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import Fault, s3_server, upload_folder  # noqa: F401
from small_index import History
from test_replay import run_with_poison
from typer.testing import CliRunner

from actors.errors import IndexStateError
from pipelines.compact_index import compact
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.maintain import verify as verify_deep
from pipelines.maintain.compaction import Limits
from pipelines.store import open_store
from pipelines.verify_index import app, verify

TABLES = ("parts", "documents", "rejects", "deletions")


def corpus(path: Path) -> Path:
    """Two units: ids that repeat across them, rejects of both kinds, one document long enough that
    rows of it are written before it fails."""
    texts = [f"some words about item {i} and more" for i in range(20)]
    for poisoned in (3, 9, 17):
        texts[poisoned] += " qqqq"
    texts[6] = " ".join(f"some words about item 6 and {n} more." for n in range(900)) + " qqqq"
    texts[7] = " ".join(f"some words about item 7 and {n} more." for n in range(60))
    texts[19] = ""
    ids = [f"d{i}" for i in range(20)]
    ids[12], ids[15] = ids[3], ids[1]
    columns = {"id": ids, "text": texts, "title": ids, "url": [f"u{i}" for i in ids]}
    pq.write_table(pa.table(columns), path, row_group_size=10)
    return path


def build(folder: Path, *, replay: bool, **index: str) -> Path:
    """An index of one generation, or two."""
    config = config_for(
        corpus(folder / "docs.parquet"),
        model={"max_batch_tokens": 1_024},
        index={"uri": str(folder / "index"), **index},
        max_reject_fraction=0.5,
    )
    run_with_poison(config)
    embed_corpus(config)
    if replay:
        embed_corpus(config, replay_rejects=True)
    return folder / "index"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two generations; the second masks rows of the first."""
    return build(tmp_path_factory.mktemp("whole"), replay=True)


@pytest.fixture(scope="module")
def whole_bytes(tmp_path_factory) -> Path:
    """One generation, with ColBERT as bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    return build(folder, replay=False, colbert_storage="bytes")


@pytest.fixture
def index(whole, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "index")
    return tmp_path / "index"


def problems(index: Path, *, deep: bool = False) -> list[str]:
    found = verify(open_store(str(index)), deep=deep).problems
    assert len(found.lines()) == found.count
    return found.lines()


def manifest_at(index: Path, number: int = 1) -> Path:
    return index / f"generations/{number:06d}/manifest.json"


def read_manifest(index: Path, number: int = 1) -> dict:
    return json.loads(manifest_at(index, number).read_bytes())


def change_manifest(index: Path, number: int = 1, **changes) -> None:
    raw = read_manifest(index, number)
    manifest_at(index, number).write_text(json.dumps(raw | changes))


def table_at(index: Path, name: str, number: int = 1) -> Path:
    return index / read_manifest(index, number)["tables"][name]["path"]


def files_of(index: Path, name: str, number: int = 1) -> list[str]:
    return pq.read_table(table_at(index, name, number))["path"].to_pylist()


def largest(index: Path, name: str) -> str:
    return max(files_of(index, name), key=lambda path: (index / path).stat().st_size)


def rewrite_table(index: Path, name: str, change: Callable[[pa.Table], pa.Table], number=1) -> None:
    """Change a table of a generation; the manifest agrees."""
    path = table_at(index, name, number)
    pq.write_table(change(pq.read_table(path)), path)
    tables = read_manifest(index, number)["tables"]
    tables[name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(index, number, tables=tables)


def rewrite(index: Path, name: str, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a file that a table of generation 1 lists; table and manifest agree."""
    table = change(pq.read_table(index / path))
    pq.write_table(table, index / path, row_group_size=7)
    data = (index / path).read_bytes()
    new = {"rows": table.num_rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def agree(files: pa.Table) -> pa.Table:
        rows = [row | new if row["path"] == path else row for row in files.to_pylist()]
        return pa.Table.from_pylist(rows, files.schema)

    rewrite_table(index, name, agree)


def with_row(table: pa.Table, row: int, **values) -> pa.Table:
    """The same table with other values in one row."""
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, table.schema)


def without_rows(table: pa.Table, keep: Callable[[dict], bool]) -> pa.Table:
    return pa.Table.from_pylist([row for row in table.to_pylist() if keep(row)], table.schema)


# Undamaged


@pytest.mark.parametrize("deep", [False, True])
def test_verify_undamaged_index_finds_nothing(whole, whole_bytes, deep):
    deletions = pa.concat_tables(pq.read_table(table_at(whole, "deletions", n)) for n in (1, 2))
    assert {"d1", "d3", "d6"} <= set(deletions["doc_id"].to_pylist())  # worth a look
    assert problems(whole, deep=deep) == []
    assert problems(whole_bytes, deep=deep) == []


def test_verify_cli_undamaged_index_is_ok_and_exit_0(whole):
    result = CliRunner().invoke(app, [str(whole), "--deep"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("ok; generations: 2, ")


def test_verify_index_that_was_never_published_is_ok(index):
    shutil.rmtree(index / "publications")
    assert problems(index, deep=True) == []


def test_verify_garbage_beside_the_index_does_not_matter(index):
    run = read_manifest(index)["run_id"]
    (index / f"data/{run}/000000-0000000000-aaaaaaaaaaaa.parquet").write_bytes(b"lost a race")
    (index / "generations/000009").mkdir()
    (index / "generations/000009/parts-aaaaaaaaaaaa.parquet").write_bytes(b"lost a race")
    assert problems(index, deep=True) == []


# No index


@pytest.mark.parametrize("left", ["nothing", "runs"])
def test_verify_without_any_manifest_is_one_line_and_exit_2(index, left):
    for folder in index.iterdir():
        if folder.name != left:
            shutil.rmtree(folder)
    result = CliRunner().invoke(app, [str(index)])
    assert result.exit_code == 2
    assert "expected a committed index, found none" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    with pytest.raises(IndexStateError):
        open_index(str(index))


# Files


def all_files(index: Path) -> list[str]:
    """Every file a manifest refers to."""
    found = []
    for number in (1, 2):
        found += [str(table_at(index, name, number).relative_to(index)) for name in TABLES]
        for name in TABLES[:3]:
            found += files_of(index, name, number)
    return found


def test_verify_missing_file_is_named_and_no_other(index):
    for path in all_files(index):
        (index / path).rename(index / "aside")
        assert (
            problems(index)
            == problems(index, deep=True)
            == [f"{path}: expected a file, found none"]
        )
        (index / "aside").rename(index / path)


def test_verify_file_a_byte_shorter_is_named_and_no_other(index):
    for path in all_files(index):
        data = (index / path).read_bytes()
        (index / path).write_bytes(data[:-1])
        for deep in (False, True):
            (line,) = problems(index, deep=deep)
            assert line.startswith(f"{path}: expected ")
        (index / path).write_bytes(data)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_verify_deep_flipped_byte_anywhere_is_named(flippable, data):
    index, files = flippable
    path = index / data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        (line,) = problems(index, deep=True)
    finally:
        path.write_bytes(before)
    assert line.startswith(f"{path.relative_to(index)}: expected sha256 ")


@pytest.fixture(scope="module")
def flippable(whole, tmp_path_factory):
    index = tmp_path_factory.mktemp("flipped") / "index"
    shutil.copytree(whole, index)
    return index, all_files(index)


def test_verify_several_damages_all_are_listed(index):
    part, ledger = largest(index, "parts"), largest(index, "documents")
    (index / part).unlink()
    (index / ledger).write_bytes(b"")
    (index / "publications/000007.json").write_text('{"generation": 5}')
    manifest_at(index, 2).write_text("{")
    result = CliRunner().invoke(app, [str(index), "--deep"])
    assert result.exit_code == 1
    assert result.stderr == ""
    *lines, last = result.stdout.splitlines()
    assert last.startswith("problems: 4; generations: 1, ")
    assert [line.partition(":")[0] for line in lines] == sorted(
        [part, ledger, "publications/000007.json", "generations/000002/manifest.json"]
    )


def test_verify_more_than_a_hundred_problems_are_counted(index):
    for number in range(10, 140):
        (index / f"publications/{number:06d}.json").write_text("{}")
    result = CliRunner().invoke(app, [str(index)])
    lines = result.stdout.splitlines()
    assert len(lines) == 102
    assert lines[100] == "... and 30 more"
    assert lines[101].startswith("problems: 130; ")


# Manifests, publications and tables

MANIFESTS = {
    "is not JSON": (lambda i: manifest_at(i).write_bytes(b"\xff{"), "expected JSON"),
    "is a list": (lambda i: manifest_at(i).write_bytes(b"[]"), "format_version 1, found None"),
    "lacks keys": (
        lambda i: manifest_at(i).write_bytes(b'{"format_version": 1}'),
        "expected a manifest, found",
    ),
    "is newer": (
        lambda i: change_manifest(i, format_version=2, tables="of a shape to come"),
        "expected format_version 1, found 2",
    ),
    "is another's": (lambda i: change_manifest(i, generation=4), "expected generation 1, found"),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_verify_manifest_damaged_is_a_line(index, damage):
    change, expected = MANIFESTS[damage]
    change(index)
    for deep in (False, True):
        (line,) = problems(index, deep=deep)
        assert line.startswith("generations/000001/manifest.json: ")
        assert expected in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parent": 7}, "expected an earlier generation as parent, found 7, which has no manifest"),
        ({"parent": 2}, "expected an earlier generation as parent, found generation 2"),
        ({"index_fingerprint": "f" * 32}, "expected index_fingerprint "),
    ],
)
def test_verify_parent_does_not_fit_is_a_line(index, changes, expected):
    change_manifest(index, 2, **changes)
    path = "generations/000002/manifest.json"
    assert any(line.startswith(f"{path}: {expected}") for line in problems(index))
    assert problems(index, deep=True)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"generation": 9}'])
def test_verify_publication_damaged_or_of_nothing_is_a_line(index, content):
    (index / "publications/000002.json").write_bytes(content)
    (line,) = problems(index)
    assert line.startswith("publications/000002.json: expected ")


def test_verify_publication_without_any_manifest_is_a_problem(index):
    shutil.rmtree(index / "generations")
    assert [line.partition(":")[0] for line in problems(index)] == [
        "publications/000001.json",
        "publications/000002.json",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_verify_table_replaced_by_a_good_one_is_a_checksum_problem(index, name):
    path = table_at(index, name)
    pq.write_table(pq.read_table(path), path, compression="none")
    (line,) = problems(index)
    assert line.startswith(f"{path.relative_to(index)}: expected sha256 ")


@pytest.mark.parametrize("name", TABLES)
def test_verify_table_of_other_columns_is_a_problem(index, name):
    rewrite_table(index, name, lambda table: table.rename_columns(["x", *table.column_names[1:]]))
    for deep in (False, True):
        (line,) = problems(index, deep=deep)
        assert f"{name}-" in line
        assert "expected columns" in line


def test_verify_table_that_is_no_table_is_a_problem(index):
    tables = read_manifest(index)["tables"]
    (index / tables["parts"]["path"]).write_bytes(b"no table")
    tables["parts"]["sha256"] = hashlib.sha256(b"no table").hexdigest()
    change_manifest(index, tables=tables)
    (line,) = problems(index, deep=True)
    assert "expected a table, found" in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"part": "data/other.parquet"}, "expected parts of the generation or its ancestors"),
        ({"first_row": 10**6}, "expected rows below "),
        ({"first_row": -1}, "expected rows below "),
    ],
)
def test_verify_deletion_of_what_is_not_there_is_a_problem(index, changes, expected):
    rewrite_table(index, "deletions", lambda table: with_row(table, 0, **changes))
    (line,) = problems(index)
    assert line.startswith(f"{table_at(index, 'deletions').relative_to(index)}: {expected}")


def test_verify_deletion_of_a_descendants_rows_is_a_problem(index):
    part = files_of(index, "parts", 2)[0]
    rewrite_table(index, "deletions", lambda table: with_row(table, 0, part=part))
    (line,) = problems(index)
    assert line.endswith(f"expected parts of the generation or its ancestors, found {part}")


# Rows: every checksum is right


def vector(column: str, value: float) -> Callable[[pa.Table], pa.Table]:
    """One number of one vector of row 2 becomes `value`."""

    def change(table: pa.Table) -> pa.Table:
        row = table[column][2].as_py()
        (row if column == "dense" else row[-1])[3] = value
        return with_row(table, 2, **{column: row})

    return change


def sparse(change: Callable[[list, list], None]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        row = table["sparse"][2].as_py()
        change(row["indices"], row["values"])
        return with_row(table, 2, sparse=row)

    return changed


def column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    return lambda table: with_row(table, 2, **{name: value})


PARTS = {
    "passage_id of another": (column("passage_id", "d0#0"), "passage_id as in the ledger"),
    "passage_id null": (column("passage_id", None), "a passage_id in every row"),
    "doc_id of another": (column("doc_id", "d0"), "doc_id as in the ledger"),
    "doc_id null": (column("doc_id", None), "a doc_id in every row"),
    "passage_no": (column("passage_no", 5), "passage_no as in the ledger"),
    "n_tokens": (column("n_tokens", 5), "as many tokens of a document as the ledger says"),
    "truncated": (column("truncated", True), "0 truncated (its counts), found 1 in its files"),
    "rows swapped": (
        lambda t: t.take([1, 0, *range(2, t.num_rows)]),
        "passage_id as in the ledger",
    ),
    "a row more": (
        lambda t: pa.concat_tables([t, t.slice(0, 1)]),
        "a document of the ledger for every live row",
    ),
    "a row less": (
        lambda t: t.slice(0, t.num_rows - 1),
        "rows of its own for each document of the ledger",
    ),
    "dense NaN": (vector("dense", np.nan), "finite numbers in dense"),
    "dense Inf": (vector("dense", np.inf), "finite numbers in dense"),
    "dense too long": (vector("dense", 0.9), "dense vectors of unit length"),
    "dense null": (column("dense", None), "no null in dense"),
    "dense null inside": (vector("dense", None), "no null in dense"),
    "dense absent": (lambda t: t.drop_columns(["dense"]), "a column dense ("),
    "dense float32": (
        lambda t: t.set_column(
            t.column_names.index("dense"), "dense", t["dense"].cast(pa.list_(pa.float32(), 64))
        ),
        "a column dense (",
    ),
    "doc_id absent": (lambda t: t.drop_columns(["doc_id"]), "a column doc_id (string), found none"),
    "sparse unsorted": (sparse(lambda i, v: i.reverse()), "strictly ascending sparse indices"),
    "sparse repeated": (
        sparse(lambda i, v: i.__setitem__(1, i[0])),
        "strictly ascending sparse indices",
    ),
    "sparse negative id": (
        sparse(lambda i, v: i.__setitem__(0, -1)),
        "strictly ascending sparse indices",
    ),
    "sparse zero": (sparse(lambda i, v: v.__setitem__(0, 0.0)), "finite sparse values above 0"),
    "sparse Inf": (sparse(lambda i, v: v.__setitem__(0, np.inf)), "finite sparse values above 0"),
    "sparse one index less": (sparse(lambda i, v: i.pop()), "as many sparse values as indices"),
    "colbert NaN": (vector("colbert", np.nan), "finite numbers in colbert"),
    "colbert too long": (vector("colbert", 0.9), "colbert vectors of unit length"),
    "colbert one less": (
        lambda t: with_row(t, 2, colbert=t["colbert"][2].as_py()[1:]),
        "a colbert vector for each token except the first",
    ),
    "colbert null inside": (
        lambda t: with_row(t, 2, colbert=[None, *t["colbert"][2].as_py()[1:]]),
        "no null in colbert",
    ),
}


def assert_only_deep_finds(index, table, change, expected):
    """A file of a table is changed, and its record with it."""
    rewrite(index, table, largest(index, table), change)
    assert problems(index) == []
    assert any(f": expected {expected}" in line for line in problems(index, deep=True))


@pytest.mark.parametrize("damage", PARTS)
def test_verify_deep_wrong_rows_are_a_problem(index, damage):
    assert_only_deep_finds(index, "parts", *PARTS[damage])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v[1:], "a colbert vector for each token except the first"),
        (lambda v: [b"\x00\x7c" * 64, *v[1:]], "finite numbers in colbert"),
        (lambda v: [b"\x00\x3c" * 64, *v[1:]], "colbert vectors of unit length"),
    ],
)
def test_verify_deep_colbert_as_bytes_wrong_is_a_problem(whole_bytes, tmp_path, change, expected):
    index = tmp_path / "index"
    shutil.copytree(whole_bytes, index)
    part = largest(index, "parts")
    rewrite(index, "parts", part, lambda t: with_row(t, 2, colbert=change(t["colbert"][2].as_py())))
    (line,) = problems(index, deep=True)
    assert line.startswith(f"{part}: expected {expected}, found 1 exceptions, first: row 2 ")


def test_verify_deep_colbert_stored_otherwise_than_the_manifest_says_is_a_problem(index):
    change_manifest(index, 1, colbert_storage="bytes")
    lines = problems(index, deep=True)
    assert lines
    assert all(
        "expected a column colbert (list<item: fixed_size_binary[128]>" in li for li in lines
    )


def test_verify_deep_model_that_does_not_normalise_may_have_any_length(index):
    part = largest(index, "parts")
    rewrite(index, "parts", part, vector("dense", 0.9))
    for plan in index.glob("runs/*/plan.json"):
        raw = json.loads(plan.read_bytes())
        raw["request"]["model"]["normalize"] = False
        plan.write_text(json.dumps(raw))
    assert problems(index, deep=True) == []


@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_verify_deep_plan_gone_or_damaged_is_a_problem(index, content):
    path = f"runs/{read_manifest(index)['run_id']}/plan.json"
    (index / path).unlink() if content is None else (index / path).write_bytes(content)
    (line,) = problems(index, deep=True)
    assert line.startswith(f"{path}: expected ")


# The ledger, the view, the counts


def at_row(number: int, **values) -> Callable[[pa.Table], pa.Table]:
    return lambda table: with_row(table, number, **values)


LEDGERS = {
    "tokens": (at_row(1, n_tokens=1), "as many tokens of a document as the ledger says"),
    "first_row": (at_row(1, first_row=0), "rows of its own for each document of the ledger"),
    "n_rows": (at_row(1, n_rows=2), "rows of its own for each document of the ledger"),
    "no rows": (at_row(1, n_rows=0), "rows of its own for each document of the ledger"),
    "beyond the end": (at_row(1, n_rows=10**6), "rows of its own for each document of the ledger"),
    "before the start": (at_row(1, first_row=-1), "rows of its own for each document of the"),
    "doc_id": (at_row(1, doc_id="other"), "doc_id as in the ledger"),
    "null": (at_row(1, doc_id=None), "a value in every field"),
    "part": (at_row(1, part="data/other.parquet"), "parts of generation 1, found data/other"),
    "a document less": (lambda t: t.slice(1), "a document of the ledger for every live row"),
    "a document twice": (
        lambda t: pa.concat_tables([t, t.slice(0, 1)]),
        "each doc_id once in its live view",
    ),
    "other columns": (lambda t: t.drop_columns(["unit"]), "columns doc_id: string, "),
}


@pytest.mark.parametrize("damage", LEDGERS)
def test_verify_deep_wrong_ledger_is_a_problem(index, damage):
    assert_only_deep_finds(index, "documents", *LEDGERS[damage])


def test_verify_deep_deletion_dropped_leaves_a_document_twice(index):
    keep = lambda row: row["doc_id"] != "d1"  # noqa: E731
    rewrite_table(index, "deletions", lambda table: without_rows(table, keep))
    lines = problems(index, deep=True)
    for number in (1, 2):  # both views have it
        path = f"generations/{number:06d}/manifest.json"
        assert f"{path}: expected each doc_id once in its live view, found 'd1' 2 times" in lines
    assert any("documents (its counts)" in line for line in lines)


def test_verify_deep_deletion_of_the_second_generation_dropped_is_a_problem_of_it(index):
    rewrite_table(index, "deletions", lambda table: table.slice(0, 0), 2)
    path = "generations/000002/manifest.json"
    found = problems(index, deep=True)
    assert f"{path}: expected each doc_id once in its live view, found 'd3' 2 times" in found
    assert all(line.startswith(f"{path}: ") for line in found)


def test_verify_deep_deletion_of_half_a_document_is_a_problem(index):
    part = next(
        row["part"]
        for path in files_of(index, "documents")
        for row in pq.read_table(index / path).to_pylist()
        if row["doc_id"] == "d7"
    )
    ledger = next(p for p in files_of(index, "documents") if Path(p).name == Path(part).name)
    (row,) = [r for r in pq.read_table(index / ledger).to_pylist() if r["doc_id"] == "d7"]
    assert row["n_rows"] > 2
    half = {"doc_id": "d7", "part": part, "first_row": row["first_row"] + 1, "n_rows": 1}

    def more(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table, pa.Table.from_pylist([half], table.schema)])

    rewrite_table(index, "deletions", more, 2)
    (line,) = problems(index, deep=True)
    assert line.startswith(f"{part}: expected deletions of whole documents of the ledger, found ")


@pytest.mark.parametrize("name", ["documents", "passages", "tokens", "truncated"])
@pytest.mark.parametrize("number", [1, 2])
def test_verify_deep_wrong_count_is_a_problem(index, name, number):
    counts = read_manifest(index, number)["counts"]
    change_manifest(index, number, counts=counts | {name: counts[name] + 1})
    (line,) = problems(index, deep=True)
    assert line == (
        f"generations/{number:06d}/manifest.json: expected {counts[name] + 1:,} {name} "
        f"(its counts), found {counts[name]:,} in its files"
    )


def test_verify_deep_reject_of_another_code_is_a_problem(index):
    rewrite(index, "rejects", files_of(index, "rejects")[0], at_row(0, code="bad_record"))
    (line,) = problems(index, deep=True)
    assert line.startswith("generations/000001/manifest.json: expected rejects {")


def test_verify_deep_rows_recorded_wrongly_are_a_problem(index):
    part = largest(index, "parts")
    rewrite_table(
        index,
        "parts",
        lambda t: t.set_column(1, t.schema.field(1), pc.add(t["rows"], 1)),
    )
    lines = problems(index, deep=True)
    assert any(line.startswith(f"{part}: expected ") and " rows, found " in line for line in lines)


# S3


def test_verify_deep_on_s3_fetches_each_file_once_and_finds_what_is_wrong(
    whole,
    s3_bucket,
    s3_server,  # noqa: F811
):
    uri, options = s3_bucket
    store = open_store(f"{uri}/index", options)
    upload_folder(whole, store)
    del s3_server.requests[:]
    assert verify(store, deep=True).problems.lines() == []
    gets = [path for method, path in s3_server.requests if method == "GET"]
    parts = [part for number in (1, 2) for part in files_of(whole, "parts", number)]
    assert [sum(get.endswith(part) for get in gets) for part in parts] == [1] * len(parts)
    content = bytearray(store.read(parts[0]))
    content[len(content) // 2] ^= 1
    store.overwrite(parts[0], bytes(content))
    store.delete(parts[1])
    lines = verify(store, deep=True).problems.lines()
    assert f"{parts[1]}: expected a file, found none" in lines
    assert any(line.startswith(f"{parts[0]}: expected sha256 ") for line in lines)
    assert len(lines) == 2


def test_verify_on_s3_file_that_is_denied_is_a_line(whole, s3_bucket, s3_server):  # noqa: F811
    uri, options = s3_bucket
    store = open_store(f"{uri}/index", options)
    upload_folder(whole, store)
    part = files_of(whole, "parts")[0]
    s3_server.faults.append(Fault("HEAD", part, 403, "AccessDenied", times=99))
    (line,) = verify(store).problems.lines()
    assert line.startswith(f"{part}: expected a file, found ")
    assert "access denied" in line


# Compacted generations, and documents that were found unchanged


@pytest.fixture(scope="module")
def compacted(tmp_path_factory) -> History:
    """1 <- 2 (deletes, edits, finds unchanged), 3 compacts 2 and keeps parts of 1, 3 <- 4."""
    history = History(tmp_path_factory.mktemp("compacted"))
    texts = {f"a{i}": f"some words about item {i} and more" for i in range(9)}
    history.write("a", texts)
    history.run()
    del texts["a4"]
    texts["a0"] += " and so on"
    history.write("a", texts)
    assert history.run().tables.unchanged
    assert compact(history.store, Limits(small_bytes=0), force=True).compacts == 2
    texts["a8"] = "other words"
    history.write("a", texts)
    history.run()
    return history


@pytest.fixture
def later(compacted, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(compacted.store.uri, tmp_path / "later")
    return tmp_path / "later"


def shared_part(index: Path) -> str:
    (path, *_) = sorted({*files_of(index, "parts", 1)} & {*files_of(index, "parts", 3)})
    return path


@pytest.mark.parametrize("deep", [False, True])
def test_verify_compacted_index_finds_nothing(later, deep):
    assert problems(later, deep=deep) == []
    table = pq.read_table(later / files_of(later, "documents", 3)[0])
    assert table["part"][0].as_py().split("/")[1] != read_manifest(later, 3)["run_id"]


def test_verify_compacted_index_whose_source_was_removed_is_ok(later):
    for number in (1, 2):
        shutil.rmtree(later / f"generations/{number:06d}")
    for number in (1, 2):
        (later / f"publications/{number:06d}.json").unlink()
    assert problems(later, deep=True) == []


def test_verify_part_of_two_generations_is_read_once_and_named_once(later, monkeypatch):
    read = []
    real = verify_deep.file_sha256
    monkeypatch.setattr(verify_deep, "file_sha256", lambda path: read.append(path) or real(path))
    assert problems(later, deep=True) == []
    assert sorted(set(read)) == sorted(read)
    path = shared_part(later)
    data = bytearray((later / path).read_bytes())
    data[200] ^= 1
    (later / path).write_bytes(data)
    assert [line for line in problems(later, deep=True) if "sha256" in line] == [
        line for line in problems(later, deep=True) if line.startswith(f"{path}: expected sha256")
    ]
    assert len(problems(later, deep=True)) == 1


def test_verify_file_named_as_a_hub_blob_is_read(index, tmp_path):
    """What a file is called is no proof of what is in it."""
    path = largest(index, "parts")
    data = bytearray((index / path).read_bytes())
    blob = tmp_path / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir()
    data[200] ^= 1
    blob.write_bytes(data)
    (index / path).unlink()
    (index / path).symlink_to(blob)
    found = hashlib.sha256(data).hexdigest()
    (line,) = problems(index, deep=True)
    assert line == f"{path}: expected sha256 {blob.name}, found {found}"


def test_verify_ledger_of_a_compacted_generation_is_compared_with_the_rows(later):
    path = next(
        p
        for p in files_of(later, "documents", 3)
        if pq.read_table(later / p)["part"][0].as_py() == shared_part(later)
    )
    table = with_row(pq.read_table(later / path), 0, n_tokens=999)
    pq.write_table(table, later / path)
    rewrite_file_record(later, "documents", path, 3)
    (line,) = problems(later, deep=True)
    assert line.startswith(f"{shared_part(later)}: expected as many tokens of a document")


def rewrite_file_record(index: Path, name: str, path: str, number: int) -> None:
    """Table and manifest agree with a file that was changed."""
    data = (index / path).read_bytes()
    new = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def agree(files: pa.Table) -> pa.Table:
        rows = [row | new if row["path"] == path else row for row in files.to_pylist()]
        return pa.Table.from_pylist(rows, files.schema)

    rewrite_table(index, name, agree, number)


@pytest.mark.parametrize(
    "changes", [{"parent": 2}, {"compacts": 3}, {"compacts": 9}], ids=["parent", "itself", "later"]
)
def test_verify_compacts_of_a_generation_that_cannot_be_is_found(later, changes):
    change_manifest(later, 3, **changes)
    expected = "expected no parent, and an earlier generation that it compacts, found parent"
    assert any(expected in line for line in problems(later))


def test_verify_compacted_generation_of_another_fingerprint_is_found(later):
    change_manifest(later, 1, index_fingerprint="other")
    change_manifest(later, 2, index_fingerprint="other")
    (line,) = problems(later)
    assert line.startswith("generations/000003/manifest.json: expected index_fingerprint other")


UNCHANGED_DAMAGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "columns": (lambda t: t.drop_columns(["position"]), "expected columns"),
    "nulls": (lambda t: with_row(t, 0, doc_id=None), "expected a value in every field"),
    "rows": (lambda t: t.slice(1), "rows, found"),
}


@pytest.mark.parametrize("damage", UNCHANGED_DAMAGES)
def test_verify_damaged_unchanged_file_is_found(later, damage):
    change, expected = UNCHANGED_DAMAGES[damage]
    path = files_of(later, "unchanged", 2)[0]
    pq.write_table(change(pq.read_table(later / path)), later / path)
    rewrite_file_record(later, "unchanged", path, 2)
    (line,) = problems(later, deep=True)
    assert line.startswith(f"{path}: expected ")
    assert expected in line


def test_verify_unchanged_file_of_other_bytes_is_found(later):
    path = files_of(later, "unchanged", 2)[0]
    data = bytearray((later / path).read_bytes())
    data[50] ^= 1
    (later / path).write_bytes(data)
    (line,) = problems(later, deep=True)
    assert line.startswith(f"{path}: expected sha256 ")


def test_verify_unchanged_table_that_is_gone_is_found(later):
    table_at(later, "unchanged", 2).unlink()
    assert any("unchanged-" in line for line in problems(later))
