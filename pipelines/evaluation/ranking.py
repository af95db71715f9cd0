"""Search judged queries in every mode, and optionally rerank the results.

encode -> search documents -> (rerank the best documents)
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from actors.config import RerankerConfig
from pipelines.config.run import RunConfig
from pipelines.config.sections import Mode
from pipelines.evaluation.dataset import Rankings
from pipelines.index.reader import Index
from pipelines.search.answers import RERANK, Hit, check_can_rerank, find, rerank
from pipelines.search.opening import open_searcher
from pipelines.search.searcher import Searcher, outputs_for
from pipelines.search.space import check_same_space, read_space

_QUERIES = 1_024  # queries whose vectors are in memory at once


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """A reranker of the documents that hybrid, or without hybrid the first mode, finds."""

    config: RerankerConfig
    top: int
    """The number of documents per query that it scores, each by its best passage."""


def rank_judged(
    config: RunConfig,
    index: Index,
    queries: Mapping[str, str],
    modes: tuple[Mode, ...],
    second: SecondStage | None = None,
) -> tuple[dict[str, Rankings], dict[str, float]]:
    """Return each mode's rankings of documents, and the seconds that each step took.

    Raises:
        IndexStateError: the model and the index are of different spaces, or a reranker has no
            texts. ConfigError: memory is too small. ModelError: no such model.
    """
    # Imported late because they load torch, which a gate without measures never needs.
    from actors.encoder import load_encoder
    from actors.reranker import load_reranker

    seconds: dict[str, float] = {}
    outputs = outputs_for(modes, index.info.outputs, config.search)
    model = dataclasses.replace(config.model, outputs=outputs)
    space = read_space(index.store.uri, index.store.options, index.info.generation)
    check_same_space(space, model)
    if second:
        check_can_rerank(second.config, has_texts="text" in index.schema.names)
    rankings: dict[str, Rankings] = {name: {} for name in (*modes, *([RERANK] if second else []))}
    ids = list(queries)
    with open_searcher(index, outputs, config.search, config.ray) as searcher:
        encoder = load_encoder(model)
        check_same_space(space, model, encoder.info.dtype)
        reranker = load_reranker(second.config) if second else None
        for start in range(0, len(ids), _QUERIES):
            own = ids[start : start + _QUERIES]
            texts = [queries[query] for query in own]
            with timed(seconds, "encode"):
                vectors = encoder.encode_queries(texts)
            with timed(seconds, "search"):
                found = _search(searcher, vectors, own, modes, config.evaluate.depth)
            if reranker and second:
                with timed(seconds, RERANK):
                    first = "hybrid" if "hybrid" in modes else modes[0]
                    hits = find(searcher, vectors, first, second.top, unit="document")
                    answers = rerank(reranker, texts, hits, title_prefix=config.chunk.title_prefix)
                    found[RERANK] = {
                        query: _with_rest(best, found[first][query])
                        for query, best in zip(own, answers, strict=True)
                    }
            for name, ranking in found.items():
                rankings[name] |= ranking
    return rankings, seconds


def _search(
    searcher: Searcher, vectors: pa.Table, ids: list[str], modes: tuple[Mode, ...], depth: int
) -> dict[str, Rankings]:
    best = searcher.search(vectors, modes, depth, unit="document")
    rows = np.unique(np.concatenate([rows_QK.reshape(-1) for _, rows_QK in best.values()]))
    rows = rows[rows >= 0]
    names = np.array(searcher.take(rows, ["doc_id"])["doc_id"].to_pylist(), dtype=object)
    found: dict[str, Rankings] = {}
    for mode, (scores_QK, rows_QK) in best.items():
        found[mode] = {}
        for query, scores, own in zip(ids, scores_QK, rows_QK, strict=True):
            documents = names[np.searchsorted(rows, own[own >= 0])]
            found[mode][query] = dict(zip(documents, scores[own >= 0].tolist(), strict=True))
    return found


def _with_rest(best: Sequence[Hit], before: Iterable[str]) -> dict[str, float]:
    """Return the reranked documents, followed by the other documents of the first stage."""
    ranking = {hit.passage["doc_id"]: hit.score for hit in best}
    least = min(ranking.values(), default=0.0)
    rest = [document for document in before if document not in ranking]
    return ranking | {document: least - place for place, document in enumerate(rest, 1)}


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of the `with` block to `seconds[name]`."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
