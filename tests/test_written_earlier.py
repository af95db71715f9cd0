"""Indexes and interrupted runs of an earlier version are read and continued."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
import typer
from chaos import TOLERANCE, largest_difference
from s3_server import KEY, REGION, SECRET, S3Server, s3_server
from typer.testing import CliRunner

from pipelines import compact_index, verify_index
from pipelines.config import RunConfig, parse_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.reindex import reindex

__all__ = ["s3_server"]

DATA = Path(__file__).parent / "data/written_by_0_1"
BUCKET = "packvec-written-earlier"


@pytest.fixture
def put_source(s3_server: S3Server) -> Callable[[str], None]:
    """Makes one of the two states of the documents what the bucket holds."""
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name=REGION,
    )

    def put(state: str) -> None:
        client.create_bucket(Bucket=BUCKET)
        for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
        for path in sorted((DATA / state).iterdir()):
            client.put_object(Bucket=BUCKET, Key=f"docs/{path.name}", Body=path.read_bytes())

    return put


@pytest.fixture
def config_of(tmp_path: Path, s3_server: S3Server) -> Callable[[str], RunConfig]:
    """The configuration of an index, unpacked where a name is one of the data folder's."""

    def config(name: str) -> RunConfig:
        folder = tmp_path / name
        if (DATA / f"{name}.zip").exists():
            with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
                archive.extractall(folder)
        return parse_config(
            {
                "source": {
                    "uri": f"s3://{BUCKET}/docs",
                    "columns": {"title": "title", "metadata": ["url"]},
                    "storage_options": s3_server.storage_options,
                },
                "index": {"uri": str(folder), "colbert_storage": "bytes"},
                "model": {
                    "name": "builtin:tiny-m3",
                    "max_length": 64,
                    "dtype": "float32",
                    "device": "cpu",
                },
                "outputs": ["dense", "sparse", "colbert"],
                "chunk": {"max_tokens": 24, "overlap": 4},
                "slice": {"documents": 4},
                "max_reject_fraction": 0.5,
                "gate": {"max_deleted": 0.9, "max_changed": 0.9},
                "ray": {"engine": "in_process", "actors": 1},
            }
        )

    return config


def rows(config: RunConfig, **options: Any) -> pa.Table:
    """The live rows of an index, in one order."""
    return open_index(config.index.uri, **options).to_table().sort_by("passage_id").combine_chunks()


def assert_same(one: pa.Table, other: pa.Table) -> None:
    """Vectors may differ by rounding: another kind of CPU made the older ones."""
    vectors = ["dense", "sparse", "colbert"]
    assert one.drop(vectors).equals(other.drop(vectors))
    assert largest_difference(one, other) <= TOLERANCE


def command(app: typer.Typer, *arguments: str) -> None:
    """Run a command that must succeed."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_index_written_earlier_is_read_as_a_new_one_of_the_same_documents(put_source, config_of):
    old, new = config_of("committed"), config_of("new")
    put_source("source")
    embed_corpus(new)
    assert_same(rows(old, generation=1), rows(new))
    put_source("source-edited")
    reindex(new)
    assert_same(rows(old), rows(new))
    counts = [open_index(c.index.uri).info.counts for c in (old, new)]
    assert counts[0] == counts[1]


def test_index_written_earlier_is_up_to_date_with_its_source(put_source, config_of):
    put_source("source-edited")
    assert reindex(config_of("committed")).generation == 2


def test_index_written_earlier_is_reindexed(put_source, config_of):
    config = config_of("committed")
    put_source("source")
    manifest = reindex(config)
    assert (manifest.generation, manifest.parent) == (3, 2)
    assert_same(rows(config), rows(config, generation=1))
    assert manifest.counts.reused > 0  # vectors are taken from the parts of the earlier version


def test_index_written_earlier_is_whole_and_stays_so_when_compacted(config_of):
    config = config_of("committed")
    before = rows(config)
    command(verify_index.app, config.index.uri, "--deep")
    command(compact_index.app, config.index.uri, "--force")
    assert open_index(config.index.uri).info.generation == 3
    assert rows(config).equals(before)
    command(verify_index.app, config.index.uri, "--deep")


def test_embedding_interrupted_earlier_is_resumed_with_its_slices(put_source, config_of):
    config, new = config_of("interrupted-embed"), config_of("new")
    put_source("source")
    written = sorted(Path(config.index.uri).glob("data/*/*.parquet"))
    manifest = embed_corpus(config)
    parts = {f"{config.index.uri}/{path}" for path in open_index(config.index.uri).part_paths}
    assert len(written) == 3
    assert {str(path) for path in written} < parts
    assert manifest.run_id == written[0].parent.name
    embed_corpus(new)
    assert_same(rows(config), rows(new))


def test_reindexing_interrupted_earlier_is_resumed_with_its_slices(put_source, config_of):
    config, whole = config_of("interrupted-reindex"), config_of("committed")
    put_source("source-edited")
    [run] = [
        folder.name
        for folder in Path(config.index.uri, "runs").iterdir()
        if folder.name != open_index(config.index.uri).info.run_id
    ]
    assert reindex(config).run_id == run
    assert_same(rows(config), rows(whole))
