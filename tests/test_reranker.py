"""Rerankers: FlagEmbedding's scores from the same weights, packed or alone, in any company."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from endpoint import tiny_reranker
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import BERT, MODELS, copy_of, edit_json
from transformers import AutoModelForSequenceClassification, BertConfig

from actors.config import RerankerConfig
from actors.errors import EncodeError, ModelError
from actors.fingerprint import score_parts
from actors.models.reranker_files import resolve_reranker
from actors.network import pair_scores as scorers
from actors.network.packing import pack
from actors.network.pair_scores import Spans, compressed
from actors.pair_batching import PairBatcher
from actors.pair_scorer import PairScorer, load_pair_scorer
from actors.reranker import Reranker, _dtype, load_reranker
from actors.tokens.pair_tokens import PAIR_TOKENS_TYPE, PairTokens
from actors.tokens.pairs import load_pair_tokenizer

EXPECTED = json.loads((MODELS.parent / "reranker_expected.json").read_text(encoding="utf-8"))
PAIRS = [(query, passage) for query, passage in EXPECTED["PAIRS"]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ENCODER, LAYERWISE = MODELS / "bge-reranker-v2-m3", MODELS / "bge-reranker-v2-minicpm-layerwise"
FOLDERS = {
    "encoder": ENCODER,
    "llm": MODELS / "bge-reranker-v2-gemma",
    "layerwise": LAYERWISE,
    "lightweight": MODELS / "bge-reranker-v2.5-gemma2-lightweight",
}
CUT2_4_C4 = {"cutoff_layers": (2, 4), "compress_ratio": 4, "compress_layers": (1, 3)}
CUT3_C2 = {"cutoff_layers": (3,), "compress_ratio": 2, "compress_layers": (2,)}


def config_of(folder: Path, **options: Any) -> RerankerConfig:
    options = {"max_length": 96, "dtype": "float32", "device": "cpu"} | options
    return RerankerConfig(name=str(folder), **options)


@functools.cache
def load(kind: str, **options: Any) -> Reranker:
    return load_reranker(config_of(FOLDERS[kind], **options))


@pytest.mark.parametrize(
    ("key", "kind", "options"),
    [
        ("reranker.scores", "encoder", {}),
        ("reranker.qmax", "encoder", {"query_max_length": 16, "max_length": 48}),
        ("llmreranker.scores", "llm", {}),
        ("layerwise.cut3", "layerwise", {"cutoff_layers": (3,)}),
        ("layerwise.cut2_4", "layerwise", {"cutoff_layers": (2, 4)}),
        ("layerwise.default", "layerwise", {}),
        ("lightweight.cut3_c2", "lightweight", CUT3_C2),
        ("lightweight.cut3_noc", "lightweight", {"cutoff_layers": (3,)}),
        ("lightweight.default", "lightweight", {}),
        ("lightweight.cut2_4_c4", "lightweight", CUT2_4_C4),
    ],
)
def test_scores_equal_flag_embeddings(key, kind, options):
    scores = load(kind, **options).score(PAIRS)
    np.testing.assert_allclose(scores.T, np.array(EXPECTED[key]), **CLOSE)  # a list a layer
    assert scores.dtype == np.float32


def test_scores_by_transformers_own_layers_equal_flag_embeddings(monkeypatch):
    """As of an encoder whose layers are none of ours."""
    monkeypatch.setattr(scorers.backbone, "can_take", lambda model: False)
    scores = load.__wrapped__("encoder").score(PAIRS)
    np.testing.assert_allclose(scores, EXPECTED["reranker.scores"], **CLOSE)


def test_normalised_scores_and_token_ids_equal_flag_embeddings():
    for kind, key in (("encoder", "reranker"), ("llm", "llmreranker")):
        scores = load(kind).score(PAIRS, normalize=True)
        np.testing.assert_allclose(scores, EXPECTED[f"{key}.normalized"], **CLOSE)
    assert load("encoder").tokenize(PAIRS).rows() == EXPECTED["reranker.input_ids"]
    assert load("llm")._pairs.first_id("Yes") == EXPECTED["llmreranker.yes_loc"]


words = st.text("abc déß你好 🙂\n.,", max_size=40)


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=7),
    kind=st.sampled_from(list(FOLDERS)),
    budget=st.sampled_from([8, 64, 4096]),
)
def test_packed_pairs_score_as_each_alone_in_any_company(pairs, kind, budget):
    options = CUT2_4_C4 if kind == "lightweight" else {}
    reranker = load(kind, max_batch_tokens=budget, **options)
    together = reranker.score([*PAIRS, *pairs])
    alone = np.stack([reranker.score([pair])[0] for pair in [*PAIRS, *pairs]])
    np.testing.assert_allclose(together, alone, **CLOSE)


@pytest.mark.parametrize("kind", FOLDERS)
def test_pairs_without_words_or_of_odd_characters_are_scored(kind):
    odd = ["a\x00b", "e\u0301" * 40, "\u200b", "\ufeff", "</s><s>", "w" * 300_000, "\U0010ffff"]
    pairs = [("", ""), ("a", ""), ("", "b"), *((t, "x") for t in odd), *(("x", t) for t in odd)]
    assert np.isfinite(load(kind).score(pairs)).all()
    assert len(load(kind).score([])) == 0


@pytest.mark.parametrize("kind", ["encoder", "llm"])
def test_pair_that_is_too_long_is_cut_at_the_end_asked_for_and_said_to_be(kind):
    reranker, longer = load(kind), load(kind, max_length=500, query_max_length=450)
    pairs = [("a", "one " * 60 + "two " * 60), ("one " * 60 + "two " * 60, "three"), ("a", "b")]
    tokens, whole = reranker.tokenize(pairs, keep_end=True), longer.tokenize(pairs)
    assert tokens.truncated.tolist() == reranker.tokenize(pairs).truncated.tolist()
    assert tokens.truncated.tolist() == [True, True, False]
    assert not whole.truncated.any()
    assert kind == "llm" or np.diff(reranker.tokenize(pairs).offsets).max() == 96
    # Of the first pair the passage, of the second the query, which one token is before.
    for row, start in ((0, int(tokens.passage_starts[0])), (1, 1)):
        cut, full = tokens.rows()[row], whole.rows()[row]
        assert cut == full[:start] + full[start + len(full) - len(cut) :]
    assert tokens.rows()[2] == whole.rows()[2]


def test_pair_that_is_too_long_is_refused_where_that_is_asked():
    with pytest.raises(EncodeError, match="pair 1: expected at most 96 tokens"):
        load("encoder", too_long="refuse").score([("a", "b"), ("a", "word " * 500)])


def test_bad_pair_has_no_score_and_spoils_no_other():
    reranker = load.__wrapped__("encoder")
    cells = [cell.cell_contents for cell in reranker._scorer.__closure__]
    backbone = next(content for content in cells if hasattr(content, "words_VH"))
    backbone.words_VH[reranker.tokenize([("zq", "")]).values[2]] = torch.nan
    pairs = [("a", "b"), ("zq", "zq"), ("c", "d")]
    scores, failures = reranker.score_tokens(reranker.tokenize(pairs))
    assert list(failures) == [1]
    assert np.isfinite(scores[[0, 2]]).all()
    with pytest.raises(EncodeError, match="pair 1 cannot be scored: NaN or Inf"):
        reranker.score(pairs)


NONE_FOR = "expected none for a reranker of kind"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (MODELS / "bge-m3", {}, "expected a reranker, found"),
        (MODELS / "Qwen3-Embedding-0.6B", {}, "expected a reranker, found Qwen3"),
        (ENCODER, {"max_length": 600}, "expected at most 512"),
        (ENCODER, {"query_max_length": 510}, "reranker.query_max_length: expected less than 508"),
        (ENCODER, {"max_length": 3}, "reranker.max_length: expected 6 or more"),
        (LAYERWISE, {"cutoff_layers": (1,)}, "expected layers from 2 to 4"),
        (LAYERWISE, {"cutoff_layers": (5,)}, "expected layers from 2 to 4"),
        ("x", {"cutoff_layers": (3, 2)}, "ascending"),
        ("x", {"max_length": 0}, "expected 1 or more"),
        ("x", {"max_batch_tokens": 0}, "reranker.max_batch_tokens: expected 1 or more"),
        ("x", {"too_long": "cut"}, "reranker.too_long: expected one of truncate, refuse"),
        ("x", {"dtype": "int8"}, "reranker.dtype: expected one of auto"),
        ("BAAI/bge-m3", {}, "expected a reranker, found an embedder's name"),
        ("BAAI/bge-rerankerv2-m3", {}, "Did you mean BAAI/bge-reranker-v2-m3 or"),
        (MODELS, {}, "Point reranker.name at a folder"),
        (ENCODER, {"cutoff_layers": (2,)}, f"reranker.cutoff_layers: {NONE_FOR} encoder"),
        (LAYERWISE, {"compress_layers": (2,)}, f"reranker.compress_layers: {NONE_FOR} layerwise"),
        (ENCODER, {"prompt": "x"}, f"reranker.prompt: {NONE_FOR} encoder"),
    ],
)
def test_reranker_that_cannot_be_is_refused(name, options, said):
    with pytest.raises(ModelError, match=said):
        load_reranker(RerankerConfig(name=str(name), **options))


OTHER_KIND = "an architecture among .* for kind {}, found"


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        # A decoder's classifier reads the last token.
        ("encoder", {"model_type": "qwen3"}, OTHER_KIND.format("encoder")),
        # Here transformers would ask whether to run code.
        ("llm", {"model_type": "a", "auto_map": {"AutoConfig": "a.C"}}, OTHER_KIND.format("llm")),
        ("layerwise", {"start_layer": None}, "config.json: expected .*start_layer"),
        ("encoder", {"max_position_embeddings": None}, "expected .*max_position_embeddings"),
    ],
)
def test_reranker_of_another_configuration_is_refused(tmp_path, kind, changes, said):
    folder = copy_of(FOLDERS[kind], tmp_path / f"my-{kind}", **changes)
    with pytest.raises(ModelError, match=said):
        load_reranker(RerankerConfig(name=str(folder), trust_remote_code=True))


@pytest.mark.parametrize("kind", ["layerwise", "encoder"])
def test_reranker_without_a_weight_is_refused(tmp_path, kind):
    from safetensors.torch import load_file, save_file

    folder = copy_of(FOLDERS[kind], tmp_path / FOLDERS[kind].name)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layer" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="missing"):
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
def test_what_is_no_pair_of_texts_is_refused_in_a_line(pairs, said):
    with pytest.raises(EncodeError, match=said):
        load("encoder").score(pairs)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT reranker, whose token types count; and its folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    known = json.loads((BERT / "config.json").read_text())
    config = BertConfig(**{**known, "architectures": None, "num_labels": 1, "type_vocab_size": 2})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BERT / name, folder / name)
    return model, folder


def test_bert_reranker_tells_query_and_passage_apart_by_token_types(bert):
    """Equal to transformers' own model, token types included."""
    model, folder = bert
    reranker = load_reranker(config_of(folder))
    tokens = reranker.tokenize(PAIRS)
    assert set(tokens.types.tolist()) == {0, 1}
    for pair, ids, start in zip(PAIRS, tokens.rows(), tokens.offsets, strict=False):
        types = torch.from_numpy(tokens.types[start : start + len(ids)].astype(np.int64))[None]
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids]), token_type_ids=types).logits.item()
            without = model(input_ids=torch.tensor([ids])).logits.item()
        assert reranker.score([pair])[0] == pytest.approx(expected, abs=1e-5)
        assert expected != pytest.approx(without, abs=1e-5)


REMOTE_CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnReranker(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_reranker_with_its_own_code_is_refused_unless_trusted_and_scores_as_packed(
    bert, tmp_path, monkeypatch
):
    """Padded, with the token types that tell query and passage apart."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = copy_of(bert[1], tmp_path / "own", architectures=["OwnForSequenceClassification"])
    (own / "own_code.py").write_text(REMOTE_CODE)
    code = {"AutoConfig": "OwnConfig", "AutoModelForSequenceClassification": "OwnReranker"}
    auto_map = {auto: f"own_code.{name}" for auto, name in code.items()}
    edit_json(own / "config.json", model_type="own-bert", auto_map=auto_map)
    with pytest.raises(ModelError, match="needs the Python code of its repository") as caught:
        load_reranker(config_of(own))
    assert "trust_remote_code=true" in caught.value.remedy
    pairs = [*PAIRS, ("", "b"), ("c", "")]
    scores = load_reranker(config_of(own, trust_remote_code=True)).score(pairs)
    expected = load_reranker(config_of(bert[1])).score(pairs)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=5),
    tail=st.integers(1, 3),
    ratio=st.integers(1, 5),
)
@settings(deadline=None)
def test_compressed_states_are_means_of_groups_of_the_passage(lengths, tail, ratio):
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


def test_automatic_compute_type_of_gemma2_on_a_gpu_is_bfloat16():
    cuda = torch.device("cuda")
    for kind, expected in (("encoder", "float16"), ("llm", "float16"), ("lightweight", "bfloat16")):
        config = RerankerConfig(name=str(FOLDERS[kind]))
        assert _dtype(config, resolve_reranker(config), cuda) == expected
        config = dataclasses.replace(config, dtype="float16")
        assert _dtype(config, resolve_reranker(config), cuda) == "float16"


@pytest.mark.parametrize("kind", ["llm", "layerwise", "lightweight"])
def test_scores_in_bfloat16_are_near_and_not_rounded_to_its_eight_bits(kind):
    pairs = [(query, f"{passage} {n}") for query, passage in PAIRS for n in range(9)]
    scores = load(kind, dtype="bfloat16").score(pairs)
    np.testing.assert_allclose(scores, load(kind).score(pairs), atol=0.1)
    assert (torch.from_numpy(scores).bfloat16().float().numpy() != scores).mean() > 0.9


# --- a reranker as a pipeline holds it ------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(pairs=st.lists(st.tuples(words, words), max_size=40), skipped=st.integers(0, 40))
def test_stream_of_a_sliced_column_equals_the_rerankers_scores(pairs, skipped):
    reranker = tiny_reranker()
    column = reranker.tokenize(pairs).to_arrow()
    assert column.type == PAIR_TOKENS_TYPE
    kept = pairs[skipped:]
    batches = list(PairScorer(reranker, "").stream(pa.chunked_array([column]).slice(skipped)))
    bounds = [0, *(batch.stop for batch in batches)]
    assert [batch.start for batch in batches] == bounds[:-1]
    assert bounds[-1] == len(kept)
    found = [score for batch in batches for score in batch.columns["score"].to_pylist()]
    np.testing.assert_allclose(found, reranker.score(kept), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "llm"])
def test_pairs_from_arrow_are_those_that_went_there(kind):
    config = config_of(FOLDERS[kind])
    tokenizer = load_pair_tokenizer(resolve_reranker(config), config)
    tokens = tokenizer.tokenize([("what is ray", "an engine"), ("", ""), ("a", "b c")])
    again = PairTokens.from_arrow(tokens.to_arrow(), tokenizer.shape)
    assert again.tail == tokens.tail
    for name in ("values", "offsets", "types", "passage_starts", "truncated"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tokens, name))


def test_scores_are_float32_and_of_several_layers_a_list_a_pair():
    scorer = load_pair_scorer(config_of(ENCODER))
    assert scorer.empty().schema == pa.schema([("score", pa.float32())])
    assert (scorer.info.dim, scorer.info.pooling) == (1, "none")
    scorer = load_pair_scorer(config_of(LAYERWISE, cutoff_layers=(2, 4)))
    assert scorer.info.dim == 2
    assert scorer.empty()["score"].type == pa.list_(pa.float32(), 2)


def parts_of(name: Path = ENCODER, **options: Any) -> dict[str, Any]:
    config = config_of(name, **options)
    return score_parts(config, resolve_reranker(config))


def test_score_parts_are_the_same_exactly_where_scores_are():
    for options in ({"dtype": "bfloat16"}, {"max_batch_tokens": 8}, {"query_max_length": 72}):
        assert parts_of(**options) == parts_of(), options
    for options in ({"max_length": 95}, {"query_max_length": 10}, {"compress_ratio": 2}):
        assert parts_of(**options) != parts_of(), options
    assert parts_of(LAYERWISE, cutoff_layers=(2,)) != parts_of(LAYERWISE)
    own = parts_of(FOLDERS["llm"])
    assert own != parts_of()
    assert parts_of(FOLDERS["llm"], prompt="Is it?") != own
    assert parts_of(FOLDERS["llm"], prompt=own["prompt"]) == own


def test_load_pair_scorer_of_an_embedder_is_model_error():
    with pytest.raises(ModelError, match="expected a reranker"):
        load_pair_scorer(RerankerConfig(name="builtin:tiny-m3"))


# --- requests that share a reranker ---------------------------------------------------------------


class Slow:
    """A reranker that waits for a gate, and remembers how many pairs each pass had."""

    def __init__(self, reranker: Reranker, max_batch_tokens: int) -> None:
        self._reranker = reranker
        self.max_batch_tokens = max_batch_tokens
        self.begun, self.gate = threading.Event(), threading.Event()
        self.passes: list[int] = []
        self.tokenize = reranker.tokenize

    def score_tokens(self, tokens: PairTokens) -> Any:
        self.begun.set()
        assert self.gate.wait(20)
        self.passes.append(len(tokens.truncated))
        return self._reranker.score_tokens(tokens)


@settings(max_examples=10, deadline=None)
@given(
    requests=st.lists(st.tuples(words, st.lists(words, max_size=9)), min_size=1, max_size=5),
    budget=st.integers(1, 200),
    piece=st.integers(1, 100),
)
def test_scores_of_shared_passes_are_those_of_each_request_alone(requests, budget, piece):
    reranker = Slow(tiny_reranker(), budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.pair_batching._TOKENIZE_CHARACTERS", piece)
        batcher = PairBatcher(reranker)
        futures = [batcher.submit(query, passages) for query, passages in requests]
        reranker.gate.set()
        batcher.close()
    for (query, passages), future in zip(requests, futures, strict=True):
        found, pairs = future.result(0), [(query, passage) for passage in passages]
        expected = tiny_reranker().score(pairs)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)
        assert found.tokens == len(tiny_reranker().tokenize(pairs).values)
        assert not found.failures


def test_short_request_does_not_wait_behind_a_long_one():
    reranker = Slow(tiny_reranker(), 64)
    batcher = PairBatcher(reranker)
    long = batcher.submit("first", ["a b c"] * 200)
    assert reranker.begun.wait(20)
    short = batcher.submit("second", ["d"])
    passes_before: list[int] = []
    short.add_done_callback(lambda _: passes_before.append(len(reranker.passes)))
    reranker.gate.set()
    batcher.close()
    assert len(long.result(0).scores) == 200
    assert passes_before == [2]  # the one that it came in, and the next
    assert len(reranker.passes) > 10


def test_cancelled_request_is_scored_no_further():
    reranker = Slow(tiny_reranker(), 64)
    batcher = PairBatcher(reranker)
    futures = [batcher.submit("query", ["a b c"] * 200) for _ in range(2)]
    assert reranker.begun.wait(20)
    assert all(future.cancel() for future in futures)
    reranker.gate.set()
    batcher.close()
    assert len(reranker.passes) == 1


def test_failing_device_fails_its_requests_and_no_later_one():
    reranker = Slow(tiny_reranker(), 10_000)
    reranker.gate.set()
    real = reranker.score_tokens
    batcher = PairBatcher(reranker)
    reranker.score_tokens = lambda tokens: 1 / 0
    with pytest.raises(EncodeError, match="ZeroDivisionError"):
        batcher.submit("a", ["b", "c"]).result(20)
    reranker.score_tokens = real
    assert np.isfinite(batcher.submit("a", ["b"]).result(20).scores).all()
    reranker.tokenize = lambda pairs, keep_end: 1 / 0
    with pytest.raises(EncodeError, match="ZeroDivisionError"):
        batcher.submit("a", ["b", "c"]).result(20)
    batcher.close()
    with pytest.raises(ModelError, match="shutting down"):
        batcher.submit("a", ["b"])
