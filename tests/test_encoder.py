"""The encoder's invariants: packed == alone, order kept, one bad passage spoils itself only."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_inputs import BERT, CLOSE, EXACT, M3, MODELS, SEEDS, copy_of, token_block

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import DeviceError, EncodeError, ModelError
from actors.network.packed_bert import PackedBert
from actors.tokens.tokenizer import TextTokenizer

VOCABULARY = 267
SPECIAL = {0, 1, 2, 3}  # <s> <pad> </s> <unk> of the M3 fixture
POSITIONS = 512  # of the M3 fixture: 514 less the two that XLM-R never uses
M3_ALL: dict[str, Any] = {"name": str(M3), "outputs": OUTPUTS}
ENCODERS = {
    "m3": M3_ALL,
    "bert-cls": {"name": str(BERT)},
    "bert-mean": {"name": str(BERT), "pooling": "mean"},
    "gemma2": {"name": str(MODELS / "bge-multilingual-gemma2")},
    "qwen3": {"name": str(MODELS / "Qwen3-Embedding-0.6B")},
    "mistral": {"name": str(MODELS / "bge-en-icl")},
}
WORDS = [
    "the",
    "capital",
    "of",
    "Paris",
    "is",
    "深度学习",
    "retrieval",
    "😀",
    "naïve",
    "①",
    "tasks",
]
TEXTS = st.lists(
    st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join),
    min_size=1,
    max_size=8,
)


def load(**options: Any) -> Encoder:
    return load_encoder(ModelConfig(**(EXACT | {"max_length": 64} | options)))


shared = functools.cache(load)
"""Never altered but for its budget; a test that tampers with an encoder loads its own."""


def stream(encoder, rows, max_batch_tokens=2048, threads=1):
    encoder.max_batch_tokens = max_batch_tokens
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batches = list(encoder.stream(token_block(rows)["input_ids"]))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return batches


def tokens_of(texts):
    return TextTokenizer(M3, max_length=64).tokenize(texts).to_arrow().to_pylist()


def assert_vectors_equal(actual: pa.Table, expected: pa.Table) -> None:
    """Equal row by row; a sparse weight that is absent is a zero."""
    assert actual.schema == expected.schema
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual.to_pylist(), expected.to_pylist(), strict=True):
        for output in ours.keys() - {"sparse"}:
            assert len(ours[output]) == len(theirs[output])
            np.testing.assert_allclose(ours[output], theirs[output], **CLOSE)
        if "sparse" in ours:
            mine, other = (dict(zip(*r["sparse"].values(), strict=True)) for r in (ours, theirs))
            for token_id in mine.keys() | other.keys():
                assert abs(mine.get(token_id, 0) - other.get(token_id, 0)) <= CLOSE["atol"]


def one_by_one(encoder, rows):
    alone = [encoder.encode_passages(token_block([row])) for row in rows]
    return pa.concat_tables([encoder.empty(), *alone])


def assert_only_these_fail(batches, alone: pa.Table, failed: set[int]) -> set[str]:
    """Every row came back once; those in `failed` with a reason, the rest as encoded alone."""
    assert [row for b in batches for row in range(b.start, b.stop)] == list(range(len(alone)))
    assert all(batch.columns.num_rows == batch.stop - batch.start for batch in batches)
    reasons = {row: reason for batch in batches for row, reason in batch.failures.items()}
    assert reasons.keys() == failed
    assert all(reasons.values())
    if batches:
        columns = pa.concat_tables([batch.columns for batch in batches])
        kept = pa.array([row not in failed for row in range(len(alone))])
        assert_vectors_equal(columns.filter(kept), alone.filter(kept))
    return set(reasons.values())


# --- batch composition does not matter ---------------------------------------------------------


@pytest.mark.parametrize("model", ENCODERS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=20),
    budget=st.integers(1, 700),
    threads=st.integers(1, 3),
    seed=SEEDS,
)
def test_stream_packed_with_neighbours_equals_encoded_alone(model, lengths, budget, threads, seed):
    """Random ids, special ones too; batches of rows in order, within the budget."""
    encoder, random = shared(**ENCODERS[model]), np.random.default_rng(seed)
    rows = [random.integers(0, 260, n).tolist() for n in lengths]
    alone = one_by_one(encoder, [row or [0, 2] for row in rows])
    batches = stream(encoder, rows, budget, threads)
    assert_only_these_fail(batches, alone, {row for row, n in enumerate(lengths) if n == 0})
    for b in batches:  # at most 12 micro-batches at a time
        assert sum(lengths[b.start : b.stop]) <= 12 * budget or b.stop - b.start == 1


@settings(max_examples=25, deadline=None)
@given(data=st.data(), texts=TEXTS)
def test_encode_slice_of_chunked_token_block_equals_rows_of_texts(data, texts):
    encoder, rows = shared(**M3_ALL), tokens_of(texts)
    start, cut, stop = sorted(data.draw(st.integers(0, len(texts))) for _ in range(3))
    chunks = pa.concat_tables([token_block(rows[:cut]), token_block(rows[cut:])])
    found = encoder.encode_passages(chunks.slice(start, stop - start))
    assert_vectors_equal(found, encoder.encode_passages(texts).slice(start, stop - start))


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("vector_dtype", ["float16", "float32"])
def test_encode_output_types_are_the_designs(vector_dtype):
    encoder = load(**M3_ALL, vector_dtype=vector_dtype)
    vector = pa.list_(pa.float16() if vector_dtype == "float16" else pa.float32(), 32)
    sparse = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    schema = pa.schema([("dense", vector), ("sparse", sparse), ("colbert", pa.list_(vector))])
    for texts in ([], ["Paris"], ["", "Paris"]):
        block = token_block(tokens_of(texts))
        of_queries = encoder.encode_queries(texts)
        for table in (encoder.encode_passages(texts), of_queries, encoder.encode_passages(block)):
            assert table.schema == schema
            assert len(table) == len(texts)
            table.validate(full=True)
    assert encoder.empty().schema == schema


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("colbert",), ("dense", "sparse")])
def test_encode_asked_for_some_outputs_gives_those_columns_of_all(outputs):
    texts = ["the capital of Paris", "", "深度学习"]
    some = load(name=str(M3), outputs=outputs).encode_passages(texts)
    assert_vectors_equal(some, shared(**M3_ALL).encode_passages(texts).select(outputs))


def test_encode_float16_columns_are_the_float32_ones_rounded():
    texts = ["the capital of Paris", "深度学习"]
    half = load(**M3_ALL, vector_dtype="float16").encode_passages(texts).to_pylist()
    for row, expected in zip(
        half, shared(**M3_ALL).encode_passages(texts).to_pylist(), strict=True
    ):
        for output in ("dense", "colbert"):
            np.testing.assert_allclose(row[output], expected[output], rtol=0, atol=2**-11)


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS)
@example(texts=[""])  # no lexical tokens: an empty sparse vector
def test_encode_vectors_are_of_length_one_and_sparse_ones_sorted_and_lexical(texts):
    encoded = shared(**M3_ALL).encode_passages(texts).to_pylist()
    for ids, row in zip(tokens_of(texts), encoded, strict=True):
        assert len(row["colbert"]) == len(ids) - 1  # a vector for each token but the first
        norms = np.linalg.norm([row["dense"], *row["colbert"]], axis=1)
        np.testing.assert_allclose(norms, 1, **CLOSE)
        indices, values = row["sparse"]["indices"], row["sparse"]["values"]
        assert indices == sorted(set(indices))
        assert set(indices) <= set(ids) - SPECIAL
        assert len(values) == len(indices)
        assert all(weight > 0 for weight in values)


def test_encode_instruction_is_text_before_and_queries_are_cut_at_their_length():
    options = {"query_instruction": "find: ", "passage_instruction": "doc: "}
    encoder, plain = load(**M3_ALL, query_max_length=24, **options), shared(**M3_ALL)
    queries, passages, texts = encoder.encode_queries, encoder.encode_passages, ["capital", "", "a"]
    for encode, instruction in ((queries, "find: "), (passages, "doc: ")):
        expected = plain.encode_passages([instruction + text for text in texts])
        assert_vectors_equal(encode(texts), expected)
        assert not expected.equals(plain.encode_passages(texts))
    long = ["the capital of Paris is the capital of France"]
    assert len(queries(long)["colbert"][0]) == 23
    assert len(passages(long)["colbert"][0]) > 23


def test_encoder_info_says_what_the_vectors_are():
    encoder = load(**M3_ALL, truncate_dim=8, query_max_length=16)
    info, schema = encoder.info, encoder.encode_passages(["Paris"]).schema
    assert info.dim == schema.field("dense").type.list_size == 8
    assert info.colbert_dim == schema.field("colbert").type.value_type.list_size == 8
    assert (info.max_length, info.query_max_length) == (64, 16)
    assert (info.dtype, info.device, info.pooling) == ("float32", "cpu", "cls")


@pytest.mark.parametrize("path", sorted(M3.iterdir()), ids=lambda path: path.name)
def test_load_damaged_file_is_model_error_naming_the_folder(tmp_path, path):
    folder = copy_of(M3, tmp_path / "m3")
    (folder / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError) as error:
        load(name=str(folder), outputs=OUTPUTS)
    assert str(folder) in error.value.message


def test_model_config_wrong_value_is_model_error_naming_the_key():
    for key, value in (
        *(("pooling", "last"), ("outputs", ()), ("outputs", ("dnese",)), ("dtype", "fp16")),
        *(("vector_dtype", "float64"), ("query_max_length", 0), ("max_batch_tokens", 0)),
        ("truncate_dim", 0),
    ):
        with pytest.raises(ModelError, match=key):
            ModelConfig(name="builtin:tiny-m3", **{key: value})


# --- one bad passage ---------------------------------------------------------------------------

GOOD = [[0, 40, 50, 60, 2], [0, 70, 2], [0, *range(5, 35), 2], [0, 80, 90, 2], [0, 41, 51, 61, 2]]
OUT_OF_VOCABULARY = [0, 5, VOCABULARY, 2]
BAD = {
    "out of vocabulary": OUT_OF_VOCABULARY,
    "negative": [0, 5, -7, 2],
    "beyond positions": [0, *[5] * POSITIONS, 2],
    "no tokens": [],
}


@pytest.mark.parametrize("outputs", [("dense",), OUTPUTS], ids="+".join)
@pytest.mark.parametrize("bad", BAD)
def test_stream_bad_passage_fails_and_neighbours_equal_alone(bad, outputs):
    encoder = shared(name=str(M3), outputs=outputs)
    alone = one_by_one(encoder, GOOD)
    for place in range(len(GOOD) + 1):
        rows = [*GOOD[:place], BAD[bad], *GOOD[place:]]
        expected = pa.concat_tables([alone[:place], alone[:1], alone[place:]])  # [place]: unused
        assert_only_these_fail(stream(encoder, rows), expected, {place})


@settings(max_examples=25, deadline=None)
@given(bad=st.lists(st.booleans(), max_size=20), budget=st.integers(1, 60))
def test_stream_several_bad_passages_fail_and_no_other_also_a_window_ahead(bad, budget):
    """Ahead: as on CUDA, where the device has the next window while the host makes columns."""
    encoder, clean = shared(**M3_ALL), [GOOD[row % len(GOOD)] for row in range(len(bad))]
    rows = [OUT_OF_VOCABULARY if is_bad else row for row, is_bad in zip(clean, bad, strict=True)]
    alone, failed = one_by_one(encoder, clean), {row for row, is_bad in enumerate(bad) if is_bad}
    bounds = []
    try:
        for encoder._ahead in (0, 1):
            batches = stream(encoder, rows, budget)
            bounds.append([(batch.start, batch.stop) for batch in batches])
            assert_only_these_fail(batches, alone, failed)
    finally:
        encoder._ahead = 0
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize("outputs", [*((output,) for output in OUTPUTS), OUTPUTS], ids="+".join)
def test_stream_not_finite_passage_fails_and_neighbours_equal_alone(outputs):
    encoder = load(name=str(M3), outputs=outputs)
    rows = [*GOOD, [0, 40, 200, 2], [0, 200, 60, 2], [0, 70, 71, 2]]
    alone = one_by_one(encoder, rows)
    backbone = encoder._forward.backbone
    assert isinstance(backbone, PackedBert)
    backbone.words_VH[200] = float("nan")
    for budget in (1_000, 12):
        reasons = assert_only_these_fail(stream(encoder, rows, budget), alone, {5, 6})
        assert reasons == {"NaN or Inf in the vectors"}


def test_encode_bad_passage_is_encode_error_naming_its_row():
    with pytest.raises(EncodeError, match=r"passage 3 cannot be encoded: IndexError: .+"):
        shared(**M3_ALL).encode_passages(token_block([*GOOD[:3], OUT_OF_VOCABULARY, *GOOD[3:]]))


def test_stream_other_errors_than_a_kernels_propagate():
    """A bug must stop the run, not turn a corpus into rejects."""
    encoder = load(**M3_ALL)

    def broken(_):
        raise TypeError("a bug")

    encoder._forward.backbone = broken
    with pytest.raises(TypeError, match="a bug"):
        stream(encoder, GOOD)


def test_stream_whose_device_fails_after_a_window_was_begun_is_device_error():
    encoder = load(**M3_ALL)
    forward = encoder._forward

    class Late:
        """Vectors that never arrive."""

        window_tokens, batches = forward.window_tokens, forward.batches

        def __call__(self, *_):
            return self

        def wait(self):
            raise torch.AcceleratorError("CUDA error: illegal address")

    encoder._forward = Late()
    with pytest.raises(DeviceError, match=r"expected vectors, found CUDA error"):
        stream(encoder, GOOD)


# --- running out of memory ---------------------------------------------------------------------


class SmallDevice:
    """A backbone on a device that holds `limit` tokens."""

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self._backbone, self._limit = encoder._forward.backbone, limit
        self.fitted: list[int] = []
        self.failed: list[int] = []
        encoder._forward.backbone = self

    def __call__(self, packed):
        tokens = len(packed.input_ids_T)
        if tokens > self._limit:
            self.failed.append(tokens)
            raise torch.OutOfMemoryError("injected: out of memory")
        self.fitted.append(tokens)
        return self._backbone(packed)


def test_stream_out_of_memory_shrinks_micro_batches_and_keeps_vectors():
    rows = [[0, token, token + 1, 2] for token in range(5, 69)]
    alone = shared(**M3_ALL).encode_passages(token_block(rows))
    encoder = load(**M3_ALL)
    device = SmallDevice(encoder, limit=40)
    column = token_block(rows)["input_ids"]
    assert_only_these_fail(list(encoder.stream(column)), alone, set())
    assert device.failed[0] == 256
    failures_before = len(device.failed)
    assert_only_these_fail(list(encoder.stream(column)), alone, set())
    assert len(device.failed) == failures_before  # the smaller budget is kept
    assert max(device.fitted) <= 40


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12), limit=st.integers(1, 120))
def test_stream_out_of_memory_fails_only_passages_that_never_fit(lengths, limit):
    rows = [[0, *[40 + i] * (n - 2), 2] for i, n in enumerate(lengths)]
    encoder = load(**M3_ALL)
    alone = one_by_one(encoder, rows)
    SmallDevice(encoder, limit)
    too_long = {row for row, n in enumerate(lengths) if n > limit}
    reasons = assert_only_these_fail(stream(encoder, rows), alone, too_long)
    assert all("OutOfMemoryError" in reason for reason in reasons)


def test_stream_error_other_than_memory_keeps_the_budget():
    encoder = load(**M3_ALL)
    device = SmallDevice(encoder, limit=10_000)
    list(encoder.stream(token_block([*GOOD, OUT_OF_VOCABULARY])["input_ids"]))
    device.fitted.clear()
    assert len(list(encoder.stream(token_block(GOOD)["input_ids"]))) == 1
    assert device.fitted == [sum(len(row) for row in GOOD)]


# --- threads -----------------------------------------------------------------------------------


def test_encode_from_several_threads_equals_one_and_forwards_never_overlap():
    encoder = load(**M3_ALL, max_batch_tokens=50)
    backbone, inside, overlaps = encoder._forward.backbone, threading.Semaphore(1), []

    def watched(packed):
        overlaps.append(not inside.acquire(blocking=False))
        try:
            return backbone(packed)
        finally:
            inside.release()

    encoder._forward.backbone = watched
    passages = [[f"the capital {i} of Paris " * (i % 5), f"tasks {i}", ""] for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(encoder.encode_passages, passages))
    assert not any(overlaps)
    for texts, table in zip(passages, tables, strict=True):
        assert_vectors_equal(table, shared(**M3_ALL).encode_passages(texts))


def test_stream_gives_each_thread_as_many_micro_batches_of_one_size():
    for tokens, threads, expected in (
        *((2048, 1, 1), (2048, 2, 2), (4096, 1, 2), (6144, 2, 4), (16384, 2, 8)),
        *((400, 2, 1), (64, 4, 1)),
    ):
        encoder = load(**M3_ALL)
        sizes = SmallDevice(encoder, limit=1 << 20).fitted
        stream(encoder, [[0] * 16] * (tokens // 16), threads=threads)
        assert len(sizes) == expected, (tokens, threads)
        assert max(sizes) - min(sizes) <= 16 * expected


@pytest.mark.parametrize("threads", [2, 3])
def test_stream_of_mixed_lengths_gives_all_threads_as_many_and_the_longest_first(threads):
    encoder = load(**M3_ALL)
    sizes = SmallDevice(encoder, limit=1 << 20).fitted
    stream(encoder, [[0] * n for n in [20, 512, 300] * 28], threads=threads)
    assert len(sizes) % threads == 0
    assert sizes[0] % 512 == 0
    assert sizes[-1] > 1500  # no small one is left over


# --- a model that brings its own Python code ------------------------------------------------------


OWN_CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_model_with_its_own_code_is_refused_unless_trusted_and_encodes_as_packed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    own = copy_of(BERT, tmp_path / "own_bert", model_type="own-bert", auto_map=auto_map)
    (own / "own_code.py").write_text(OWN_CODE)

    texts = ["a short text", "another text that is quite a bit longer than the first one", "x"]

    def dense(folder, trust):
        config = ModelConfig(name=str(folder), trust_remote_code=trust, **EXACT)
        return np.stack(load_encoder(config).encode_passages(texts)["dense"].to_numpy())

    with pytest.raises(ModelError, match="needs the Python code of its repository") as caught:
        dense(own, trust=False)
    assert "model.trust_remote_code=true" in caught.value.remedy
    np.testing.assert_allclose(dense(own, trust=True), dense(BERT, trust=False), atol=1e-5)
