"""Same weights, same vectors as FlagEmbedding 1.4.2 (golden values: data/oracle/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.config import ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.models.files import resolve_model
from actors.network import backbone, linear
from actors.tokens.tokenizer import TextTokenizer

ORACLE = Path(__file__).parent / "data" / "oracle"
EXPECTED = json.loads((ORACLE / "expected.json").read_text(encoding="utf-8"))
TEXTS: list[str] = EXPECTED["TEXTS"]
with np.load(ORACLE / "expected.npz") as _arrays:
    ARRAYS: dict[str, np.ndarray] = dict(_arrays)

M3 = "bge-m3"
BERT = "bge-small-en-v1.5"
GEMMA2 = "bge-multilingual-gemma2"
QWEN3 = "Qwen3-Embedding-0.6B"
ICL = "bge-en-icl"
FAMILY = {"m3": M3, "bert": BERT, "gemma2": GEMMA2, "qwen3": QWEN3, "icl": ICL}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Greatest difference from the golden values, absolute but for sparse weights (1 to 5)."""

    dense: float
    colbert: float
    sparse_absolute: float
    sparse_relative: float
    cosine: float
    """Least per-row cosine; half-precision rows may differ in size but not in direction."""


FULL = Tolerance(
    dense=1e-5, colbert=1e-5, sparse_absolute=1e-5, sparse_relative=0.0, cosine=0.999_999
)
HALF = Tolerance(
    dense=5e-3, colbert=5e-3, sparse_absolute=5e-3, sparse_relative=5e-3, cosine=0.9995
)
BF16 = Tolerance(dense=1e-2, colbert=2e-2, sparse_absolute=3e-2, sparse_relative=3e-2, cosine=0.999)

# FlagEmbedding ran `m3.*` and `bert.*` so; a key's own options come on top.
COMMON: dict[str, Any] = {
    "max_length": 64,
    "query_max_length": 32,
    "vector_dtype": "float32",
    "device": "cpu",
}
FP32 = {"dtype": "float32"}
FP16 = {"dtype": "float16"}
BFLOAT16 = {"dtype": "bfloat16"}
COLBERT16 = {"heads": str(ORACLE / "models" / "tiny-m3-colbert16")}
FP16_WEIGHTS = FP32 | {"weights_dtype": "float16"}
GEMMA2_QUERY = {
    "query_instruction": "Given a web search query, retrieve relevant passages.",
    "query_instruction_format": "<instruct>{}\\n<query>{}",
}
QWEN3_QUERY = {
    "query_instruction": "Given a web search query, retrieve relevant passages that answer the "
    "query",
    "query_instruction_format": "Instruct: {}\nQuery:{}",
}
ICL_INSTRUCTION = "Given a question, retrieve passages that answer it."
ICL_QUERY = {
    "query_max_length": 48,
    "query_instruction": ICL_INSTRUCTION,
    "query_instruction_format": "<instruct>{}\n<query>{}",
    "query_suffix": "\n<response>",
}
ICL_EXAMPLES = {
    "examples": (
        {
            "instruct": ICL_INSTRUCTION,
            "query": "what is ray",
            "response": "Ray is a distributed engine.",
        },
        {
            "instruct": ICL_INSTRUCTION,
            "query": "capital of France",
            "response": "Paris is the capital.",
        },
    )
}
BERT_QUERY = "Represent this sentence for searching relevant passages: "


@pytest.fixture(autouse=True, params=["prepared", "plain", "transformers"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way an encoder computes: faster ones may change no vector.

    prepared: layers of our own with oneDNN's weights and fused work; plain: without these, as on
    CUDA; transformers: its modules, as for architectures that have no layers of our own.
    """
    if request.param != "prepared":
        monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    if request.param == "transformers":
        monkeypatch.setattr(backbone, "can_take", lambda model: False)


def encoder_for(model: str, outputs: tuple[str, ...], **options: Any) -> Encoder:
    config = ModelConfig(
        name=str(ORACLE / "models" / model), outputs=outputs, **(COMMON | FP32 | options)
    )
    return load_encoder(config)


def matrix(vectors: pa.ChunkedArray) -> np.ndarray:
    return np.stack([np.asarray(row, dtype=np.float64) for row in vectors.to_pylist()])


def token_vectors(colbert: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(row, dtype=np.float64) for row in colbert.to_pylist()]


def weights_by_id(sparse: pa.ChunkedArray) -> list[dict[int, float]]:
    return [dict(zip(row["indices"], row["values"], strict=True)) for row in sparse.to_pylist()]


def assert_close(actual: np.ndarray, expected: np.ndarray, atol: float, cosine: float) -> None:
    expected = expected.astype(np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
    lengths = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((actual * expected).sum(axis=-1) / lengths).min() >= cosine


@pytest.mark.parametrize("family", FAMILY)
def test_token_ids_of_every_text_identical_to_flagembedding(family: str) -> None:
    tokenizer = TextTokenizer(ORACLE / "models" / FAMILY[family], max_length=64)
    assert tokenizer.tokenize(TEXTS).to_arrow().to_pylist() == EXPECTED[f"{family}.input_ids"]


@pytest.mark.parametrize(
    ("key", "model", "options", "tolerance"),
    [
        ("m3.dense", M3, FP32, FULL),
        ("m3.truncate8.dense", M3, FP32 | {"truncate_dim": 8}, FULL),
        ("m3.unnormalised.dense", M3, FP32 | {"normalize": False}, FULL),
        ("m3.half.dense", M3, FP16, HALF),
        ("m3.bf16.dense", M3, BFLOAT16, BF16),
        ("bert.cls", BERT, FP32, FULL),
        ("bert.corpus", BERT, FP32, FULL),
        ("bert.mean", BERT, FP32 | {"pooling": "mean"}, FULL),
        ("bert.truncate8", BERT, FP32 | {"truncate_dim": 8}, FULL),
        ("bert.unnormalised", BERT, FP32 | {"normalize": False}, FULL),
        ("bert.passage_instr", BERT, FP32 | {"passage_instruction": "doc: "}, FULL),
        ("m3.fp16flag_cpu.dense", M3, FP16_WEIGHTS, FULL),
        ("bert.fp16flag_cpu", BERT, FP16_WEIGHTS, FULL),
        ("pool.dense", BERT, FP32, FULL),
        ("gemma2.corpus_eager", GEMMA2, FP32, FULL),
        ("qwen3.corpus", QWEN3, FP32, FULL),
        ("qwen3.pseudo_moe_default", QWEN3, FP32 | {"weights_dtype": "bfloat16"}, FULL),
        ("icl.corpus", ICL, FP32 | ICL_QUERY | ICL_EXAMPLES, FULL),
        ("bert.half.cls", BERT, FP16, HALF),
        ("bert.half.mean", BERT, FP16 | {"pooling": "mean"}, HALF),
    ],
)
def test_dense_of_passages_equals_flagembedding(
    key: str, model: str, options: dict[str, Any], tolerance: Tolerance
) -> None:
    encoder = encoder_for(model, ("dense",), **options)
    dense = matrix(encoder.encode_passages(TEXTS)["dense"])
    assert_close(dense, ARRAYS[key], tolerance.dense, tolerance.cosine)


@pytest.mark.parametrize(
    ("key", "model", "options"),
    [
        ("m3.queries_instr.dense", M3, {"query_instruction": "find: "}),
        ("bert.queries", BERT, {"query_instruction": BERT_QUERY}),
        ("gemma2.queries_eager", GEMMA2, GEMMA2_QUERY),
        ("qwen3.queries", QWEN3, QWEN3_QUERY),
        ("icl.queries", ICL, ICL_QUERY | ICL_EXAMPLES),
        ("icl.queries_noex", ICL, ICL_QUERY),
    ],
)
def test_dense_of_queries_with_instruction_equals_flagembedding(
    key: str, model: str, options: dict[str, Any]
) -> None:
    expected = ARRAYS[key]
    encoder = encoder_for(model, ("dense",), **options)
    dense = matrix(encoder.encode_queries(TEXTS[: len(expected)])["dense"])
    assert_close(dense, expected, FULL.dense, FULL.cosine)


def test_examples_stand_before_a_query_as_in_flagembedding() -> None:
    config = ModelConfig(name=str(ORACLE / "models" / ICL), **ICL_QUERY, **ICL_EXAMPLES)
    prompts = resolve_model(config).prompts
    assert [prompts.examples, prompts.query_suffix] == EXPECTED["icl.prefix_suffix"]


@pytest.mark.parametrize(
    ("key", "model", "options"),
    [("m3.single.dense", M3, {}), ("bert.single", BERT, {})],
)
def test_dense_of_one_passage_equals_flagembedding(
    key: str, model: str, options: dict[str, Any]
) -> None:
    dense = matrix(encoder_for(model, ("dense",), **options).encode_passages(TEXTS[:1])["dense"])
    assert_close(dense, ARRAYS[key][None], FULL.dense, FULL.cosine)


def test_dense_of_one_icl_query_equals_flagembedding() -> None:
    encoder = encoder_for(ICL, ("dense",), **ICL_QUERY, **ICL_EXAMPLES)
    dense = matrix(encoder.encode_queries(TEXTS[:1])["dense"])
    assert_close(dense, ARRAYS["icl.query_single"][None], FULL.dense, FULL.cosine)


def test_sparse_and_colbert_of_one_passage_equal_flagembedding() -> None:
    encoded = encoder_for(M3, ("sparse", "colbert")).encode_passages(TEXTS[:1])
    golden = {int(k): v for k, v in EXPECTED["m3.single.sparse"].items()}
    assert weights_by_id(encoded["sparse"])[0] == pytest.approx(golden, abs=1e-5)
    [vectors] = token_vectors(encoded["colbert"])
    assert_close(vectors, ARRAYS["m3.single.colbert"], FULL.colbert, FULL.cosine)


@pytest.mark.parametrize(
    ("key", "options", "tolerance"),
    [
        ("m3.colbert", FP32, FULL),
        ("m3.truncate8.colbert", FP32 | {"truncate_dim": 8}, FULL),
        ("m3.unnormalised.colbert", FP32 | {"normalize": False}, FULL),
        ("m3.colbert16", FP32 | COLBERT16, FULL),
        ("m3.half.colbert", FP16, HALF),
        ("m3.bf16.colbert", BFLOAT16, BF16),
    ],
)
def test_colbert_equals_flagembedding(
    key: str, options: dict[str, Any], tolerance: Tolerance
) -> None:
    encoder = encoder_for(M3, ("colbert",), **options)
    passages = token_vectors(encoder.encode_passages(TEXTS)["colbert"])
    assert len(passages) == len(TEXTS)
    for i, vectors in enumerate(passages):
        expected = ARRAYS[f"{key}[{i}]"]
        assert vectors.shape == expected.shape
        assert_close(vectors, expected, tolerance.colbert, tolerance.cosine)


@pytest.mark.parametrize(
    ("key", "options"), [("m3.sparse", FP32), ("m3.fp16flag_cpu.sparse", FP16_WEIGHTS)]
)
def test_sparse_equals_flagembedding(key: str, options: dict[str, Any]) -> None:
    encoder = encoder_for(M3, ("sparse",), **options)
    passages = weights_by_id(encoder.encode_passages(TEXTS)["sparse"])
    for weights, golden in zip(passages, EXPECTED[key], strict=True):
        expected = {int(token_id): weight for token_id, weight in golden.items()}
        assert weights.keys() == expected.keys()
        assert weights == pytest.approx(expected, rel=0, abs=FULL.sparse_absolute)


@pytest.mark.parametrize(
    ("key", "options", "tolerance"),
    [("m3.half.sparse", FP16, HALF), ("m3.bf16.sparse", BFLOAT16, BF16)],
)
def test_sparse_in_half_precision_equals_flagembedding(
    key: str, options: dict[str, Any], tolerance: Tolerance
) -> None:
    encoder = encoder_for(M3, ("sparse",), **options)
    passages = weights_by_id(encoder.encode_passages(TEXTS)["sparse"])
    for weights, golden in zip(passages, EXPECTED[key], strict=True):
        expected = {int(token_id): weight for token_id, weight in golden.items()}
        # A weight next to zero may be in one map and not in the other: absent means zero.
        for token_id in weights.keys() | expected.keys():
            assert weights.get(token_id, 0.0) == pytest.approx(
                expected.get(token_id, 0.0),
                rel=tolerance.sparse_relative,
                abs=tolerance.sparse_absolute,
            )
