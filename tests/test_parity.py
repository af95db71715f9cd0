"""Same weights, same vectors as FlagEmbedding 1.4.2 (golden values: data/oracle/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from packed_inputs import MODELS

from actors.config import ModelConfig, Output
from actors.encoder import load_encoder
from actors.models.files import resolve_model
from actors.network import backbone, linear
from actors.tokens.tokenizer import TextTokenizer

ORACLE = MODELS.parent
EXPECTED = json.loads((ORACLE / "expected.json").read_text(encoding="utf-8"))
TEXTS: list[str] = EXPECTED["TEXTS"]
with np.load(ORACLE / "expected.npz") as _arrays:
    ARRAYS: dict[str, np.ndarray] = dict(_arrays)
FAMILY = {
    "m3": "bge-m3",
    "bert": "bge-small-en-v1.5",
    "pool": "bge-small-en-v1.5",
    "gemma2": "bge-multilingual-gemma2",
    "qwen3": "Qwen3-Embedding-0.6B",
    "icl": "bge-en-icl",
}
"""A key's first word -> its model."""


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
    "dtype": "float32",
    "device": "cpu",
}
HALF_ON_CPU = {"dtype": "float16"}
FP16_WEIGHTS = {"weights_dtype": "float16"}
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
ICL_EXAMPLES = ICL_QUERY | {
    "examples": tuple(
        {"instruct": ICL_INSTRUCTION, "query": query, "response": response}
        for query, response in (
            ("what is ray", "Ray is a distributed engine."),
            ("capital of France", "Paris is the capital."),
        )
    )
}
BERT_QUERY = {
    "query_instruction": "Represent this sentence for searching relevant passages: ",
}


@pytest.fixture(params=["prepared", "plain", "transformers"])
def _path(request, monkeypatch):
    """Every way an encoder computes: faster ones may change no vector.

    prepared: layers of our own with oneDNN's weights and fused work; plain: without these, as on
    CUDA; transformers: its modules, as for architectures that have no layers of our own.
    """
    if request.param != "prepared":
        monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    if request.param == "transformers":
        monkeypatch.setattr(backbone, "can_take", lambda model: False)


def encode(key: str, output: Output, texts: list[str], queries: bool, options: Any) -> list[Any]:
    """One column, alone, of the model that the key names."""
    name = str(MODELS / FAMILY[key.partition(".")[0]])
    encoder = load_encoder(ModelConfig(name=name, outputs=(output,), **(COMMON | options)))
    table = encoder.encode_queries(texts) if queries else encoder.encode_passages(texts)
    return table[output].to_pylist()


def assert_close(actual: Any, expected: np.ndarray, atol: float, cosine: float) -> None:
    actual, expected = np.asarray(actual, np.float64), expected.astype(np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
    lengths = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((actual * expected).sum(axis=-1) / lengths).min() >= cosine


@pytest.mark.parametrize("family", ["m3", "bert", "gemma2", "qwen3", "icl"])
def test_token_ids_of_every_text_identical_to_flagembedding(family):
    tokenizer = TextTokenizer(MODELS / FAMILY[family], max_length=64)
    assert tokenizer.tokenize(TEXTS).to_arrow().to_pylist() == EXPECTED[f"{family}.input_ids"]


PASSAGES = {
    "m3.dense": ({}, FULL),
    "m3.truncate8.dense": ({"truncate_dim": 8}, FULL),
    "m3.unnormalised.dense": ({"normalize": False}, FULL),
    "m3.half.dense": (HALF_ON_CPU, HALF),
    "m3.bf16.dense": ({"dtype": "bfloat16"}, BF16),
    "bert.cls": ({}, FULL),
    "bert.corpus": ({}, FULL),
    "bert.mean": ({"pooling": "mean"}, FULL),
    "bert.truncate8": ({"truncate_dim": 8}, FULL),
    "bert.unnormalised": ({"normalize": False}, FULL),
    "bert.passage_instr": ({"passage_instruction": "doc: "}, FULL),
    "m3.fp16flag_cpu.dense": (FP16_WEIGHTS, FULL),
    "bert.fp16flag_cpu": (FP16_WEIGHTS, FULL),
    "pool.dense": ({}, FULL),
    "gemma2.corpus_eager": ({}, FULL),
    "qwen3.corpus": ({}, FULL),
    "qwen3.pseudo_moe_default": ({"weights_dtype": "bfloat16"}, FULL),
    "icl.corpus": (ICL_EXAMPLES, FULL),
    "bert.half.cls": (HALF_ON_CPU, HALF),
    "bert.half.mean": (HALF_ON_CPU | {"pooling": "mean"}, HALF),
    "m3.single.dense": ({}, FULL),
    "bert.single": ({}, FULL),
}
QUERIES = {
    "m3.queries_instr.dense": {"query_instruction": "find: "},
    "bert.queries": BERT_QUERY,
    "gemma2.queries_eager": GEMMA2_QUERY,
    "qwen3.queries": QWEN3_QUERY,
    "icl.queries": ICL_EXAMPLES,
    "icl.queries_noex": ICL_QUERY,
    "icl.query_single": ICL_EXAMPLES,
}


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("key", [*PASSAGES, *QUERIES])
def test_dense_equals_flagembedding(key):
    options, tolerance = PASSAGES.get(key) or (QUERIES[key], FULL)
    expected = np.atleast_2d(ARRAYS[key])
    dense = encode(key, "dense", TEXTS[: len(expected)], key in QUERIES, options)
    assert_close(dense, expected, tolerance.dense, tolerance.cosine)


def test_examples_stand_before_a_query_as_in_flagembedding():
    config = ModelConfig(name=str(MODELS / FAMILY["icl"]), **ICL_EXAMPLES)
    prompts = resolve_model(config).prompts
    assert [prompts.examples, prompts.query_suffix] == EXPECTED["icl.prefix_suffix"]


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(
    ("key", "options", "tolerance"),
    [
        ("m3.colbert", {}, FULL),
        ("m3.truncate8.colbert", {"truncate_dim": 8}, FULL),
        ("m3.unnormalised.colbert", {"normalize": False}, FULL),
        ("m3.colbert16", {"heads": str(MODELS / "tiny-m3-colbert16")}, FULL),
        ("m3.half.colbert", HALF_ON_CPU, HALF),
        ("m3.bf16.colbert", {"dtype": "bfloat16"}, BF16),
        ("m3.single.colbert", {}, FULL),
    ],
)
def test_colbert_equals_flagembedding(key, options, tolerance):
    arrays = [ARRAYS[key]] if key in ARRAYS else [ARRAYS[f"{key}[{i}]"] for i in range(len(TEXTS))]
    found = encode(key, "colbert", TEXTS[: len(arrays)], False, options)
    for vectors, expected in zip(found, arrays, strict=True):
        assert_close(vectors, expected, tolerance.colbert, tolerance.cosine)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(
    ("key", "options", "tolerance"),
    [
        ("m3.sparse", {}, FULL),
        ("m3.fp16flag_cpu.sparse", FP16_WEIGHTS, FULL),
        ("m3.single.sparse", {}, FULL),
        ("m3.half.sparse", HALF_ON_CPU, HALF),
        ("m3.bf16.sparse", {"dtype": "bfloat16"}, BF16),
    ],
)
def test_sparse_equals_flagembedding(key, options, tolerance):
    golden = EXPECTED[key] if isinstance(EXPECTED[key], list) else [EXPECTED[key]]
    close = {"rel": tolerance.sparse_relative, "abs": tolerance.sparse_absolute}
    found = encode(key, "sparse", TEXTS[: len(golden)], False, options)
    for row, weights in zip(found, golden, strict=True):
        ours = dict(zip(row["indices"], row["values"], strict=True))
        theirs = {int(token_id): weight for token_id, weight in weights.items()}
        if tolerance is FULL:
            assert ours.keys() == theirs.keys()
        # A weight next to zero may be in one map and not in the other: absent means zero.
        for token_id in ours.keys() | theirs.keys():
            assert ours.get(token_id, 0.0) == pytest.approx(theirs.get(token_id, 0.0), **close)
