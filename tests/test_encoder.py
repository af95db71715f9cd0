"""The encoder's invariants: packed == alone, order kept, one bad passage spoils itself only."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import OUTPUTS, ModelConfig
from actors.encoded import EncodedBatch
from actors.encoder import Encoder, load_encoder
from actors.errors import DeviceError, EncodeError, ModelError
from actors.network.packed_bert import PackedBert
from actors.network.packing import PackedBatch
from actors.tokens.tokenizer import TextTokenizer

MODELS = Path(__file__).parent / "data" / "oracle" / "models"
M3 = str(MODELS / "bge-m3")
BERT = str(MODELS / "bge-small-en-v1.5")
VOCABULARY = 267
SPECIAL = {0, 1, 2, 3}  # <s> <pad> </s> <unk> of the M3 fixture
POSITIONS = 512  # of the M3 fixture: 514 less the two that XLM-R never uses
ATOL = 1e-5  # fp32: what the design promises for packed == alone

M3_ALL: dict[str, Any] = {"name": M3, "outputs": OUTPUTS}
BERT_CLS: dict[str, Any] = {"name": BERT}
BERT_MEAN: dict[str, Any] = {"name": BERT, "pooling": "mean"}

WORDS = st.sampled_from(
    ["the", "capital", "of", "Paris", "is", "深度学习", "retrieval", "😀", "naïve", "①", "tasks"]
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(WORDS, max_size=60).map(" ".join),
)


def load(**options: Any) -> Encoder:
    full = {"dtype": "float32", "vector_dtype": "float32", "device": "cpu", "max_length": 64}
    return load_encoder(ModelConfig(**(full | options)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices this small a second thread waits longer than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def m3() -> Encoder:
    """Shared and never altered; a test that tampers with an encoder loads its own."""
    return load(**M3_ALL)


def token_block(rows: list[list[int]]) -> pa.Table:
    return pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})


def stream(encoder: Encoder, rows: list[list[int]]) -> list[EncodedBatch]:
    return list(encoder.stream(token_block(rows)["input_ids"]))


def tokens_of(model: str, texts: list[str]) -> list[list[int]]:
    tokenizer = TextTokenizer(Path(model), max_length=64)
    return tokenizer.tokenize(texts).to_arrow().to_pylist()


def assert_vectors_equal(actual: pa.Table, expected: pa.Table, atol: float = ATOL) -> None:
    """Equal row by row; a sparse weight that is absent is a zero."""
    assert actual.schema == expected.schema
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual.to_pylist(), expected.to_pylist(), strict=True):
        if "dense" in ours:
            np.testing.assert_allclose(ours["dense"], theirs["dense"], rtol=0, atol=atol)
        if "colbert" in ours:
            assert len(ours["colbert"]) == len(theirs["colbert"])
            np.testing.assert_allclose(ours["colbert"], theirs["colbert"], rtol=0, atol=atol)
        if "sparse" in ours:
            mine, other = (
                dict(zip(*row["sparse"].values(), strict=True)) for row in (ours, theirs)
            )
            for token_id in mine.keys() | other.keys():
                assert abs(mine.get(token_id, 0) - other.get(token_id, 0)) <= atol


def one_by_one(encoder: Encoder, rows: list[list[int]]) -> pa.Table:
    alone = [encoder.encode_passages(token_block([row])) for row in rows]
    return pa.concat_tables([encoder.empty(), *alone])


# --- batch composition does not matter ---------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[M3_ALL, BERT_CLS, BERT_MEAN],
    ids=["m3", "bert-cls", "bert-mean"],
)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Encoder]:
    return request.param, load(**request.param)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8), max_batch_tokens=st.integers(1, 300))
def test_encode_packed_with_neighbours_equals_encoded_alone(
    model: tuple[dict[str, Any], Encoder], texts: list[str], max_batch_tokens: int
) -> None:
    options, encoder = model
    packed = load(**options, max_batch_tokens=max_batch_tokens).encode_passages(texts)
    alone = pa.concat_tables([encoder.encode_passages([text]) for text in texts])
    assert_vectors_equal(packed, alone)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), texts=st.lists(TEXTS, min_size=2, max_size=8))
def test_encode_shuffled_passages_gives_shuffled_vectors(
    m3: Encoder, data: st.DataObject, texts: list[str]
) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = m3.encode_passages([texts[i] for i in order])
    assert_vectors_equal(shuffled, m3.encode_passages(texts).take(order))


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_encode_token_block_equals_texts(m3: Encoder, texts: list[str]) -> None:
    block = token_block(tokens_of(M3, texts))
    assert_vectors_equal(m3.encode_passages(block), m3.encode_passages(texts))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_encode_slice_of_token_block_equals_rows_of_whole(
    m3: Encoder, data: st.DataObject, texts: list[str]
) -> None:
    block = token_block(tokens_of(M3, texts))
    start = data.draw(st.integers(0, len(texts)))
    rows = data.draw(st.integers(0, len(texts) - start))
    sliced = m3.encode_passages(block.slice(start, rows))
    assert_vectors_equal(sliced, m3.encode_passages(block).slice(start, rows))


def test_encode_chunked_token_block_equals_whole(m3: Encoder) -> None:
    rows = tokens_of(M3, ["the capital", "of", "Paris is the capital of France", ""])
    chunks = pa.concat_tables(
        [token_block(rows[:1]), token_block(rows[1:3]), token_block(rows[3:])]
    )
    assert chunks["input_ids"].num_chunks == 3
    assert_vectors_equal(m3.encode_passages(chunks), m3.encode_passages(token_block(rows)))


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, max_size=8), max_batch_tokens=st.integers(1, 200))
def test_stream_batches_cover_rows_in_order_within_budget(
    texts: list[str], max_batch_tokens: int
) -> None:
    rows = tokens_of(M3, texts)
    batches = stream(load(**M3_ALL, max_batch_tokens=max_batch_tokens), rows)
    assert [row for b in batches for row in range(b.start, b.stop)] == list(range(len(rows)))
    for batch in batches:
        assert batch.columns.num_rows == batch.stop - batch.start
        assert batch.failures == {}
        tokens = sum(len(row) for row in rows[batch.start : batch.stop])
        assert tokens <= 12 * max_batch_tokens or batch.stop - batch.start == 1


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector_dtype", "item"), [("float16", pa.float16()), ("float32", pa.float32())]
)
@pytest.mark.parametrize("texts", [[], ["Paris"], ["", "Paris"]], ids=len)
def test_encode_output_types_are_the_designs(
    vector_dtype: str, item: pa.DataType, texts: list[str]
) -> None:
    encoder = load(**M3_ALL, vector_dtype=vector_dtype)
    vector = pa.list_(item, 32)
    sparse = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    schema = pa.schema([("dense", vector), ("sparse", sparse), ("colbert", pa.list_(vector))])
    for table in (
        encoder.encode_passages(texts),
        encoder.encode_queries(texts),
        encoder.encode_passages(token_block(tokens_of(M3, texts))),
    ):
        assert table.schema == schema
        assert len(table) == len(texts)
        table.validate(full=True)
    assert encoder.empty().schema == schema


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("colbert",), ("dense", "sparse")])
def test_encode_asked_for_some_outputs_gives_those_columns_of_all(
    m3: Encoder, outputs: tuple[str, ...]
) -> None:
    texts = ["the capital of Paris", "", "深度学习"]
    some = load(name=M3, outputs=outputs).encode_passages(texts)
    assert_vectors_equal(some, m3.encode_passages(texts).select(outputs))


def test_encode_float16_columns_are_the_float32_ones_rounded(m3: Encoder) -> None:
    texts = ["the capital of Paris", "深度学习"]
    half = load(**M3_ALL, vector_dtype="float16").encode_passages(texts)
    full = m3.encode_passages(texts)
    for row, expected in zip(half.to_pylist(), full.to_pylist(), strict=True):
        for output in ("dense", "colbert"):
            np.testing.assert_allclose(row[output], expected[output], rtol=0, atol=2**-11)


def test_encode_without_lexical_tokens_gives_empty_sparse_vector(m3: Encoder) -> None:
    row = m3.encode_passages([""]).to_pylist()[0]
    assert row["sparse"] == {"indices": [], "values": []}
    assert len(row["colbert"]) == 1
    assert np.linalg.norm(row["dense"]) == pytest.approx(1, abs=ATOL)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_encode_colbert_has_one_vector_per_token_but_the_first(
    m3: Encoder, texts: list[str]
) -> None:
    lengths = [len(row) for row in tokens_of(M3, texts)]
    passages = m3.encode_passages(texts)["colbert"].to_pylist()
    assert [len(vectors) for vectors in passages] == [n - 1 for n in lengths]
    norms = np.linalg.norm(np.concatenate(passages), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=0, atol=ATOL)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_encode_sparse_is_sorted_positive_and_free_of_special_tokens(
    m3: Encoder, texts: list[str]
) -> None:
    vectors = m3.encode_passages(texts)["sparse"].to_pylist()
    for row, vector in zip(tokens_of(M3, texts), vectors, strict=True):
        assert vector["indices"] == sorted(set(vector["indices"]))
        assert set(vector["indices"]) <= set(row) - SPECIAL
        assert len(vector["values"]) == len(vector["indices"])
        assert all(weight > 0 for weight in vector["values"])


def test_encode_queries_are_cut_at_the_query_length() -> None:
    encoder = load(**M3_ALL, query_max_length=10)
    text = "the capital of Paris is the capital of France"
    assert len(encoder.encode_queries([text])["colbert"][0]) == 9
    assert len(encoder.encode_passages([text])["colbert"][0]) > 9


def test_encode_queries_instruction_is_text_before_the_query() -> None:
    encoder = load(**M3_ALL, query_instruction="find: ", passage_instruction="doc: ")
    plain = load(**M3_ALL)
    texts = ["capital", "", "Paris"]
    queries = plain.encode_passages(["find: " + text for text in texts])
    passages = plain.encode_passages(["doc: " + text for text in texts])
    assert_vectors_equal(encoder.encode_queries(texts), queries)
    assert_vectors_equal(encoder.encode_passages(texts), passages)
    assert not queries.equals(passages)


def test_encoder_info_says_what_the_vectors_are() -> None:
    encoder = load(**M3_ALL, truncate_dim=8, query_max_length=16)
    info, table = encoder.info, encoder.encode_passages(["Paris"])
    assert info.dim == table.schema.field("dense").type.list_size == 8
    assert info.colbert_dim == table.schema.field("colbert").type.value_type.list_size == 8
    assert (info.max_length, info.query_max_length) == (64, 16)
    assert (info.dtype, info.device, info.pooling) == ("float32", "cpu", "cls")


@pytest.mark.parametrize(
    "filename",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "sparse_linear.pt",
        "colbert_linear.pt",
    ],
)
def test_load_damaged_file_is_model_error_naming_the_folder(tmp_path: Path, filename: str) -> None:
    folder = Path(shutil.copytree(M3, tmp_path / "m3"))
    content = (folder / filename).read_bytes()
    (folder / filename).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError) as error:
        load(name=str(folder), outputs=OUTPUTS)
    assert str(folder) in error.value.message


# --- positions ---------------------------------------------------------------------------------


def reference_mean_vectors(folder: Path, rows: list[list[int]], **positions: Any) -> np.ndarray:
    """Mean of the token vectors by transformers itself: padded, eager attention."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
    ).eval()
    longest = max(len(row) for row in rows)
    pad = int(json.loads((folder / "config.json").read_text())["pad_token_id"])
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        hidden_NLH = model(input_ids=ids, attention_mask=mask, **positions).last_hidden_state
    summed_NH = (hidden_NLH * mask[:, :, None]).sum(dim=1)
    return (summed_NH / mask.sum(dim=1, keepdim=True)).numpy()


def copy_as_roberta(folder: Path) -> Path:
    """RoBERTa's weights have XLM-R's names and shapes; only config.json tells them apart."""
    shutil.copytree(M3, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "roberta", "architectures": ["RobertaModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "roberta"])
def test_encode_equals_padded_eager_transformers(family: str, tmp_path: Path) -> None:
    folder = {"bert": Path(BERT), "xlm-roberta": Path(M3)}.get(family)
    folder = folder or copy_as_roberta(tmp_path / "roberta")
    rows = [[0, 40, 50, 60, 2], [0, 2], [0, *range(5, 45), 2], [0, 70, 2], [0, 80, 2]]
    encoder = load(name=str(folder), pooling="mean", normalize=False)
    ours = np.array(encoder.encode_passages(token_block(rows))["dense"].to_pylist())
    theirs = reference_mean_vectors(folder, rows)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)


def test_encode_xlm_roberta_positions_from_zero_would_be_seen() -> None:
    rows = [[0, 40, 50, 60, 2]]
    encoder = load(name=M3, pooling="mean", normalize=False)
    ours = np.array(encoder.encode_passages(token_block(rows))["dense"].to_pylist())
    for first in (0, 1):
        wrong = reference_mean_vectors(
            Path(M3), rows, position_ids=torch.arange(first, first + 5)[None]
        )
        assert np.abs(ours - wrong).max() > 100 * ATOL


# --- one bad passage ---------------------------------------------------------------------------

GOOD = [[0, 40, 50, 60, 2], [0, 70, 2], [0, *range(5, 35), 2], [0, 80, 90, 2], [0, 41, 51, 61, 2]]
OUT_OF_VOCABULARY = [0, 5, VOCABULARY, 2]
NEGATIVE = [0, 5, -7, 2]
BEYOND_POSITIONS = [0, *[5] * POSITIONS, 2]


def assert_only_these_fail(
    batches: list[EncodedBatch], alone: pa.Table, failed: set[int]
) -> dict[int, str]:
    """Every row came back once; those in `failed` with a reason, the rest as encoded alone."""
    assert [row for b in batches for row in range(b.start, b.stop)] == list(range(len(alone)))
    reasons = {row: reason for batch in batches for row, reason in batch.failures.items()}
    assert reasons.keys() == failed
    assert all(reasons.values())
    columns = pa.concat_tables([batch.columns for batch in batches])
    kept = pa.array([row not in failed for row in range(len(alone))])
    assert_vectors_equal(columns.filter(kept), alone.filter(kept))
    return reasons


@pytest.mark.parametrize("bad", [OUT_OF_VOCABULARY, NEGATIVE, BEYOND_POSITIONS])
@pytest.mark.parametrize("place", range(len(GOOD) + 1))
def test_stream_bad_passage_fails_and_neighbours_equal_alone(
    m3: Encoder, bad: list[int], place: int
) -> None:
    rows = [*GOOD[:place], bad, *GOOD[place:]]
    alone = one_by_one(m3, GOOD)
    alone = pa.concat_tables([alone[:place], alone[:1], alone[place:]])  # place's is not looked at
    assert_only_these_fail(stream(m3, rows), alone, {place})


@settings(max_examples=20, deadline=None)
@given(bad=st.sets(st.integers(0, 7)), max_batch_tokens=st.integers(1, 60))
def test_stream_several_bad_passages_fail_and_no_other(
    m3: Encoder, bad: set[int], max_batch_tokens: int
) -> None:
    clean = [GOOD[row % len(GOOD)] for row in range(8)]
    rows = [OUT_OF_VOCABULARY if row in bad else clean[row] for row in range(8)]
    encoder = load(**M3_ALL, max_batch_tokens=max_batch_tokens)
    assert_only_these_fail(stream(encoder, rows), m3.encode_passages(token_block(clean)), bad)


@pytest.mark.parametrize("outputs", [("dense",), OUTPUTS], ids="+".join)
@pytest.mark.parametrize("place", [0, 2, len(GOOD)])
def test_stream_passage_without_tokens_fails_and_neighbours_equal_alone(
    outputs: tuple[str, ...], place: int
) -> None:
    encoder = load(name=M3, outputs=outputs)
    rows = [*GOOD[:place], [], *GOOD[place:]]
    alone = one_by_one(encoder, GOOD)
    alone = pa.concat_tables([alone[:place], alone[:1], alone[place:]])
    assert_only_these_fail(stream(encoder, rows), alone, {place})


@pytest.mark.parametrize("outputs", [*((output,) for output in OUTPUTS), OUTPUTS], ids="+".join)
@pytest.mark.parametrize("max_batch_tokens", [1_000, 12])
def test_stream_not_finite_passage_fails_and_neighbours_equal_alone(
    outputs: tuple[str, ...], max_batch_tokens: int
) -> None:
    encoder = load(name=M3, outputs=outputs, max_batch_tokens=max_batch_tokens)
    rows = [*GOOD, [0, 40, 200, 2], [0, 200, 60, 2], [0, 70, 71, 2]]
    alone = one_by_one(encoder, rows)
    backbone = encoder._forward.backbone
    assert isinstance(backbone, PackedBert)
    backbone.words_VH[200] = float("nan")
    reasons = assert_only_these_fail(stream(encoder, rows), alone, {5, 6})
    assert set(reasons.values()) == {"NaN or Inf in the vectors"}


def test_encode_bad_passage_is_encode_error_naming_its_row(m3: Encoder) -> None:
    with pytest.raises(EncodeError, match=r"passage 3 cannot be encoded: IndexError: .+"):
        m3.encode_passages(token_block([*GOOD[:3], OUT_OF_VOCABULARY, *GOOD[3:]]))


def test_stream_other_errors_than_a_kernels_propagate() -> None:
    """A bug must stop the run, not turn a corpus into rejects."""
    encoder = load(**M3_ALL)

    def broken(_: PackedBatch) -> torch.Tensor:
        raise TypeError("a bug")

    encoder._forward.backbone = broken
    with pytest.raises(TypeError, match="a bug"):
        stream(encoder, GOOD)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.sampled_from([*GOOD, OUT_OF_VOCABULARY]), max_size=20),
    max_batch_tokens=st.integers(1, 12),
)
def test_stream_a_window_ahead_gives_the_same_batches_in_order(
    m3: Encoder, rows: list[list[int]], max_batch_tokens: int
) -> None:
    """As on CUDA, where the device has the next window while the host makes columns."""
    encoder = load(**M3_ALL, max_batch_tokens=max_batch_tokens)
    expected = stream(encoder, rows)
    encoder._ahead = 1
    found = stream(encoder, rows)
    assert [(b.start, b.stop, b.failures) for b in found] == [
        (b.start, b.stop, b.failures) for b in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert_vectors_equal(ours.columns, theirs.columns)


def test_stream_whose_device_fails_after_a_window_was_begun_is_device_error() -> None:
    encoder = load(**M3_ALL)
    forward = encoder._forward

    class Late:
        """Vectors that never arrive."""

        window_tokens = forward.window_tokens

        def __call__(self, *_: Any) -> Any:
            return self

        def wait(self) -> None:
            raise torch.AcceleratorError("CUDA error: illegal address")

    encoder._forward = Late()  # type: ignore[assignment]
    with pytest.raises(DeviceError, match=r"expected vectors, found CUDA error"):
        stream(encoder, GOOD)


# --- running out of memory ---------------------------------------------------------------------


class SmallDevice:
    """A backbone on a device that holds `limit` tokens."""

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self._backbone = encoder._forward.backbone
        self._limit = limit
        self.fitted: list[int] = []
        self.failed: list[int] = []
        encoder._forward.backbone = self

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        tokens = len(packed.input_ids_T)
        if tokens > self._limit:
            self.failed.append(tokens)
            raise torch.OutOfMemoryError("injected: out of memory")
        self.fitted.append(tokens)
        return self._backbone(packed)


def test_stream_out_of_memory_shrinks_micro_batches_and_keeps_vectors(m3: Encoder) -> None:
    rows = [[0, token, token + 1, 2] for token in range(5, 69)]
    encoder = load(**M3_ALL)
    device = SmallDevice(encoder, limit=40)
    assert_only_these_fail(stream(encoder, rows), m3.encode_passages(token_block(rows)), set())
    assert device.failed[0] == 256
    failures_before = len(device.failed)
    assert_only_these_fail(stream(encoder, rows), m3.encode_passages(token_block(rows)), set())
    assert len(device.failed) == failures_before  # the smaller budget is kept
    assert max(device.fitted) <= 40


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12), limit=st.integers(1, 120))
def test_stream_out_of_memory_fails_only_passages_that_never_fit(
    m3: Encoder, lengths: list[int], limit: int
) -> None:
    rows = [[0, *[40 + i] * (n - 2), 2] for i, n in enumerate(lengths)]
    encoder = load(**M3_ALL)
    SmallDevice(encoder, limit)
    too_long = {row for row, n in enumerate(lengths) if n > limit}
    reasons = assert_only_these_fail(
        stream(encoder, rows), m3.encode_passages(token_block(rows)), too_long
    )
    assert all("OutOfMemoryError" in reason for reason in reasons.values())


def test_stream_error_other_than_memory_keeps_the_budget() -> None:
    encoder = load(**M3_ALL)
    device = SmallDevice(encoder, limit=10_000)
    stream(encoder, [*GOOD, OUT_OF_VOCABULARY])
    device.fitted.clear()
    assert len(stream(encoder, GOOD)) == 1
    assert device.fitted == [sum(len(row) for row in GOOD)]


# --- threads -----------------------------------------------------------------------------------


def test_encode_from_several_threads_equals_one_and_forwards_never_overlap(m3: Encoder) -> None:
    encoder = load(**M3_ALL, max_batch_tokens=50)
    backbone, inside, overlaps = encoder._forward.backbone, threading.Semaphore(1), []

    def watched(packed: PackedBatch) -> torch.Tensor:
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
        assert_vectors_equal(table, m3.encode_passages(texts))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    max_batch_tokens=st.integers(40, 700),
    threads=st.integers(2, 3),
)
def test_stream_with_a_micro_batch_a_thread_equals_one_by_one(
    m3: Encoder, lengths: list[int], max_batch_tokens: int, threads: int
) -> None:
    rows = [[0, *[5 + i] * (n - 2), 2][:n] for i, n in enumerate(lengths)]
    alone = one_by_one(m3, [row or GOOD[0] for row in rows])
    encoder = load(**M3_ALL, max_batch_tokens=max_batch_tokens)
    torch.set_num_threads(threads)
    try:
        batches = stream(encoder, rows)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    empty = {row for row, n in enumerate(lengths) if n == 0}
    assert_only_these_fail(batches, alone, empty)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pooling": "last"},
        {"outputs": ()},
        {"outputs": ("dnese",)},
        {"dtype": "fp16"},
        {"vector_dtype": "float64"},
        {"query_max_length": 0},
        {"max_batch_tokens": 0},
        {"truncate_dim": 0},
    ],
    ids=str,
)
def test_model_config_wrong_value_is_model_error_naming_the_key(wrong):
    with pytest.raises(ModelError, match=next(iter(wrong))):
        ModelConfig(name="builtin:tiny-m3", **wrong)
