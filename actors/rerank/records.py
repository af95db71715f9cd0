"""Rerankers that are known by name: FlagEmbedding 1.4.2's auto map, one literal record each.

inference/reranker/model_mapping.py. Facts advise, and are checked against a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.rerank.config import RerankerKind


@dataclass(frozen=True, kw_only=True)
class RerankerRecord:
    """One published reranker."""

    name: str
    """Hub id, owner/name."""
    kind: RerankerKind = "encoder"
    remote_code: bool = False
    """The checkpoint brings its own model code."""


RERANKERS = (
    RerankerRecord(name="BAAI/bge-reranker-base"),
    RerankerRecord(name="BAAI/bge-reranker-large"),
    RerankerRecord(name="BAAI/bge-reranker-v2-m3"),
    RerankerRecord(name="BAAI/bge-reranker-v2-gemma", kind="llm"),
    RerankerRecord(name="BAAI/bge-reranker-v2-minicpm-layerwise", kind="layerwise"),
    RerankerRecord(name="BAAI/bge-reranker-v2.5-gemma2-lightweight", kind="lightweight"),
    RerankerRecord(name="maidalun1020/bce-reranker-base_v1"),
    RerankerRecord(name="jinaai/jina-reranker-v1-turbo-en", remote_code=True),
    RerankerRecord(name="jinaai/jina-reranker-v2-base-multilingual", remote_code=True),
    RerankerRecord(name="Alibaba-NLP/gte-multilingual-reranker-base", remote_code=True),
)
DECODER_KINDS: Mapping[str, RerankerKind] = {
    "LayerWiseMiniCPMForCausalLM": "layerwise",
    "CostWiseGemmaForCausalLM": "lightweight",
}
"""Architectures, as config.json names them, that only rerankers have; so do those that end in
CLASSIFIER."""
CLASSIFIER = "ForSequenceClassification"

_BY_BASENAME = {record.name.rpartition("/")[2]: record for record in RERANKERS}


def reranker_record(name: str) -> RerankerRecord | None:
    """The record for a hub id, a bare name or a path, by its last part; None where there is none.

    A `checkpoint-*` folder has the record of the model it is a copy of.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        parts.pop()
    return _BY_BASENAME.get(parts[-1]) if parts else None
