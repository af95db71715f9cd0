"""Where a run executes decides nothing: on Ray and in this process it gives the same index."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, config_for

from actors.errors import EmbedError
from pipelines.config import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.records import Done, Manifest
from pipelines.plan.plan import read_done
from pipelines.reindex import reindex
from pipelines.run.context import engine_of
from pipelines.run.engine import EncodeJob, Engine
from pipelines.store import open_store
from pipelines.terminal.progress import Progress

ENGINES = ("ray", "in_process")
UNCHECKED = {"run_id", "nonce", "encoder", "seconds", "times", "part", "ledger"}
UNCHECKED |= {"reject_file", "unchanged_file"}
"""Fields of a done record that say who did it, when, or where its files lie."""

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows(articles: pa.Table) -> Rows:
    """50 articles, some of which become rejects."""
    rows: Rows = articles.slice(0, 50).to_pylist()
    rows[7]["text"] = None
    rows[22]["text"] = " \n"
    rows[41] |= {"id": rows[3]["id"], "text": "of an id that an earlier article has"}
    return rows


def write(docs: Path, rows: Rows, schema: pa.Schema) -> None:
    docs.mkdir(exist_ok=True)
    for name, some in (("a", rows[:30]), ("b", rows[30:])):
        path = docs / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(some, schema), path, row_group_size=20)


def config_on(engine: str, folder: Path, index: str | None = None) -> RunConfig:
    return config_for(
        folder / "docs",
        index={"uri": str(folder / (index or engine))},
        slice={"documents": 8},
        ray={"engine": engine},
        max_reject_fraction=0.5,
    )


class Made:
    """An index, by what must not depend on the engine."""

    def __init__(self, config: RunConfig, manifest: Manifest) -> None:
        self.store = open_store(config.index.uri)
        index = open_index(config.index.uri)
        done = read_done(self.store, manifest.run_id)
        self.records = [record.model_dump(exclude=UNCHECKED) for record in done]
        self.parts = self._contents(done, "part")
        self.rejects = self._contents(done, "reject_file")
        self.unchanged = self._contents(done, "unchanged_file")
        self.ledger = self._rows(index.documents(), "part")
        self.all_rejects = self._rows(index.rejects())
        self.counts = manifest.counts
        self.fingerprints = manifest.space_fingerprint, manifest.index_fingerprint
        self.run_id = manifest.run_id

    def _contents(self, done: list[Done], field: str) -> dict[tuple[int, int], bytes]:
        files = {(r.unit, r.first_document): getattr(r, field) for r in done}
        return {slice_: self.store.read(file.path) for slice_, file in files.items() if file}

    def _rows(self, table: pa.Table, *without: str) -> list[str]:
        """In one order; names of parts are random."""
        kept = [name for name in table.column_names if name not in without]
        return sorted(map(repr, table.select(kept).to_pylist()))


def assert_same(one: Made, other: Made) -> None:
    """All but names of files; the vectors to the last bit."""
    assert_alike(one, other)
    assert [slice_ for slice_ in one.parts if one.parts[slice_] != other.parts[slice_]] == []


def assert_alike(one: Made, other: Made) -> None:
    """As `assert_same`, but for the last bits of vectors."""
    assert one.parts.keys() == other.parts.keys()
    mine, theirs = ({**vars(each), "store": None, "parts": None} for each in (one, other))
    assert mine == theirs
    for slice_, part in one.parts.items():
        tables = [pq.read_table(pa.BufferReader(p)) for p in (part, other.parts[slice_])]
        dense = [np.array(table["dense"].to_pylist(), np.float32) for table in tables]
        np.testing.assert_allclose(*dense, atol=5e-3)
        vectors = ["dense", "sparse", "colbert"]
        assert tables[0].drop_columns(vectors).equals(tables[1].drop_columns(vectors))


def test_embedding_and_reindexing_on_either_engine_give_the_same_files(
    tmp_path: Path, rows: Rows, articles: pa.Table, ray_cluster: None
) -> None:
    write(tmp_path / "docs", rows, articles.schema)
    configs = [config_on(engine, tmp_path) for engine in ENGINES]
    first = [Made(config, embed_corpus(config)) for config in configs]
    assert len(first[0].parts) == 8
    assert first[0].counts.rejects == {"duplicate_id": 1, "empty_text": 1, "null_text": 1}
    assert_same(*first)

    edited = [dict(row) for row in rows]
    edited[0]["text"] += " One sentence more."
    edited[35]["title"] = "another title"
    edited.append(edited.pop(12) | {"id": "new"})
    write(tmp_path / "docs", edited, articles.schema)
    second = [Made(config, reindex(config)) for config in configs]
    counts = second[0].counts
    assert (counts.documents, counts.deleted, counts.replaced) == (3, 1, 2)
    assert second[0].parts
    assert second[0].unchanged
    assert_same(*second)


class Interrupted:
    """An engine whose run ends after some slices."""

    def __init__(self, engine: Engine, slices: int) -> None:
        self._engine, self._slices = engine, slices

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        yield from itertools.islice(self._engine.encode(job, todo, progress), self._slices)
        raise EmbedError("the power is gone")


@pytest.mark.parametrize(("begun_on", "resumed_on"), [ENGINES, ENGINES[::-1]])
def test_run_interrupted_on_one_engine_is_resumed_on_the_other(
    tmp_path: Path,
    rows: Rows,
    articles: pa.Table,
    ray_cluster: None,
    begun_on: str,
    resumed_on: str,
) -> None:
    write(tmp_path / "docs", rows, articles.schema)
    begun = config_on(begun_on, tmp_path)
    with pytest.raises(EmbedError, match="the power is gone"):
        embed_corpus(begun, engine=Interrupted(engine_of(begun), slices=3))
    store = open_store(begun.index.uri)
    [run] = Path(begun.index.uri, "runs").iterdir()
    before = read_done(store, run.name)
    assert len(before) >= 3
    ray = begun.ray.model_copy(update={"engine": resumed_on})
    manifest = embed_corpus(begun.model_copy(update={"ray": ray}))
    after = {(r.unit, r.first_document): r for r in read_done(store, run.name)}
    assert manifest.run_id == run.name
    assert all(after[r.unit, r.first_document] == r for r in before)
    assert manifest.counts.documents == 47
    undisturbed = config_on("in_process", tmp_path, "undisturbed")
    # A slice in which Ray's actors were stopped is taken for one that kills: encoded in pieces.
    assert_alike(Made(begun, manifest), Made(undisturbed, embed_corpus(undisturbed)))


def test_run_in_this_process_imports_no_ray(tmp_path: Path, rows: Rows, articles: pa.Table) -> None:
    """Embedding and re-indexing, in a fresh interpreter."""
    write(tmp_path / "docs", rows[:4], articles.schema)
    script = (
        "import shutil, sys\n"
        "from pipelines.config import RunConfig\n"
        "from pipelines.embed_corpus import embed_corpus\n"
        "from pipelines.reindex import reindex\n"
        "config = RunConfig.model_validate_json(sys.stdin.read())\n"
        "embed_corpus(config)\n"
        "shutil.copy(sys.argv[1] + '/a.parquet', sys.argv[1] + '/c.parquet')\n"
        "print(reindex(config).generation)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'ray'}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "docs")],
        input=config_on("in_process", tmp_path).model_dump_json(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["2", ""]
