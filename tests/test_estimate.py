"""Estimates against what a run does: the same counts, the same bytes, from a part of the corpus."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CORPUS, config_for
from reading import http_place

from actors.encoder import load_encoder
from actors.models.files import resolve_model
from pipelines.estimate.estimate import Estimate, estimate_run
from pipelines.estimate.sample import Budget
from pipelines.estimate.speed import RememberedSpeed
from pipelines.passages.blocks import BlockBuilder
from pipelines.passages.rows import passage_blocks
from pipelines.run.engine import EncodeJob, slice_encoder, slice_reader
from pipelines.source import Source
from pipelines.terminal.text import byte_count, describe

SMALL = Budget(documents=300, text_bytes=250_000, read_bytes=200_000)
"""Far less than the 1,200 articles (1 MB)."""
TOKENS, BYTES = 0.10, 0.15


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_wiki(rows):
    element = '<doc id="{id}" url="{url}" title="{title}">\n{text}\n</doc>\n'
    return "".join(element.format_map(row) for row in rows).encode()


def as_parquet(rows, **how):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **how)
    return sink.getvalue()


WRITERS = {
    "parquet": lambda rows: as_parquet(rows, row_group_size=200),
    "jsonl": as_jsonl,
    "jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "jsonl.zst": lambda rows: pa.Codec("zstd").compress(as_jsonl(rows), asbytes=True),
    "csv": as_csv,
    "wiki": as_wiki,
}


def corpus_of(tmp_path, rows, kind="jsonl", files=1):
    folder = tmp_path / "docs"
    folder.mkdir()
    size = -(-len(rows) // files)
    for i in range(files):
        (folder / f"{i:03}.{kind}").write_bytes(WRITERS[kind](rows[i * size : (i + 1) * size]))
    return folder


def planned(config):
    files, source = resolve_model(config.encoder), Source(config.source)
    return files, source, source.units(source.list_files())


def estimate_of(config, **how) -> Estimate:
    return estimate_run(config, *planned(config), **how)


def counts_of(config):
    """The truth: everything read, chunked and tokenised."""
    files, source, units = planned(config)
    builder = passage_blocks(config, files)
    blocks = [builder.build(b, 0, 0) for unit in units for b in source.read(unit)]
    return {
        "documents": sum(map(len, blocks)),
        "passages": sum(block.tables.passages.num_rows for block in blocks),
        "tokens": sum(int(block.tokens[-1]) for block in blocks),
        "truncated": sum(sum(b.tables.passages["truncated"].to_pylist()) for b in blocks),
    }


def ratio(estimate, truth, name):
    return getattr(estimate, name) / truth[name]


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(CORPUS).to_pylist()


@functools.cache
def counts_up_to(limit):
    """The counts of the first `rows`, in whatever format they are."""
    return counts_of(config_for(CORPUS, source={"limit": limit}, index={"uri": "nowhere"}))


@pytest.fixture(scope="module")
def truth():
    return counts_up_to(None)


# Counts


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.zst", "csv"])
def test_estimate_of_a_small_corpus_is_exact(tmp_path, make_config, rows, kind):
    config = make_config(corpus_of(tmp_path, rows[:60], kind, files=2))
    found = estimate_of(config)
    assert {k: getattr(found, k) for k in counts_of(config)} == counts_of(config)
    assert {"documents", "passages", "tokens", "truncated", "rejects"} <= set(found.exact)
    assert f"tokens           {found.tokens:,}" in found.to_text()


@pytest.mark.parametrize(
    ("kind", "files"),
    [("parquet", 1), ("parquet", 7), ("jsonl", 1), ("jsonl.gz", 1), ("csv", 7)],
)
def test_estimate_from_a_part_is_within_ten_percent_of_the_tokens(
    tmp_path, make_config, rows, truth, kind, files
):
    config = make_config(corpus_of(tmp_path, rows, kind, files))
    found = estimate_of(config, budget=SMALL)
    assert found.documents_sampled <= 300
    assert "tokens" not in found.exact
    assert ratio(found, truth, "tokens") == pytest.approx(1, abs=TOKENS)
    assert ratio(found, truth, "passages") == pytest.approx(1, abs=TOKENS)
    assert ratio(found, truth, "documents") == pytest.approx(1, abs=0.25)
    assert found.rejects == {}  # what is torn where reading stopped is none
    assert ("documents" in found.exact) == (kind == "parquet")


def test_estimate_of_undivided_documents_counts_what_the_model_sees(tmp_path, make_config, rows):
    rows = [dict(row, text=row["text"] * (100 if i % 50 == 0 else 1)) for i, row in enumerate(rows)]
    config = make_config(corpus_of(tmp_path, rows, "parquet"), chunk={"by": "none"})
    found, truth = estimate_of(config, budget=SMALL), counts_of(config)
    assert found.passages == pytest.approx(truth["passages"], rel=0.01)
    assert found.tokens == pytest.approx(truth["tokens"], rel=TOKENS)
    assert found.truncated == pytest.approx(truth["truncated"], rel=TOKENS)


def test_estimate_of_one_very_long_document_tokenises_little_of_it(
    tmp_path, make_config, rows, monkeypatch
):
    once = "\n\n".join(row["text"] for row in rows[:40])
    times = 6_000_000 // len(once)
    long = {**rows[0], "id": "long", "text": "\n\n".join([once] * times)}
    config = make_config(corpus_of(tmp_path, [long, *rows[:20]]))
    tokenised = []

    build = BlockBuilder.build

    def counting(self, batch, unit, position):
        tokenised.append(sum(map(len, batch.table["text"].to_pylist())))
        return build(self, batch, unit, position)

    monkeypatch.setattr(BlockBuilder, "build", counting)
    found = estimate_of(config)
    assert 0 < sum(tokenised) < 100_000
    assert "documents" in found.exact
    assert "tokens" not in found.exact
    single = make_config(corpus_of(tmp_path / "docs", [{**long, "text": once}]))
    assert found.tokens == pytest.approx(times * counts_of(single)["tokens"], rel=TOKENS)


def test_estimate_where_texts_repeat_does_not_trust_the_dictionary_page(
    tmp_path, make_config, rows
):
    rows = [dict(rows[i % 100], id=str(i)) for i in range(12_000)]
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(as_parquet(rows))  # one row group, a dictionary of 100
    config = make_config(folder)
    tokens = counts_of(make_config(folder, source={"limit": 100}))["tokens"] * 120
    found = estimate_of(config, budget=Budget(400, 300_000, read_bytes=90_000))
    assert found.tokens == pytest.approx(tokens, rel=TOKENS)


def test_estimate_where_the_longest_come_first_is_not_taken_in_by_them(
    tmp_path, make_config, rows, truth
):
    rows = sorted(rows, key=lambda row: -len(row["text"]))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(as_parquet(rows, use_dictionary=False))
    found = estimate_of(make_config(folder), budget=SMALL)
    assert ratio(found, truth, "tokens") == pytest.approx(1, abs=TOKENS)


@pytest.mark.parametrize(
    ("kind", "read_bytes"), [("jsonl.gz", 40_000), ("csv", 100_000), ("wiki", 100_000)]
)
def test_estimate_takes_no_record_for_a_reject_that_is_torn_where_reading_stopped(
    tmp_path, make_config, rows, kind, read_bytes
):
    rows = [dict(row, text=f'{row["text"]}\nthree, commas, "in", a line\n' * 3) for row in rows]
    config = make_config(corpus_of(tmp_path, rows[:200], kind, files=5))
    all_of_it = Budget(10_000, 10_000_000, read_bytes)
    found = estimate_of(config, budget=all_of_it)
    assert "documents" not in found.exact
    assert found.documents_sampled > 20
    assert found.rejects == {}


def test_estimate_reads_on_where_the_beginning_of_a_file_holds_no_whole_record(
    tmp_path, make_config, rows
):
    long = "\n".join(row["text"] for row in rows[:200])
    config = make_config(corpus_of(tmp_path, [dict(rows[0], text=long), *rows], "csv"))
    found = estimate_of(config, budget=Budget(read_bytes=20_000))
    assert found.documents_sampled > 0
    assert found.rejects == {}


def test_estimate_of_text_files_knows_how_many_documents_there_are(tmp_path, make_config, rows):
    folder = tmp_path / "docs"
    folder.mkdir()
    for row in rows[:400]:
        (folder / f"{row['id']}.txt").write_text(row["text"])
    config = make_config(folder, source={"columns": {"id": None}})
    found, truth = estimate_of(config), counts_of(config)
    assert found.documents == 400
    assert "documents" in found.exact
    assert 32 <= found.documents_sampled <= 256  # each is a file to open
    # So few documents of such different lengths; the bytes of all of them are known.
    assert ratio(found, truth, "tokens") == pytest.approx(1, abs=TOKENS)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize(("limit", "is_exact"), [(70, True), (700, False)])
def test_estimate_with_a_limit_counts_the_documents_up_to_it(
    tmp_path, make_config, rows, kind, limit, is_exact
):
    folder = corpus_of(tmp_path, rows, kind)
    config = make_config(folder, source={"limit": limit})
    found, truth = estimate_of(config, budget=SMALL), counts_up_to(limit)
    assert found.documents == limit
    assert "documents" in found.exact
    assert ("tokens" in found.exact) == is_exact
    tolerance = 0 if is_exact else 2 * TOKENS  # the beginning is not like the whole
    assert ratio(found, truth, "tokens") == pytest.approx(1, abs=tolerance)


def test_estimate_counts_rejects_by_code(tmp_path, make_config, rows):
    rows = [dict(row, text=" " if i % 4 == 0 else row["text"]) for i, row in enumerate(rows)]
    config = make_config(corpus_of(tmp_path, rows, "parquet"))
    found = estimate_of(config, budget=SMALL)
    assert found.rejects["empty_text"] == pytest.approx(300, rel=0.25)
    assert "empty_text" in found.to_text()


def test_estimate_with_an_id_twice_is_not_called_exact(tmp_path, make_config, rows):
    config = make_config(corpus_of(tmp_path, [*rows[:5], rows[0]]))
    assert "tokens" not in estimate_of(config).exact


def test_estimate_of_a_damaged_file_tells_of_the_rest(tmp_path, make_config, rows):
    folder = corpus_of(tmp_path, rows[:200], "jsonl.gz", files=4)
    damaged = folder / "002.jsonl.gz"
    damaged.write_bytes(damaged.read_bytes()[:9000])
    config = make_config(folder)
    found = estimate_of(config)
    assert 150 < found.documents < 200
    assert "tokens" not in found.exact
    assert found.tokens > 0


def test_estimate_of_documents_without_text_is_nothing(tmp_path, make_config, rows):
    config = make_config(corpus_of(tmp_path, [dict(row, text="") for row in rows[:9]]))
    found = estimate_of(config)
    assert (found.documents, found.passages, found.tokens, found.bytes) == (9, 0, 0, {})
    assert found.rejects == {"empty_text": 9}


def test_estimate_reads_from_a_store(make_config, rows, truth, s3_bucket):
    import fsspec

    bucket, options = s3_bucket
    uri = f"{bucket}/some/docs"
    fs = fsspec.core.url_to_fs(uri, **options)[0]
    for kind in ("jsonl", "jsonl.gz"):
        fs.pipe_file(f"{uri}-{kind}/a.{kind}", WRITERS[kind](rows))
        config = make_config(f"{uri}-{kind}", source={"storage_options": options})
        found = estimate_of(config, budget=SMALL)
        assert ratio(found, truth, "tokens") == pytest.approx(1, abs=TOKENS)


@pytest.mark.parametrize("kind", ["http", "http-bare"])
def test_estimate_reads_the_beginning_from_a_server_without_ranges(
    tmp_path, make_config, rows, truth, kind
):
    url, stop = http_place(corpus_of(tmp_path, rows, "csv"), kind)
    try:
        config = make_config(f"{url}/000.csv")
        part = estimate_of(config, budget=replace(SMALL, read_bytes=700_000))
        whole = estimate_of(config)
    finally:
        stop()
    assert whole.documents == 1200
    assert ratio(whole, truth, "tokens") == pytest.approx(1, abs=TOKENS)
    if kind == "http":
        assert ratio(part, truth, "tokens") == pytest.approx(1, abs=TOKENS)
    else:  # nothing tells how long the file is
        assert "is a guess" in part.to_text()
    assert part.rejects == {}


def test_estimate_says_when_ids_are_positions(tmp_path, make_config, rows):
    folder = corpus_of(tmp_path, rows[:9])
    found = estimate_of(make_config(folder, source={"columns": {"id": None}}))
    assert "ids: from file name and position" in found.to_text()
    assert "ids:" not in estimate_of(make_config(folder)).to_text()


# Bytes


OUTPUTS = {
    "all": {},
    "dense": {"outputs": ["dense"]},
    # With AMX "auto" is bfloat16, whose weights compress better: estimated from above.
    "sparse": {
        "outputs": ["sparse"],
        "index": {"store_text": False},
        "model": {"dtype": "float32"},
    },
    "bytes": {"index": {"colbert_storage": "bytes"}, "model": {"truncate_dim": 24}},
    "float32": {"outputs": ["dense", "colbert"], "model": {"vector_dtype": "float32"}},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_estimate_of_bytes_is_within_fifteen_percent_of_the_parts(
    tmp_path, make_config, rows, name
):
    sections = {"slice": {"documents": 12}} | OUTPUTS[name]
    config = make_config(corpus_of(tmp_path, rows[:24], "parquet"), **sections)
    fingerprint = load_encoder(config.encoder).info.space_fingerprint
    encoder, units = (
        slice_encoder(EncodeJob(config, "run", "attempt", fingerprint)),
        planned(config)[2],
    )
    reader = slice_reader(config)
    parts = [encoder.encode(piece).part for unit in units for piece in reader.slices(unit)]
    found = estimate_of(config)
    assert found.slices == len(parts)
    assert found.total_bytes == pytest.approx(sum(p.bytes for p in parts), rel=BYTES)
    stored = {"text", "columns", *config.outputs}
    assert set(found.bytes) == (stored if config.index.store_text else stored - {"text"})


def test_estimate_of_bytes_by_column_is_what_the_columns_take(tmp_path, make_config, rows):
    config = make_config(corpus_of(tmp_path, rows[:30], "parquet"), slice={"documents": 30})
    fingerprint = load_encoder(config.encoder).info.space_fingerprint
    encoder, unit = (
        slice_encoder(EncodeJob(config, "run", "attempt", fingerprint)),
        planned(config)[2][0],
    )
    [piece] = slice_reader(config).slices(unit)
    part = encoder.encode(piece).part
    metadata = pq.read_metadata(Path(config.index.uri) / part.path)
    true = {"text": 0, "dense": 0, "sparse": 0, "colbert": 0, "columns": part.bytes}
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(i)
            name = chunk.path_in_schema.partition(".")[0]
            if name in true:
                true[name] += chunk.total_compressed_size
                true["columns"] -= chunk.total_compressed_size
    found = estimate_of(config)
    for name, tolerance in (("dense", 0.02), ("colbert", 0.01), ("text", 0.1), ("columns", 0.1)):
        assert found.bytes[name] == pytest.approx(true[name], rel=tolerance), name


# Hours, and the text


def test_estimate_of_hours_divides_tokens_by_the_speed_of_all_actors(tmp_path, make_config, rows):
    config = make_config(corpus_of(tmp_path, rows[:30]), ray={"actors": 3})
    found = estimate_of(config, speed=RememberedSpeed(10.0, "given"))
    assert found.hours == pytest.approx(found.tokens / 10 / 3 / 3600)
    assert estimate_of(
        config, speed=RememberedSpeed(10.0, "given"), actors=6
    ).hours == pytest.approx(found.hours / 2)
    assert "with 3 actors (10 tokens/s each, given)" in found.to_text()


def test_estimate_without_a_speed_says_how_to_get_one(tmp_path, make_config, rows):
    found = estimate_of(make_config(corpus_of(tmp_path, rows[:9])))
    assert found.hours is None
    assert "--tokens-per-second" in found.to_text()


def test_estimate_as_json_holds_what_the_text_says(tmp_path, make_config, rows):
    found = estimate_of(make_config(corpus_of(tmp_path, rows[:9])))
    facts = json.loads(json.dumps(found.to_json()))
    assert facts["total_bytes"] == sum(facts["bytes"].values())
    assert describe(facts) == found.to_text()


def test_estimate_text_is_short_aligned_and_marks_what_is_not_exact(tmp_path, make_config, rows):
    config = make_config(corpus_of(tmp_path, rows, "parquet"))
    lines = estimate_of(config, budget=SMALL).to_text().splitlines()
    assert len(lines) < 20
    assert lines[0].startswith("documents        1,200 in 6 units, ~")
    assert all(line[16] == " " and line[17] != " " for line in lines)
    assert lines[1].split()[1].startswith("~")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (999_900, "1 MB"), (2e12, "2 TB")],
)
def test_byte_count_has_three_digits_and_a_unit(size, text):
    assert byte_count(size) == text


def test_estimating_starts_neither_ray_nor_an_encoder():
    code = (
        "import sys; from pipelines.estimate.estimate import estimate_run; "
        "names = ('transformers', 'actors.encoder', 'actors.network.backbone', 'ray.'); "
        "print([m for m in sys.modules if m == 'ray' or m.startswith(names)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
