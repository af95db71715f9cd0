"""Queries in any format in, one Parquet file out: the encoder's own vectors, nothing lost silently.

In process, on the tiny M3, over a small BEIR-like file of queries.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from actors.encoder import Encoder, load_encoder
from actors.network.forward import Forward
from pipelines import encode_queries as module
from pipelines.config import load_config
from pipelines.encode_queries import app

QUERIES = {
    "PLAIN-1": "Do cholesterol statin drugs cause breast cancer?",
    "PLAIN-2": "how contaminated are our children ?",
    "PLAIN-3": "Größe, 大きさ and size: " + "word " * 60,
}
RUN: dict[str, Any] = {
    "source": {"uri": "corpus.parquet"},
    "index": {"uri": "index"},
    "model": {
        "name": "builtin:tiny-m3",
        "max_length": 128,
        "query_max_length": 64,
        "query_instruction": "find: ",
    },
    "outputs": ["dense", "sparse", "colbert"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: run.yaml and queries.jsonl, of three queries with BEIR's columns."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    write_beir("queries.jsonl", QUERIES)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    """The command over run.yaml; (exit code, stderr)."""

    def make(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["run.yaml", *arguments])
        captured = capfd.readouterr()
        assert result.stdout + captured.out == ""
        return result.exit_code, result.stderr + captured.err

    return make


def write_beir(path: str, queries: dict[str, Any]) -> None:
    rows = [{"_id": i, "text": text, "metadata": {"url": "x"}} for i, text in queries.items()]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def encoder() -> Encoder:
    return load_encoder(load_config("run.yaml").encoder)


def check_error(result: tuple[int, str], code: int, *parts: str) -> None:
    found, message = result
    assert found == code, message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) <= 9
    for part in parts:
        assert part in message, message


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"run.yaml", "queries.jsonl"}


def test_queries_of_beir_file_have_the_encoders_vectors(run: Any, folder: Path) -> None:
    code, message = run("queries.jsonl", "out.parquet", "--id", "_id")
    assert code == 0, message
    table = pq.read_table("out.parquet")
    expected = encoder().encode_queries(list(QUERIES.values()))
    assert table.column_names == ["query_id", "text", "n_tokens", "truncated", *RUN["outputs"]]
    assert table["query_id"].to_pylist() == list(QUERIES)
    assert table["text"].to_pylist() == list(QUERIES.values())
    # Batch composition does not matter to the vectors, but the micro-batches here are the same.
    for output in RUN["outputs"]:
        assert table[output].type == expected[output].type
        assert table[output].to_pylist() == expected[output].to_pylist()
    assert left_behind(folder) == {"out.parquet"}


def test_queries_tokens_and_truncation_are_the_query_tokenizers(run: Any) -> None:
    _, message = run("queries.jsonl", "out.parquet", "--id", "_id")
    table = pq.read_table("out.parquet")
    tokens = encoder().tokenize_queries(list(QUERIES.values()))
    assert table.schema.field("n_tokens").type == pa.int32()
    assert table["n_tokens"].to_pylist() == tokens.lengths.tolist()
    assert table["truncated"].to_pylist() == [False, False, True]
    total = sum(tokens.lengths)
    assert message.splitlines() == [
        f"3 queries, {total} tokens (1 queries truncated) in out.parquet"
    ]


def test_query_instruction_of_the_configuration_applies(run: Any) -> None:
    run("queries.jsonl", "a.parquet", "--id", "_id")
    run("queries.jsonl", "b.parquet", "--id", "_id", "--set", "model.query_instruction=''")
    one, other = (pq.read_table(name) for name in ("a.parquet", "b.parquet"))
    assert one["n_tokens"][0].as_py() > other["n_tokens"][0].as_py()
    assert one["dense"][0] != other["dense"][0]


def test_colbert_stored_as_bytes_has_the_type_of_the_index(run: Any) -> None:
    setting = "index.colbert_storage=bytes"
    assert run("queries.jsonl", "out.parquet", "--id", "_id", "--set", setting)[0] == 0
    kind = pq.read_schema("out.parquet").field("colbert").type
    assert pa.types.is_fixed_size_binary(kind.value_type)


def write(name: str) -> None:
    """The queries in the format of a file's name."""
    table = pa.table({"id": list(QUERIES), "text": list(QUERIES.values())})
    rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    if name.endswith(".parquet"):
        pq.write_table(table, name)
    elif name.endswith(".tsv"):
        Path(name).write_text("\n".join(["id\ttext", *("\t".join(row) for row in rows)]))
    elif name.endswith(".csv"):
        Path(name).write_text("\n".join(["id,text", *(f'{i},"{text}"' for i, text in rows)]))
    elif name.endswith(".gz"):
        lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in rows)
        Path(name).write_bytes(gzip.compress(lines.encode()))
    else:
        Path(name).write_text("\n".join(QUERIES.values()))


@pytest.mark.parametrize("name", ["q.parquet", "q.csv", "q.tsv", "q.jsonl.gz"])
def test_queries_of_every_format_are_read(run: Any, name: str) -> None:
    write(name)
    code, message = run(name, "out.parquet")
    assert code == 0, message
    table = pq.read_table("out.parquet", columns=["query_id", "text"])
    assert dict(zip(*table.to_pydict().values(), strict=True)) == QUERIES


def test_queries_of_plain_lines_have_ids_of_their_places(run: Any) -> None:
    write("q.txt")
    assert run("q.txt", "out.parquet", "--format", "lines")[0] == 0
    table = pq.read_table("out.parquet", columns=["query_id", "text"])
    assert table["text"].to_pylist() == list(QUERIES.values())
    assert table["query_id"][0].as_py() == "q.txt:0"


def test_queries_without_ids_have_ids_of_their_places(run: Any) -> None:
    assert run("queries.jsonl", "out.parquet", "--id", "null")[0] == 0
    assert pq.read_table("out.parquet")["query_id"][0].as_py() == "queries.jsonl:0"


def test_queries_of_another_column_and_integer_ids(run: Any) -> None:
    pq.write_table(pa.table({"number": [7, 8], "question": ["one", "two"]}), "q.parquet")
    assert run("q.parquet", "out.parquet", "--id", "number", "--text", "question")[0] == 0
    table = pq.read_table("out.parquet", columns=["query_id", "text"])
    assert table.to_pydict() == {"query_id": ["7", "8"], "text": ["one", "two"]}


def test_queries_of_many_batches_keep_their_order(run: Any) -> None:
    write_beir("many.jsonl", {f"q{i}": f"query number {i}" for i in range(700)})
    assert run("many.jsonl", "out.parquet", "--id", "_id", "--set", "outputs=[dense]")[0] == 0
    ids = pq.read_table("out.parquet", columns=["query_id"])["query_id"].to_pylist()
    assert ids == [f"q{i}" for i in range(700)]


def test_rows_that_are_no_queries_are_named_and_the_others_written(run: Any) -> None:
    write_beir("q.jsonl", {"a": "fine", "b": "", "c": None, "": "no id", "d": 5, "e": "fine too"})
    with Path("q.jsonl").open("a") as file:
        file.write("{broken\n")
        file.write('{"_id": "f", "text": " "}\n')
    result = run("q.jsonl", "out.parquet", "--id", "_id")
    check_error(
        result,
        1,
        "warning: row 2 (id 'b'): empty_text",
        "warning: row 3 (id 'c'): null_text",
        "warning: row 4: missing_id",
        "warning: row 5 (id 'd'): bad_record",
        "not JSON",
        "2 queries, ",
        "error: 6 of 8 rows could not be encoded",
    )
    assert result[1].count("warning:") == 5
    assert pq.read_table("out.parquet")["query_id"].to_pylist() == ["a", "e"]


def test_query_that_the_model_cannot_encode_is_named_and_left_out(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = encoder().tokenize_queries([QUERIES["PLAIN-2"]]).rows()[0].tolist()
    run_rows = Forward._run_rows

    def fails(self: Forward, window: Any, rows: Any) -> None:
        for row in rows:
            if window.values[window.offsets[row] : window.offsets[row + 1]].tolist() == bad:
                raise RuntimeError("kernel failed")
        run_rows(self, window, rows)

    monkeypatch.setattr(Forward, "_run_rows", fails)
    for setting in ("values", "bytes"):
        option = f"index.colbert_storage={setting}"
        result = run("queries.jsonl", "out.parquet", "--id", "_id", "--force", "--set", option)
        check_error(result, 1, "row 2 (id 'PLAIN-2'): encoder_error", "kernel failed", "1 of 3")
        table = pq.read_table("out.parquet")
        assert table["query_id"].to_pylist() == ["PLAIN-1", "PLAIN-3"]
        assert table["dense"].null_count == 0


def test_crash_leaves_no_file_and_keeps_the_old_one(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(*_: Any) -> Any:
        raise OSError("disk gone")

    Path("old.parquet").write_text("old")
    monkeypatch.setattr(Encoder, "tokenize_queries", crashes)
    check_error(run("queries.jsonl", "out.parquet", "--id", "_id"), 1, "disk gone")
    check_error(run("queries.jsonl", "old.parquet", "--id", "_id", "--force"), 1, "disk gone")
    assert left_behind(folder) == {"old.parquet"}
    assert Path("old.parquet").read_text() == "old"


def test_existing_file_is_replaced_only_by_force(run: Any) -> None:
    Path("out.parquet").write_text("old")
    check_error(run("queries.jsonl", "out.parquet", "--id", "_id"), 2, "found one", "--force")
    assert Path("out.parquet").read_text() == "old"
    assert run("queries.jsonl", "out.parquet", "--id", "_id", "--force")[0] == 0
    assert pq.read_metadata("out.parquet").num_rows == 3


def test_folders_of_the_file_are_made(run: Any) -> None:
    assert run("queries.jsonl", "new/folder/out.parquet", "--id", "_id")[0] == 0
    assert pq.read_metadata("new/folder/out.parquet").num_rows == 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["queries.jsonl", "s3://bucket/out.parquet"], ("local path", "s3://bucket/out.parquet")),
        (["queries.jsonl", "."], ("OUT", "folder")),
        (["queries.jsonl", "queries.jsonl", "--force"], ("OUT", "QUERIES")),
        (["queries.jsonl", "run.yaml/out.parquet", "--id", "_id"], ("OUT", "run.yaml")),
        (["absent.jsonl", "out.parquet"], ("QUERIES: expected", "absent.jsonl")),
        (["queries.jsonl", "out.parquet"], ("--id: expected", "'id'", "_id, text", "--id=null")),
        (["queries.jsonl", "out.parquet", "--id", "_id", "--text", "q"], ("--text", "'q'")),
        (["queries.jsonl", "out.parquet", "--format", "jsnl"], ("--format", "'jsnl'", "jsonl")),
        (["queries.jsonl", "out.parquet", "--set", "outputs=[dens]"], ("outputs", "'dens'")),
        (["empty.csv", "out.parquet"], ("QUERIES", "empty.csv", "found none")),
        (
            ["queries.jsonl", "out.parquet", "--id", "_id", "--set", "model.name=no/such"],
            ("no/such", "hf download"),
        ),
    ],
)
def test_request_that_cannot_be_started_exits_with_two(
    run: Any, folder: Path, arguments: list[str], parts: tuple[str, ...]
) -> None:
    Path("empty.csv").write_text("id,text\n")
    before = left_behind(folder)
    check_error(run(*arguments), 2, *parts)
    assert left_behind(folder) == before


def test_verbose_shows_where_an_error_was_raised(run: Any) -> None:
    code, message = run("absent.jsonl", "out.parquet", "--verbose")
    assert code == 2
    assert "Traceback" in message


def test_queries_in_batches_hold_few_rows(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Bounded memory: no more than a batch is ever tokenised at once."""
    sizes: list[int] = []
    tokenize = Encoder.tokenize_queries

    def counted(self: Encoder, queries: Any) -> Any:
        sizes.append(len(queries))
        return tokenize(self, queries)

    monkeypatch.setattr(Encoder, "tokenize_queries", counted)
    write_beir("many.jsonl", {f"q{i}": f"query {i}" for i in range(600)})
    assert run("many.jsonl", "out.parquet", "--id", "_id", "--set", "outputs=[dense]")[0] == 0
    assert sizes == [module._BATCH_QUERIES, module._BATCH_QUERIES, 88]


def test_module_needs_no_ray() -> None:
    code = "import sys, pipelines.encode_queries; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
