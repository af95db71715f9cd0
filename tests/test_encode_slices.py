"""Encoding a slice, without Ray: what is written is what its done record says."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from actors.encoder import load_encoder
from actors.errors import DeviceError, ModelError
from actors.models.files import resolve_model
from actors.network import forward
from pipelines.index.layout import done_path
from pipelines.index.parts import VECTOR_COLUMNS
from pipelines.index.records import Done
from pipelines.index.schemas import LEDGER_SCHEMA, REJECTS_SCHEMA
from pipelines.plan.plan import read_done
from pipelines.plan.request import Request
from pipelines.run.engine import EncodeJob, slice_encoder, slice_reader
from pipelines.run.on_ray import EncodingActor
from pipelines.source import Source
from pipelines.store import open_store

RUN = "0123456789abcdef"
EXACT = {"name": "builtin:tiny-m3", "max_length": 128, "dtype": "float32", "device": "cpu"}
SENTENCE = "the quick brown fox jumps over the lazy dog and on"
LONG = " ".join([SENTENCE] * 14)  # several passages
POISON = "Zq"  # one token that no other text here has


@pytest.fixture(autouse=True)
def _one_thread():
    """On matrices this small a second thread waits longer than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bench:
    """A source, a slice encoder and what it has written."""

    def __init__(self, folder, make_config, texts, ids=None, **sections):
        n = len(texts)
        table = pa.table(
            {
                "id": pa.array(ids or [f"d{i}" for i in range(n)], pa.string()),
                "text": pa.array(texts, pa.string()),
                "title": pa.array([f"title {i}" for i in range(n)], pa.string()),
                "url": pa.array([f"u/{i}" for i in range(n)], pa.string()),
            }
        )
        path = folder / "docs.parquet"
        pq.write_table(table, path)
        sections["model"] = EXACT | sections.get("model", {})
        self.config = make_config(path, **({"slice": {"documents": 100}} | sections))
        source = Source(self.config.source)
        [unit] = source.units(source.list_files())
        self.slices = [*slice_reader(self.config).slices(unit)]
        request = Request.of(self.config, resolve_model(self.config.encoder))
        self.store = open_store(self.config.index.uri, self.config.index.storage_options)
        self.job = EncodeJob(self.config, RUN, "attempt", request.space_fingerprint)
        self.encoder = slice_encoder(self.job)

    def encode(self):
        """The only slice, encoded."""
        [work] = self.slices
        return self.encoder.encode(work)

    def read(self, record):
        """The table in a file, checked against its record."""
        data = self.store.read(record.path)
        table = pq.read_table(pa.BufferReader(data))
        assert record.bytes == len(data)
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.rows == table.num_rows > 0
        return table

    def poison(self):
        """From now on a passage with the token POISON has no finite vector."""
        backbone = self.encoder._encoder._forward.backbone
        tokenizer = self.encoder._encoder.passage_tokenizer
        [_, token, _] = tokenizer.tokenize([POISON]).values.tolist()
        backbone.words_VH[token] = torch.nan


@pytest.fixture(autouse=True)
def _window_of_one_micro_batch(monkeypatch):
    """Small batches, so that a document's passages are in several."""
    monkeypatch.setattr(forward, "_WINDOW_BATCHES", 1)


@pytest.fixture
def bench(tmp_path, make_config):
    def make(texts, **more):
        return Bench(tmp_path, make_config, texts, **more)

    return make


def visible(part, done):
    """The rows of a part that readers see."""
    keep = np.ones(part.num_rows, dtype=bool)
    for rows in done.masked:
        keep[rows.first_row : rows.first_row + rows.n_rows] = False
    return part.filter(pa.array(keep))


def check_ledger(ledger, part):
    """Every document's rows are where the ledger says, whole and in order."""
    for row in ledger.to_pylist():
        rows = part.slice(row["first_row"], row["n_rows"])
        assert rows["doc_id"].to_pylist() == [row["doc_id"]] * row["n_rows"]
        assert rows["passage_no"].to_pylist() == [*range(row["n_rows"])]
        assert sum(rows["n_tokens"].to_pylist()) == row["n_tokens"]


def check_counts(done, part, ledger, rejects):
    """The numbers of a done record are those of its files."""
    seen = visible(part, done)
    assert done.embedded == ledger.num_rows == len(set(seen["doc_id"].to_pylist()))
    assert done.passages == seen.num_rows == sum(ledger["n_rows"].to_pylist())
    assert done.tokens == sum(seen["n_tokens"].to_pylist()) == sum(ledger["n_tokens"].to_pylist())
    assert done.truncated == sum(seen["truncated"].to_pylist())
    assert done.rejects == (Counter(rejects["code"].to_pylist()) if rejects else {})
    assert done.documents == done.embedded + sum(done.rejects.values())


def dense_of(table):
    return np.array(table["dense"].to_pylist(), np.float32)


# What is written


def test_encode_slice_files_hold_what_the_record_counts(bench):
    work = bench(
        [SENTENCE, None, LONG, "", LONG + "!", SENTENCE], ids=["a", "b", "c", "d", "e", "a"]
    )
    done = work.encode()
    part, ledger = work.read(done.part), work.read(done.ledger)
    rejects = work.read(done.reject_file)
    check_counts(done, part, ledger, rejects)
    check_ledger(ledger, part)
    assert (done.documents, done.embedded, done.last) == (6, 3, True)
    assert done.rejects == {"null_text": 1, "empty_text": 1, "duplicate_id": 1}
    assert done.masked == []
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert rejects.schema.equals(REJECTS_SCHEMA)
    assert ledger["doc_id"].to_pylist() == ["a", "c", "e"]
    assert ledger["position"].to_pylist() == [0, 2, 4]
    assert set(ledger["part"].to_pylist()) == {done.part.path}
    assert set(ledger["unit"].to_pylist()) == {0}


def test_encode_slice_files_lie_where_the_format_says(bench):
    work = bench([SENTENCE, None])
    done = work.encode()
    name = f"{RUN}/000000-0000000000-{done.nonce}.parquet"
    assert done.part.path == f"data/{name}"
    assert done.ledger.path == f"documents/{name}"
    assert done.reject_file.path == f"rejects/{name}"
    assert Done.model_validate_json(work.store.read(done_path(RUN, 0, 0))) == done
    assert read_done(work.store, RUN) == [done]


def test_encode_slice_rows_are_passages_beside_their_own_vectors(bench):
    work = bench([SENTENCE, LONG, "short"])
    part = work.read(work.encode().part)
    [piece] = work.slices
    passages = piece.passages.drop_columns(["input_ids"])
    assert part.column_names == [*passages.column_names, *VECTOR_COLUMNS]
    assert part.select(passages.column_names) == passages
    alone = load_encoder(work.config.encoder)
    for i, text in enumerate(part["text"].to_pylist()):
        [expected] = alone.encode_passages([text]).to_pylist()
        np.testing.assert_allclose(part["dense"][i].as_py(), expected["dense"], atol=1e-3)
        np.testing.assert_allclose(part["colbert"][i].as_py(), expected["colbert"], atol=1e-3)
        sparse = part["sparse"][i].as_py()
        assert sparse["indices"] == expected["sparse"]["indices"]
        np.testing.assert_allclose(sparse["values"], expected["sparse"]["values"], atol=1e-4)


def test_encode_slice_types_are_those_of_the_format(bench):
    schema = (work := bench([SENTENCE])).read(work.encode().part).schema
    assert schema.field("dense").type == pa.list_(pa.float16(), 64)
    assert schema.field("sparse").type == pa.struct(
        {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())}
    )
    assert schema.field("colbert").type == pa.list_(pa.list_(pa.float16(), 64))
    assert schema.field("passage_hash").type == pa.binary(16)


def test_encode_slice_as_configured_stores_bytes_and_no_text(bench):
    work = bench([SENTENCE], index={"store_text": False, "colbert_storage": "bytes"})
    part = work.read(work.encode().part)
    assert "text" not in part.column_names
    assert part.schema.field("colbert").type == pa.list_(pa.binary(128))


def test_encode_slice_of_dense_only_stores_no_other_vectors(bench):
    work = bench([SENTENCE], outputs=["dense"], model={"vector_dtype": "float32"})
    part = work.read(work.encode().part)
    assert set(part.column_names) & set(VECTOR_COLUMNS) == {"dense"}
    assert part.schema.field("dense").type == pa.list_(pa.float32(), 64)


def test_encode_slice_counts_truncated_passages(bench):
    work = bench([SENTENCE, LONG, LONG], chunk={"by": "none", "max_tokens": None, "overlap": 0})
    done = work.encode()
    assert (done.passages, done.truncated) == (3, 2)


def test_encode_slice_says_what_encoded_it(bench):
    work = bench([SENTENCE])
    record, info = work.encode().encoder, load_encoder(work.config.encoder).info
    assert record.space_fingerprint == info.space_fingerprint
    assert (record.dim, record.colbert_dim, record.max_length) == (64, 64, 128)
    assert (record.dtype, record.device, record.pooling) == ("float32", "cpu", "cls")


def test_encode_slice_micro_batches_give_the_same_rows(bench, tmp_path):
    small = bench([LONG, SENTENCE, LONG], model={"max_batch_tokens": 100})
    small = small.read(small.encode().part)
    large = bench(
        [LONG, SENTENCE, LONG], index={"uri": str(tmp_path / "x")}, model={"max_batch_tokens": 9999}
    )
    [piece] = large.slices
    whole = load_encoder(large.config.encoder).encode_passages(piece.passages)
    assert small["passage_id"].to_pylist() == piece.passages["passage_id"].to_pylist()
    np.testing.assert_allclose(dense_of(small), dense_of(whole), atol=1e-3)


def test_encode_slice_called_by_ray_data_gives_the_receipt(bench):
    work = bench([SENTENCE] * 5, slice={"documents": 2})
    rows = pa.concat_tables([piece.to_row() for piece in work.slices])
    actor = EncodingActor(work.job, actors=1)
    receipts = [actor(rows.slice(i, 1)) for i in range(3)]
    assert all(receipt.schema == pa.schema({"done": pa.string()}) for receipt in receipts)
    records = [Done.model_validate_json(receipt["done"][0].as_py()) for receipt in receipts]
    assert records == read_done(work.store, RUN)
    assert [(r.first_document, r.documents, r.last) for r in records] == [
        (0, 2, False),
        (2, 2, False),
        (4, 1, True),
    ]
    ledgers = [work.read(record.ledger) for record in records]
    for record, ledger in zip(records, ledgers, strict=True):
        check_ledger(ledger, work.read(record.part))
    ids = [doc_id for ledger in ledgers for doc_id in ledger["doc_id"].to_pylist()]
    assert ids == [f"d{i}" for i in range(5)]


def test_encode_slice_to_object_storage_is_the_same(bench, s3_bucket):
    uri, options = s3_bucket
    work = bench([SENTENCE, None, LONG], index={"uri": f"{uri}/index", "storage_options": options})
    done = work.encode()
    part, ledger = work.read(done.part), work.read(done.ledger)
    check_counts(done, part, ledger, work.read(done.reject_file))
    check_ledger(ledger, part)
    assert read_done(work.store, RUN) == [done]


@pytest.mark.parametrize("texts", [[], [None, " ", None]], ids=["empty", "all rejected"])
def test_encode_slice_without_passages_gets_a_record_too(bench, texts):
    work = bench(texts)
    done = work.encode()
    assert (done.part, done.ledger, done.masked) == (None, None, [])
    assert (done.documents, done.embedded, done.passages, done.tokens) == (len(texts), 0, 0, 0)
    assert done.last
    assert sum(done.rejects.values()) == len(texts)
    assert (work.read(done.reject_file).num_rows if texts else done.reject_file) == (
        len(texts) or None
    )
    assert read_done(work.store, RUN) == [done]


# Races


def test_encode_slice_again_loses_and_returns_the_first_record(bench):
    work = bench([SENTENCE, LONG])
    first = work.encode()
    content = work.store.read(done_path(RUN, 0, 0))
    assert work.encode() == first
    assert work.store.read(done_path(RUN, 0, 0)) == content
    assert len(work.store.list(f"data/{RUN}")) == 2  # the loser's files are garbage
    check_ledger(work.read(first.ledger), work.read(first.part))


def test_encode_slice_by_several_threads_has_one_winner(bench):
    work = bench([SENTENCE, LONG])
    [piece] = work.slices
    with ThreadPoolExecutor(3) as pool:
        records = [*pool.map(work.encoder.encode, [piece] * 3)]
    assert records[0] == records[1] == records[2]
    assert read_done(work.store, RUN) == records[:1]


def test_encode_slices_by_several_threads_are_each_their_own(bench):
    work = bench([f"{SENTENCE} {i}" for i in range(24)], slice={"documents": 4})
    with ThreadPoolExecutor(3) as pool:
        records = [*pool.map(work.encoder.encode, work.slices)]
    assert records == read_done(work.store, RUN)
    for piece, record in zip(work.slices, records, strict=True):
        part = work.read(record.part)
        assert part["passage_id"].to_pylist() == piece.passages["passage_id"].to_pylist()
        expected = load_encoder(work.config.encoder).encode_passages(piece.passages)
        np.testing.assert_allclose(dense_of(part), dense_of(expected), atol=1e-3)


# Documents that fail


def texts_with_poison(passage, n_passages):
    """A document of that many passages (paragraphs), no two equal, one of which is poisoned."""
    paragraphs = [f"{SENTENCE} and on {passage} {number}" for number in range(n_passages)]
    paragraphs[passage] = f"{SENTENCE} {POISON} on {passage}"
    return "\n\n".join(paragraphs)


# One paragraph is a passage, and a passage is a micro-batch.
SMALL = {"model": {"max_batch_tokens": 40}, "chunk": {"max_tokens": 40, "overlap": 0}}


@pytest.mark.parametrize("passage", [0, 1, 3, 4])
def test_encode_slice_poisoned_document_is_rejected_whole(bench, passage):
    texts = [LONG, texts_with_poison(passage, 5), LONG, SENTENCE]
    work = bench(texts, **SMALL)
    n_rows = work.slices[0].ledger["n_rows"].to_pylist()
    assert n_rows[1] == 5
    work.poison()
    done = work.encode()
    part, ledger = work.read(done.part), work.read(done.ledger)
    rejects = work.read(done.reject_file)
    check_counts(done, part, ledger, rejects)
    check_ledger(ledger, part)
    assert ledger["doc_id"].to_pylist() == ["d0", "d2", "d3"]
    [reject] = rejects.to_pylist()
    assert (reject["doc_id"], reject["unit"], reject["position"]) == ("d1", 0, 1)
    assert (reject["code"], reject["final"]) == ("encoder_error", False)
    assert reject["detail"] == f"passage {passage}: NaN or Inf in the vectors"
    # Those before the poisoned one were written already.
    masked = [(rows.doc_id, rows.part, rows.first_row, rows.n_rows) for rows in done.masked]
    assert masked == ([("d1", done.part.path, n_rows[0], passage)] if passage else [])
    assert part["doc_id"].to_pylist().count("d1") == passage


def test_encode_slice_neighbours_of_a_poisoned_document_are_intact(bench):
    texts = [LONG, texts_with_poison(2, 5), LONG, SENTENCE]
    work = bench(texts, **SMALL)
    work.poison()
    done = work.encode()
    seen = visible(work.read(done.part), done)
    assert np.isfinite(dense_of(seen)).all()
    alone = load_encoder(work.config.encoder).encode_passages(seen["text"].to_pylist())
    np.testing.assert_allclose(dense_of(seen), dense_of(alone), atol=1e-3)


def test_encode_slice_poisoned_document_within_one_micro_batch_leaves_no_rows(bench):
    work = bench([SENTENCE, texts_with_poison(2, 5), SENTENCE], chunk=SMALL["chunk"])
    work.poison()
    done = work.encode()
    part, ledger = work.read(done.part), work.read(done.ledger)
    assert done.masked == []
    assert part["doc_id"].to_pylist() == ["d0", "d2"]
    check_counts(done, part, ledger, work.read(done.reject_file))
    check_ledger(ledger, part)


def test_encode_slice_several_poisoned_documents_are_each_masked(bench):
    texts = [texts_with_poison(3, 4), SENTENCE, texts_with_poison(1, 4), texts_with_poison(0, 2)]
    work = bench([*texts, None, LONG], **SMALL)
    work.poison()
    done = work.encode()
    part, ledger = work.read(done.part), work.read(done.ledger)
    rejects = work.read(done.reject_file)
    check_counts(done, part, ledger, rejects)
    check_ledger(ledger, part)
    assert done.rejects == {"encoder_error": 3, "null_text": 1}
    assert [(rows.doc_id, rows.n_rows) for rows in done.masked] == [("d0", 3), ("d2", 1)]
    for rows in done.masked:
        assert set(part["doc_id"].to_pylist()[rows.first_row :][: rows.n_rows]) == {rows.doc_id}
    assert ledger["doc_id"].to_pylist() == ["d1", "d5"]


def test_encode_slice_document_with_two_poisoned_passages_is_one_reject(bench):
    text = "\n\n".join([SENTENCE, f"{SENTENCE} {POISON}", SENTENCE, f"{SENTENCE} {POISON}"])
    work = bench([text, SENTENCE], **SMALL)
    work.poison()
    [reject] = work.read((done := work.encode()).reject_file).to_pylist()
    assert reject["detail"].startswith("passage 1: ")
    assert done.rejects == {"encoder_error": 1}


@pytest.mark.parametrize("batch_tokens", [60, 9999])
def test_encode_slice_all_documents_poisoned_has_no_part(bench, batch_tokens):
    work = bench([f"{POISON} one", f"two {POISON}"], model={"max_batch_tokens": batch_tokens})
    work.poison()
    done = work.encode()
    assert (done.part, done.ledger, done.embedded, done.passages) == (None, None, 0, 0)
    assert done.rejects == {"encoder_error": 2}
    assert done.masked == []
    assert work.read(done.reject_file)["doc_id"].to_pylist() == ["d0", "d1"]


def test_encode_slice_passage_the_model_cannot_run_is_a_reject(bench):
    work = bench([SENTENCE, LONG, "short"], **SMALL)
    [piece] = work.slices
    rows = piece.passages["input_ids"].to_pylist()
    bad = piece.passages["doc_id"].to_pylist().index("d1") + 1
    rows[bad][1] = 1_000_000  # an id beyond the vocabulary
    index = piece.passages.column_names.index("input_ids")
    passages = piece.passages.set_column(index, "input_ids", pa.array(rows, pa.list_(pa.int32())))
    done = work.encoder.encode(dataclasses.replace(piece, passages=passages))
    part, ledger = work.read(done.part), work.read(done.ledger)
    rejects = work.read(done.reject_file)
    check_counts(done, part, ledger, rejects)
    check_ledger(ledger, part)
    assert ledger["doc_id"].to_pylist() == ["d0", "d2"]
    assert rejects["detail"][0].as_py().startswith("passage 1: IndexError")
    assert [(rows.doc_id, rows.n_rows) for rows in done.masked] == [("d1", 1)]


# Refusals


# Passages that kill


class Killed(BaseException):
    """The death of a process: nothing after it is done."""


def next_process(work, killers, fault=Killed):
    """A slice encoder that reads the words of those before it, and dies of some passages."""
    process = slice_encoder(work.job)
    running = process._encoder._forward
    backbone = running.backbone

    def fatal(packed):
        passages = packed.input_ids_T.int().split(packed.lengths_N.tolist())
        if any(passage.numpy().tobytes() in killers for passage in passages):
            raise fault
        return backbone(packed)

    running.backbone = fatal
    return process


def tokens_of(piece, doc_id):
    """The encoder's input for the first passage of a document."""
    row = piece.passages["doc_id"].to_pylist().index(doc_id)
    return piece.passages["input_ids"][row].values.to_numpy().tobytes()


def encode_until_done(work, killers):
    deaths = 0
    while True:
        try:
            return next_process(work, killers).encode(work.slices[0]), deaths
        except Killed:
            deaths += 1
            assert deaths < 30


def test_encode_slice_passage_that_kills_is_rejected_after_some_deaths(bench):
    texts = [f"{SENTENCE} {i}" for i in range(200)]
    work = bench(texts, slice={"documents": 1000})
    killers = {tokens_of(work.slices[0], f"d{i}") for i in (17, 150)}
    done, deaths = encode_until_done(work, killers)
    assert deaths == 9  # the whole slice, then twice a piece and three times a passage alone
    part, rejects = work.read(done.part), work.read(done.reject_file)
    check_counts(done, part, work.read(done.ledger), rejects)
    assert [row["doc_id"] for row in rejects.to_pylist()] == ["d17", "d150"]
    for row in rejects.to_pylist():
        assert (row["code"], row["final"]) == ("encoder_error", False)
        assert row["detail"].startswith("passage 0: the process died 3 times")
    assert part["doc_id"].to_pylist() == [f"d{i}" for i in range(200) if i not in (17, 150)]
    expected = work.encoder._encoder.encode_passages([texts[i] for i in (16, 18, 199)])
    rows = part.filter(pc.is_in(part["doc_id"], pa.array(["d16", "d18", "d199"])))
    np.testing.assert_allclose(dense_of(rows), dense_of(expected), atol=1e-3)


def test_encode_slice_on_which_an_innocent_process_died_loses_nothing(bench):
    work = bench([LONG, SENTENCE, LONG])
    with pytest.raises(Killed):
        next_process(work, {tokens_of(work.slices[0], "d1")}).encode(work.slices[0])
    done = next_process(work, set()).encode(work.slices[0])
    assert (done.embedded, done.rejects) == (3, {})


def test_encode_slices_beside_one_that_kills_are_not_blamed(bench):
    """Two slices are at work when one kills: from then on each is alone."""
    work = bench([f"{SENTENCE} {i}" for i in range(8)], slice={"documents": 4})
    first, second = work.slices
    killers = {tokens_of(second, "d6")}
    done, deaths = {}, 0
    while len(done) < 2:
        process = next_process(work, killers)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(process.encode, piece) for piece in (first, second)]
            for name, future in zip(("first", "second"), both, strict=True):
                if future.exception():
                    deaths += 1
                else:
                    done[name] = future.result()
    assert 3 <= deaths <= 4
    assert (done["first"].rejects, done["second"].rejects) == ({}, {"encoder_error": 1})


def test_slice_encoder_whose_device_failed_for_good_ends_its_process(bench, monkeypatch):
    """No passage is blamed for what CUDA calls an illegal memory access: it stays illegal."""
    work, signals = bench([SENTENCE, LONG]), []
    monkeypatch.setattr("os.kill", lambda pid, number: signals.append((pid, number)))
    killer = tokens_of(work.slices[0], "d0")
    process = EncodingActor(work.job, actors=1)
    fault = torch.AcceleratorError("CUDA error: illegal address")
    process._encoder = next_process(work, {killer}, fault)
    with pytest.raises(DeviceError, match="cpu: expected vectors, found CUDA error"):
        process(work.slices[0].to_row())
    assert signals == [(os.getpid(), signal.SIGKILL)]
    assert read_done(work.store, RUN) == []
    assert next_process(work, set())._journal.deaths("000000-0000000000") == {(0, 5): 1}


def test_slice_encoder_other_model_than_the_drivers_is_refused(bench):
    work = bench([SENTENCE])
    with pytest.raises(ModelError, match=r"expected space fingerprint 0000 .*, found ") as caught:
        slice_encoder(replace(work.job, space_fingerprint="0000"))
    own = work.encoder._encoder.info.space_fingerprint
    assert own in caught.value.message
    assert "same model files" in caught.value.remedy


def test_encode_slice_that_crashes_leaves_no_record(bench, monkeypatch):
    """What is not recorded is encoded again."""
    work = bench([LONG] * 3, **SMALL)
    stream = work.encoder._encoder.stream

    def dying(input_ids):
        yield from itertools.islice(stream(input_ids), 2)
        raise MemoryError("killed")

    monkeypatch.setattr(work.encoder._encoder, "stream", dying)
    with pytest.raises(MemoryError):
        work.encode()
    assert read_done(work.store, RUN) == []
    assert work.store.list(f"data/{RUN}") == []
    monkeypatch.undo()
    assert work.encode().embedded == 3
