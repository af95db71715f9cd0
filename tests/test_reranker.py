"""Rerankers: FlagEmbedding's scores from the same weights, packed or alone, in any order."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig

from actors.config import RerankerConfig
from actors.errors import EncodeError, ModelError
from actors.models.registry import RERANKERS, reranker_record
from actors.models.reranker_files import resolve_reranker
from actors.network import pair_scores as scorers
from actors.network.packing import pack
from actors.network.pair_scores import Spans, compressed
from actors.reranker import Reranker, _dtype, load_reranker

ORACLE = Path(__file__).parent / "data" / "oracle"
MODELS = ORACLE / "models"
EXPECTED = json.loads((ORACLE / "reranker_expected.json").read_text(encoding="utf-8"))
PAIRS = [(query, passage) for query, passage in EXPECTED["PAIRS"]]
NAMES = {
    "encoder": "bge-reranker-v2-m3",
    "llm": "bge-reranker-v2-gemma",
    "layerwise": "bge-reranker-v2-minicpm-layerwise",
    "lightweight": "bge-reranker-v2.5-gemma2-lightweight",
}
KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "reranker.scores": ("encoder", {}),
    "reranker.qmax": ("encoder", {"query_max_length": 16, "max_length": 48}),
    "llmreranker.scores": ("llm", {}),
    "layerwise.cut3": ("layerwise", {"cutoff_layers": (3,)}),
    "layerwise.cut2_4": ("layerwise", {"cutoff_layers": (2, 4)}),
    "layerwise.default": ("layerwise", {}),
    "lightweight.cut3_c2": (
        "lightweight",
        {"cutoff_layers": (3,), "compress_ratio": 2, "compress_layers": (2,)},
    ),
    "lightweight.cut3_noc": ("lightweight", {"cutoff_layers": (3,)}),
    "lightweight.default": ("lightweight", {}),
    "lightweight.cut2_4_c4": (
        "lightweight",
        {"cutoff_layers": (2, 4), "compress_ratio": 4, "compress_layers": (1, 3)},
    ),
}
COMPRESSING = KEYS["lightweight.cut2_4_c4"][1]


@cache
def _load(kind: str, options: str) -> Reranker:
    given = {"max_length": 96} | json.loads(options)
    return load_reranker(
        RerankerConfig(name=str(MODELS / NAMES[kind]), dtype="float32", device="cpu", **given)
    )


def load(kind: str, **options: Any) -> Reranker:
    return _load(kind, json.dumps(options))


@pytest.mark.parametrize("key", KEYS)
def test_scores_equal_flag_embeddings(key: str) -> None:
    kind, options = KEYS[key]
    scores = load(kind, **options).score(PAIRS)
    expected = np.array(EXPECTED[key])  # of several layers: a list a layer
    np.testing.assert_allclose(scores.T, expected, rtol=1e-5, atol=1e-5)
    assert scores.dtype == np.float32


def test_scores_by_transformers_own_layers_equal_flag_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of an encoder whose layers are none of ours."""
    monkeypatch.setattr(scorers.backbone, "can_take", lambda model: False)
    config = RerankerConfig(
        name=str(MODELS / NAMES["encoder"]), max_length=96, dtype="float32", device="cpu"
    )
    scores = load_reranker(config).score(PAIRS)
    np.testing.assert_allclose(scores, EXPECTED["reranker.scores"], rtol=1e-5, atol=1e-5)


def test_token_ids_of_pairs_equal_flag_embeddings() -> None:
    assert load("encoder").tokenize(PAIRS).rows() == EXPECTED["reranker.input_ids"]


@pytest.mark.parametrize(("kind", "key"), [("encoder", "reranker"), ("llm", "llmreranker")])
def test_normalised_scores_equal_flag_embeddings(kind: str, key: str) -> None:
    scores = load(kind).score(PAIRS, normalize=True)
    np.testing.assert_allclose(scores, EXPECTED[f"{key}.normalized"], rtol=1e-5, atol=1e-5)


def test_yes_of_an_llm_reranker_is_its_first_token() -> None:
    pairs: Any = load("llm")._pairs
    assert pairs.first_id("Yes") == EXPECTED["llmreranker.yes_loc"]


words = st.text("abc déß你好 🙂\n.,", max_size=40)


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=7),
    kind=st.sampled_from(list(NAMES)),
    budget=st.sampled_from([8, 64, 4096]),
)
def test_packed_pairs_score_as_each_alone_in_any_company(
    pairs: list[tuple[str, str]], kind: str, budget: int
) -> None:
    options = COMPRESSING if kind == "lightweight" else {}
    reranker = load(kind, max_batch_tokens=budget, **options)
    together = reranker.score([*PAIRS, *pairs])
    alone = np.stack([reranker.score([pair])[0] for pair in [*PAIRS, *pairs]])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_no_pairs_have_no_scores() -> None:
    assert load("encoder").score([]).shape == (0,)


@pytest.mark.parametrize("kind", NAMES)
def test_pair_without_words_is_scored(kind: str) -> None:
    scores = load(kind).score([("", ""), ("a", ""), ("", "b")])
    assert np.isfinite(scores).all()


def test_pair_that_is_too_long_is_cut_and_said_to_be() -> None:
    long = "word " * 500
    reranker = load("encoder")
    tokens = reranker.tokenize([("a", long), (long, "b"), ("a", "b")])
    assert tokens.truncated.tolist() == [True, True, False]
    assert np.diff(tokens.offsets).max() == 96
    llm = load("llm").tokenize([("a", long), (long, "b"), ("a", "b")])
    assert llm.truncated.tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["encoder", "llm"])
def test_pair_that_is_too_long_loses_its_beginnings_where_that_is_asked(kind: str) -> None:
    reranker, longer = load(kind), load(kind, max_length=500, query_max_length=450)
    pairs = [("a", "one " * 60 + "two " * 60), ("one " * 60 + "two " * 60, "three"), ("a", "b")]
    tokens, whole = reranker.tokenize(pairs, keep_end=True), longer.tokenize(pairs)
    assert tokens.truncated.tolist() == [True, True, False]
    assert not whole.truncated.any()
    # Of the first pair the passage, of the second the query, which one token is before.
    for row, start in ((0, int(tokens.passage_starts[0])), (1, 1)):
        cut, full = tokens.rows()[row], whole.rows()[row]
        assert cut == full[:start] + full[start + len(full) - len(cut) :]
    assert tokens.rows()[2] == whole.rows()[2]


def test_pair_that_is_too_long_is_refused_where_that_is_asked() -> None:
    reranker = load("encoder", too_long="refuse")
    with pytest.raises(EncodeError, match="pair 1: expected at most 96 tokens"):
        reranker.score([("a", "b"), ("a", "word " * 500)])


def test_bad_pair_has_no_score_and_spoils_no_other() -> None:
    reranker = load("encoder", max_length=95)  # one of its own
    states: Any = reranker._scorer.__closure__
    backbone = next(c.cell_contents for c in states if hasattr(c.cell_contents, "words_VH"))
    poison = reranker.tokenize([("zq", "")]).values[2]
    backbone.words_VH[poison] = torch.nan
    pairs = [("a", "b"), ("zq", "zq"), ("c", "d")]
    scores, failures = reranker.score_tokens(reranker.tokenize(pairs))
    assert list(failures) == [1]
    assert np.isfinite(scores[[0, 2]]).all()
    with pytest.raises(EncodeError, match="pair 1 cannot be scored: NaN or Inf"):
        reranker.score(pairs)
    _load.cache_clear()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": str(MODELS / "bge-m3")}, "expected a reranker, found"),
        ({"name": str(MODELS / "Qwen3-Embedding-0.6B")}, "expected a reranker, found Qwen3"),
        ({"name": str(MODELS / NAMES["encoder"]), "max_length": 600}, "expected at most 512"),
        (
            {"name": str(MODELS / NAMES["encoder"]), "query_max_length": 510},
            "reranker.query_max_length: expected less than 508",
        ),
        (
            {"name": str(MODELS / NAMES["encoder"]), "max_length": 3},
            "reranker.max_length: expected 6 or more",
        ),
        (
            {"name": str(MODELS / NAMES["layerwise"]), "cutoff_layers": (1,)},
            "expected layers from 2 to 4",
        ),
        (
            {"name": str(MODELS / NAMES["layerwise"]), "cutoff_layers": (5,)},
            "expected layers from 2 to 4",
        ),
        ({"name": "x", "cutoff_layers": (3, 2)}, "ascending"),
        ({"name": "x", "max_length": 0}, "expected 1 or more"),
        ({"name": "x", "max_batch_tokens": 0}, "reranker.max_batch_tokens: expected 1 or more"),
        ({"name": "x", "too_long": "cut"}, "reranker.too_long: expected one of truncate, refuse"),
        ({"name": "x", "dtype": "int8"}, "reranker.dtype: expected one of auto"),
        ({"name": "BAAI/bge-m3"}, "expected a reranker, found an embedder's name"),
        ({"name": "BAAI/bge-rerankerv2-m3"}, "Did you mean BAAI/bge-reranker-v2-m3 or"),
        ({"name": str(MODELS)}, "Point reranker.name at a folder"),
        (
            {"name": str(MODELS / NAMES["encoder"]), "cutoff_layers": (2,)},
            "reranker.cutoff_layers: expected none for a reranker of kind encoder",
        ),
        (
            {"name": str(MODELS / NAMES["layerwise"]), "compress_layers": (2,)},
            "reranker.compress_layers: expected none for a reranker of kind layerwise",
        ),
        (
            {"name": str(MODELS / NAMES["encoder"]), "prompt": "x"},
            "reranker.prompt: expected none for a reranker of kind encoder",
        ),
    ],
)
def test_reranker_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_reranker(RerankerConfig(**options))


def test_reranker_of_an_architecture_that_is_not_its_kinds_is_refused(tmp_path: Path) -> None:
    """A decoder's classifier reads the last token; transformers would ask whether to run code."""
    for source, kind, changes in (
        ("encoder", "encoder", {"model_type": "qwen3"}),
        ("llm", "llm", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}),
    ):
        folder = shutil.copytree(MODELS / NAMES[source], tmp_path / f"my-{kind}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=f"an architecture among .* of kind {kind}, found"):
            load_reranker(RerankerConfig(name=str(folder), trust_remote_code=True))


def test_reranker_whose_configuration_lacks_a_number_is_refused(tmp_path: Path) -> None:
    for kind, key in (("layerwise", "start_layer"), ("encoder", "max_position_embeddings")):
        folder = shutil.copytree(MODELS / NAMES[kind], tmp_path / NAMES[kind])
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: config[k] for k in config if k != key}))
        with pytest.raises(ModelError, match=f"config.json: expected .*{key}"):
            load_reranker(RerankerConfig(name=str(folder)))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("what is ray", "an engine"), "pair 0: expected a query and a passage, found str"),
        (("ab", "cd"), "pair 0: expected a query and a passage, found str"),
        ([("a", "b"), ("a", None)], "pair 1: .*, found str, NoneType"),
        ([("a", "b"), ("a", "b", "c")], "pair 1: .*, found str, str, str"),
        ([("a", "b"), ("a", "\ud800")], "pair 1: expected Unicode, found a lone surrogate"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused_in_a_line(pairs: Any, said: str) -> None:
    with pytest.raises(EncodeError, match=said):
        load("encoder").score(pairs)


def test_pairs_of_odd_characters_are_scored() -> None:
    texts = ["a\x00b", "e\u0301" * 40, "\u200b", "\ufeff", "</s><s>", "w" * 300_000, "\U0010ffff"]
    assert np.isfinite(load("encoder").score([[text, "x"] for text in texts])).all()  # type: ignore[misc]
    assert np.isfinite(load("llm").score([("x", text) for text in texts])).all()


def test_reranker_without_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for kind in ("layerwise", "encoder"):
        folder = shutil.copytree(MODELS / NAMES[kind], tmp_path / NAMES[kind])
        weights = load_file(folder / "model.safetensors")
        weights.pop(next(name for name in weights if "layer" in name))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="missing"):
            load_reranker(RerankerConfig(name=str(folder)))


def test_bert_reranker_tells_query_and_passage_apart_by_token_types(tmp_path: Path) -> None:
    """Equal to transformers' own padded model, token types included."""
    torch.manual_seed(0)
    source = MODELS / "bge-small-en-v1.5"
    known = json.loads((source / "config.json").read_text())
    config = BertConfig(**{**known, "architectures": None, "num_labels": 1, "type_vocab_size": 2})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, tmp_path / name)
    reranker = load_reranker(
        RerankerConfig(name=str(tmp_path), max_length=60, dtype="float32", device="cpu")
    )
    tokens = reranker.tokenize(PAIRS)
    assert set(tokens.types.tolist()) == {0, 1}
    for row, (start, stop) in enumerate(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)):
        ids = torch.from_numpy(tokens.values[start:stop].astype(np.int64))[None]
        types = torch.from_numpy(tokens.types[start:stop].astype(np.int64))[None]
        with torch.inference_mode():
            expected = model(input_ids=ids, token_type_ids=types).logits.item()
            without = model(input_ids=ids).logits.item()
        assert reranker.score([PAIRS[row]])[0] == pytest.approx(expected, abs=1e-5)
        assert expected != pytest.approx(without, abs=1e-5)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=5),
    tail=st.integers(1, 3),
    ratio=st.integers(1, 5),
)
@settings(deadline=None)
def test_compressed_states_are_means_of_groups_of_the_passage(
    lengths: list[tuple[int, int]], tail: int, ratio: int
) -> None:
    starts = np.array([start for start, _ in lengths])
    offsets = np.cumsum([0, *(start + n + tail for start, n in lengths)])
    states = torch.randn(int(offsets[-1]), 3, generator=torch.Generator().manual_seed(0))
    values = np.zeros(int(offsets[-1]), np.int32)
    packed = pack(values, offsets, first_position=0, device=torch.device("cpu"))
    found, layout = compressed(states, packed, Spans(starts, tail), ratio)
    expected, sizes = [], []
    for (start, n), at in zip(lengths, offsets[:-1].tolist(), strict=True):
        own = states[at : at + start + n + tail]
        groups = [own[start + i : min(start + i + ratio, start + n)] for i in range(0, n, ratio)]
        new = [*own[:start], *(group.mean(0) for group in groups), *own[start + n :]]
        expected += new
        sizes.append(len(new))
    torch.testing.assert_close(found, torch.stack(expected))
    assert layout.cu_seqlens.diff().tolist() == sizes
    assert layout.position_ids_T.tolist() == [i for size in sizes for i in range(size)]


def test_automatic_compute_type_of_gemma2_on_a_gpu_is_bfloat16() -> None:
    cuda = torch.device("cuda")
    for kind, expected in (("encoder", "float16"), ("llm", "float16"), ("lightweight", "bfloat16")):
        config = RerankerConfig(name=str(MODELS / NAMES[kind]))
        assert _dtype(config, resolve_reranker(config), cuda) == expected
        config = dataclasses.replace(config, dtype="float16")
        assert _dtype(config, resolve_reranker(config), cuda) == "float16"


@pytest.mark.parametrize("kind", ["llm", "layerwise", "lightweight"])
def test_scores_in_bfloat16_are_near_and_not_rounded_to_its_eight_bits(kind: str) -> None:
    pairs = [(query, f"{passage} {n}") for query, passage in PAIRS for n in range(9)]
    reranker = load_reranker(
        RerankerConfig(
            name=str(MODELS / NAMES[kind]), max_length=96, dtype="bfloat16", device="cpu"
        )
    )
    scores = reranker.score(pairs)
    np.testing.assert_allclose(scores, load(kind).score(pairs), atol=0.1)
    assert (torch.from_numpy(scores).bfloat16().float().numpy() != scores).mean() > 0.9


def test_records_are_flag_embeddings_map() -> None:
    assert len(RERANKERS) == 10
    assert len({record.name for record in RERANKERS}) == 10
    record = reranker_record("/models/bge-reranker-v2-gemma/checkpoint-7")
    assert record is not None
    assert record.kind == "llm"
    assert reranker_record("bge-m3") is None
