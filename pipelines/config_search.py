"""Sections of a run's configuration on search, and on how well it finds.

The docstrings of sections and fields are the documentation users read: `make docs` after a change.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines.config_base import Count, Section, Share, Weight


class SearchConfig(Section):
    """How an index is searched: search_index, evaluate_index and the endpoint; never part of what
    decides what is in it.
    """

    weights: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    """Of dense, sparse and ColBERT scores in hybrid: their weighted mean, over the outputs the
    index has. FlagEmbedding's default; its documentation uses [0.4, 0.2, 0.4]."""
    rrf_k: Count = 60
    """Reciprocal rank fusion adds 1 / (rrf_k + rank) over the outputs."""
    rrf_depth: Count = 1000
    """So many of each output, passages or documents, take part in it; no more are found."""
    candidates: Count | None = None
    """ColBERT, hybrid and rrf score only the best so many of dense and of sparse; every passage
    when not given."""
    shards: Count | None = None
    """Search actors that share the passages; one on each machine of the cluster when not given."""
    gpus_per_shard: Annotated[float, Field(ge=0)] = 0
    """GPUs of a search actor, also a fraction: dense and ColBERT vectors are then held and scored
    there."""
    cpus_per_shard: Count | None = None
    """CPUs of a search actor, and the threads it scores with; half of its machine's when not
    given."""
    max_memory_bytes: Count | None = None
    """A search that needs more on a machine is refused; what is free there when not given."""
    folder: str | None = None
    """Where each machine keeps the vectors in a form that can be mapped; packvec/search in the
    user's cache when not given."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(weights):
            raise ValueError("a weight other than 0")
        return weights


Mode = Literal["dense", "sparse", "colbert", "hybrid", "rrf"]


class EvaluateConfig(Section):
    """Judged queries, and how evaluate_index measures what a search of them finds."""

    queries: str | None = None
    """JSON lines with `_id` and `text`; the dataset's own when not given and source.format is
    beir."""
    qrels: str | None = None
    """Judgements: query-id, corpus-id and score between tabs, with a header or without (BEIR's), or
    TREC's four columns; the dataset's own when not given and source.format is beir."""
    split: str = "test"
    """Of a BEIR dataset: which of its qrels/."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] | None = None
    """Ways to search; all that the index's outputs allow when not given."""
    depth: Annotated[int, Field(ge=100)] = 1000
    """Documents of each query that are looked at; R@100 needs 100."""
    bm25: Literal["words", "tokens"] | None = "words"
    """BM25 beside them: of words, or of the model's tokens, for languages without spaces; null:
    none. It needs the texts in the index."""
    ignore_identical_ids: bool = False
    """A document with the id of its query is no result, as BEIR has it in ArguAna and Quora."""
    out: str = "out/evaluation"
    """The folder for eval.json, eval.html and a TREC run file of each mode."""


class QualityFloor(Section):
    """A measure that must not be lower."""

    mode: Mode = "dense"
    """How it is searched."""
    measure: Literal["nDCG@10", "R@100", "RR@10", "AP"] = "nDCG@10"
    """RR@10 is MRR@10, AP is MAP, of the judged queries that `evaluate` names."""
    least: Share
    """Mean over the queries."""
