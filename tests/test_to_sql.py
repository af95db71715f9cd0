"""The live view as DuckDB's SQL gives the rows that open_index gives."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from generations_by_hand import Doc, History

from actors.errors import IndexStateError
from pipelines.index import open_index
from pipelines.store import open_store

A: Doc = ("Ants", "a0", "a1", "a2")
B: Doc = ("Bees", "b0")
C: Doc = ("Cats", "c0", "c1")
COLUMNS = ["passage_id", "title", "text", "n_tokens", "url"]


def masked_history(folder, **options) -> History:
    """Three generations; rows of the first two are masked, by others and by themselves."""
    history = History(open_store(str(folder)), **options)
    history.add({"a": A, "b": B, "c": C, "x": B}, failed={"f": A})
    history.add({"b": C, "d": B}, delete=["c"], parent=1)
    history.add({"e": A}, delete=["d", "x"], parent=2)
    return history


def rows(sql: str) -> list[tuple]:
    with duckdb.connect() as connection:
        return sorted(connection.sql(sql).fetchall())


def expected(index, columns) -> list[tuple]:
    return sorted(tuple(row.values()) for row in index.to_table(columns).to_pylist())


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("columns", [COLUMNS, ["text"], COLUMNS[::-1]])
def test_to_sql_masked_generations_are_the_rows_of_to_table(tmp_path, generation, columns):
    masked_history(tmp_path / "index")
    index = open_index(str(tmp_path / "index"), generation=generation)
    assert rows(index.to_sql(columns)) == expected(index, columns)


def test_to_sql_all_columns_are_those_of_the_schema_with_their_vectors(tmp_path):
    masked_history(tmp_path)
    index = open_index(str(tmp_path))
    with duckdb.connect() as connection:
        found = connection.sql(index.to_sql())
        assert found.columns == index.schema.names
        by_id = {row["passage_id"]: row for row in found.to_arrow_table().to_pylist()}
    for row in index.to_table().to_pylist():
        mine = by_id.pop(row["passage_id"])
        assert list(mine["dense"]) == row["dense"]
        assert [list(token) for token in mine["colbert"]] == row["colbert"]
    assert by_id == {}


def test_to_sql_colbert_stored_as_bytes_stays_blobs(tmp_path):
    masked_history(tmp_path, colbert="bytes")
    index = open_index(str(tmp_path))
    with duckdb.connect() as connection:
        found = dict(connection.sql(index.to_sql(["passage_id", "colbert"])).fetchall())
    for row in index.to_table(["passage_id", "colbert"]).to_pylist():
        tokens = [np.frombuffer(token, "<f2").tolist() for token in found[row["passage_id"]]]
        assert tokens == row["colbert"]


def test_to_sql_is_an_expression_to_build_on(tmp_path):
    masked_history(tmp_path)
    sql = open_index(str(tmp_path)).to_sql(["doc_id", "n_tokens"])
    assert rows(f"select doc_id, sum(n_tokens) from ({sql}) where doc_id = 'b' group by 1") == [
        ("b", 6)
    ]


def test_to_sql_without_deletions_joins_nothing(tmp_path):
    history = History(open_store(str(tmp_path)))
    history.add({"a": A, "b": B})
    history.add({"c": C}, parent=1)
    index = open_index(str(tmp_path))
    assert "join" not in index.to_sql(COLUMNS)
    assert rows(index.to_sql(COLUMNS)) == expected(index, COLUMNS)


def test_to_sql_without_parts_has_columns_and_no_rows(tmp_path):
    History(open_store(str(tmp_path))).add()
    index = open_index(str(tmp_path))
    with duckdb.connect() as connection:
        found = connection.sql(index.to_sql())
        assert found.columns == index.schema.names
        assert found.fetchall() == []
        kinds = dict(zip(found.columns, map(str, found.types), strict=True))
    assert (kinds["title"], kinds["n_tokens"], kinds["dense"]) == ("VARCHAR", "INTEGER", "FLOAT[]")
    assert (kinds["colbert"], kinds["passage_hash"]) == ("FLOAT[][]", "BLOB")


def test_to_sql_everything_masked_has_no_rows(tmp_path):
    history = History(open_store(str(tmp_path)))
    history.add({"a": A, "b": B})
    history.add(delete=["a", "b"], parent=1)
    assert rows(open_index(str(tmp_path)).to_sql()) == []


@pytest.mark.parametrize(
    "folder",
    ["it's", 'a "b" c', "a*b?c[d]", "title=x/index", "a b;c--d", "ä/日本", "{x}"],
)
def test_to_sql_in_a_folder_of_any_name_finds_its_rows(tmp_path, folder):
    masked_history(tmp_path / folder)
    index = open_index(str(tmp_path / folder))
    assert rows(index.to_sql(COLUMNS)) == expected(index, COLUMNS)


def test_to_sql_glob_characters_match_no_other_folder(tmp_path):
    for name in ("a[b]", "ab", "a*"):
        masked_history(tmp_path / name)
    for name in ("a[b]", "a*"):
        index = open_index(str(tmp_path / name))
        assert rows(index.to_sql(COLUMNS)) == expected(index, COLUMNS)


@pytest.mark.parametrize("name", ["filename", "FileName", 'a "b', "it's", "select", "part", "file"])
def test_to_sql_column_of_any_name_is_read(tmp_path, name):
    masked_history(tmp_path, extra=name)
    index = open_index(str(tmp_path))
    columns = ["passage_id", name]
    assert rows(index.to_sql(columns)) == expected(index, columns)


def test_to_sql_column_that_duckdb_adds_is_refused_where_it_matters(tmp_path):
    history = masked_history(tmp_path, extra="file_row_number")
    history.add({"z": A})
    with pytest.raises(IndexStateError, match="no column called 'file_row_number'"):
        open_index(str(tmp_path), generation=3).to_sql(["title"])
    index = open_index(str(tmp_path))  # nothing is masked
    columns = ["title", "file_row_number"]
    assert rows(index.to_sql(columns)) == expected(index, columns)


def test_to_sql_unknown_column_is_refused(tmp_path):
    masked_history(tmp_path)
    with pytest.raises(IndexStateError, match="got 'nonsense'"):
        open_index(str(tmp_path)).to_sql(["title", "nonsense"])


def test_to_sql_on_s3_names_full_addresses(s3_bucket):
    uri, options = s3_bucket
    history = History(open_store(f"{uri}/my index", options))
    history.add({"a": A, "b": B})
    history.add(delete=["a"], parent=1)
    index = open_index(f"{uri}/my index", options)
    sql = index.to_sql(["title"])
    for path in [*index.part_paths, index.info.tables.deletions.path]:
        assert f"'{uri}/my index/{path}'" in sql
    assert f"'{uri}/my index/' || part as file" in sql
    assert "secret" not in sql  # nothing of the storage options
