"""Evaluate an index: search judged queries in every mode and measure the rankings.

    read judged queries -> encode -> search documents -> add BM25 -> measure -> compare

A document has the score of its best passage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError
from actors.models.files import resolve_model
from actors.tokens.tokenizer import encoder_input
from pipelines.config.run import RunConfig
from pipelines.config.sections import Mode, absolute_uri
from pipelines.evaluation.bm25 import K1, B, bm25_rankings, encoder_tokens
from pipelines.evaluation.dataset import (
    JudgedQueries,
    Rankings,
    beir_files,
    read_judged,
    unknown_documents,
)
from pipelines.evaluation.measures import extra
from pipelines.evaluation.ranking import SecondStage, rank_judged, timed
from pipelines.evaluation.results import DatasetFacts, Evaluation, IndexFacts, evaluate_modes
from pipelines.index.generations import check_vectors
from pipelines.index.reader import Index
from pipelines.search.answers import RERANK
from pipelines.search.searcher import outputs_for

BM25 = "bm25"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An evaluation with the judgements and rankings that it was computed from."""

    evaluation: Evaluation
    judged: JudgedQueries
    rankings: Mapping[str, Rankings]


def judged_files(config: RunConfig) -> tuple[str, str]:
    """Return the URIs of the queries and the judgements.

    Raises:
        ConfigError: the configuration does not name them.
    """
    queries, qrels = config.evaluate.queries, config.evaluate.qrels
    if config.source.format == "beir" and len(config.source.uris) == 1:
        own = beir_files(config.source.uris[0], config.evaluate.split)
        queries, qrels = queries or own[0], qrels or own[1]
    if queries is None or qrels is None:
        raise ConfigError(
            f"evaluate.{'qrels' if queries else 'queries'}: expected a file, found none.",
            "Set this key, or use a BEIR dataset (source.format: beir).",
        )
    return queries, qrels


def check_ready(config: RunConfig, modes: Sequence[Mode] = ()) -> None:
    """Check everything that an evaluation needs and that is known before the index exists.

    Raises:
        SourceError: queries or judgements cannot be read. ConfigError: a package is missing.
        IndexStateError: one of `modes` needs an output that is not computed.
    """
    read_judged(*judged_files(config), config.source.storage_options)
    extra("ir_measures")
    extra("scipy.stats")
    if config.evaluate.bm25:
        extra("bm25s")
    outputs_for(modes or config.evaluate.modes or (), config.outputs, config.search)


def modes_of(config: RunConfig, index: Index) -> tuple[Mode, ...]:
    """Return the modes to search: those configured, else all that the index allows.

    Raises:
        IndexStateError: a mode needs vectors that the index lacks, or the index holds scores.
    """
    check_vectors(index.info, index.store.uri)
    outputs = index.info.outputs
    own: tuple[Mode, ...] = tuple(m for m in ("dense", "sparse", "colbert") if m in outputs)
    modes = config.evaluate.modes or (*own, *(("hybrid", "rrf") if len(own) > 1 else ()))
    outputs_for(modes, outputs, config.search)
    return modes


def evaluate(
    config: RunConfig,
    index: Index,
    modes: tuple[Mode, ...],
    *,
    bm25: bool,
    second: SecondStage | None = None,
) -> Evaluated:
    """Search `index` for the configured judged queries and measure the rankings.

    Raises:
        SourceError: queries or judgements cannot be read. ConfigError: a package is missing, or
            memory is too small. IndexStateError: the model and the index are of different spaces.
            ModelError: no such reranker.
    """
    files = judged_files(config)
    judged = read_judged(*files, config.source.storage_options)
    started, baseline = datetime.now(UTC), "dense" if "dense" in modes else modes[0]
    rankings, seconds = rank_judged(config, index, judged.queries, modes, second)
    if bm25 and config.evaluate.bm25 and "text" in index.schema.names:
        with timed(seconds, BM25):
            rankings[BM25] = _bm25(config, index, judged)
    results = evaluate_modes(
        judged.qrels,
        rankings,
        baseline=baseline,
        ignore_identical_ids=config.evaluate.ignore_identical_ids,
        settings=_settings(config, second),
    )
    queries, qrels = map(absolute_uri, files)
    unknown = len(unknown_documents(judged, index.documents()["doc_id"].to_pylist()))
    info = index.info
    evaluation = Evaluation(
        started=started.isoformat(timespec="seconds"),
        index=IndexFacts(
            uri=index.store.uri,
            generation=info.generation,
            model=info.model.name,
            revision=info.model.revision,
            space_fingerprint=info.space_fingerprint,
            documents=info.counts.live_documents,
            passages=index.passages,
        ),
        dataset=DatasetFacts.of(judged, queries, qrels, unknown),
        baseline=baseline,
        ignore_identical_ids=config.evaluate.ignore_identical_ids,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        versions={name: version(name) for name in ("packvec", "torch", "ir-measures")},
        query_ids=sorted(judged.qrels),
        modes=results,
    )
    return Evaluated(evaluation, judged, rankings)


def _bm25(config: RunConfig, index: Index, judged: JudgedQueries) -> Rankings:
    table = index.to_table(["doc_id", "title", "text"])
    texts = table["text"].to_pylist()
    if config.chunk.title_prefix:
        pairs = zip(table["title"].to_pylist(), texts, strict=True)
        texts = [encoder_input(title, text) for title, text in pairs]
    tokenize = None
    if config.evaluate.bm25 == "tokens":
        tokenize = encoder_tokens(resolve_model(config.encoder).folder)
    return bm25_rankings(
        table["doc_id"].to_pylist(),
        texts,
        judged.queries,
        config.evaluate.depth,
        tokenize=tokenize,
    )


def _settings(config: RunConfig, second: SecondStage | None) -> dict[str, dict[str, Any]]:
    search = config.search
    several: dict[str, Any] = {"candidates": search.candidates} if search.candidates else {}
    return {
        "colbert": several,
        "hybrid": {"weights": list(search.weights)} | several,
        "rrf": {"k": search.rrf_k, "depth": search.rrf_depth} | several,
        RERANK: {"model": second.config.name, "top": second.top} if second else {},
        BM25: {"of": config.evaluate.bm25, "k1": K1, "b": B},
    }


def lengths_of(index: Index, documents: set[str]) -> dict[str, int]:
    """Return the number of tokens of each of these documents, over all their passages."""
    found = index.documents(pa.array(sorted(documents), pa.string()))
    return dict(zip(found["doc_id"].to_pylist(), found["n_tokens"].to_pylist(), strict=True))


def texts_of(index: Index, documents: set[str]) -> dict[str, str]:
    """Return title and first passage of these documents; nothing if the index has no texts."""
    if "text" not in index.schema.names or not documents:
        return {}
    places = index.documents(pa.array(sorted(documents), pa.string()))
    rows = index.rows_of(places, ["doc_id", "passage_no", "title", "text"]).read_all()
    rows = rows.filter(pc.equal(rows["passage_no"], 0))
    return {
        row["doc_id"]: f"{row['title']}: {row['text']}" if row["title"] else row["text"]
        for row in rows.to_pylist()
    }
