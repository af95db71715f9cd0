"""Scores between queries and passages: dense, lexical, ColBERT's MaxSim, and their weighted mean.

    scores = dense_matrix(encoder.encode_queries(texts)["dense"], index_table["dense"])    # [Q, P]

Formulas: BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2), as FlagEmbedding 1.4.2 computes
them in inference/embedder/encoder_only/m3.py; but nothing is padded here, so no zero vector takes
part in a maximum. Inputs are Arrow columns as an encoder or an index gives them (sliced and chunked
ones too), or numpy; scores are float32, whatever the vectors are stored as. Knows no model, and
loads torch only when something is scored.
Shape suffixes: Q queries, P passages, N rows, D dimension.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.config import OUTPUTS, Output
from actors.errors import ModelError
from actors.search.fusion import Weights
from actors.search.fusion import weighted_mean as weighted_mean
from actors.vectors import Column, SparseVectors, TokenVectors


def dense_matrix(queries: np.ndarray | Column, passages: np.ndarray | Column) -> np.ndarray:
    """Inner products [Q, P] of [Q, D] and [P, D]: cosines, where vectors are normalised.

    Raises:
        ModelError: the two have different dimensions.
    """
    return _matrix("dense", queries, passages)


def dense_pairs(queries: np.ndarray | Column, passages: np.ndarray | Column) -> np.ndarray:
    """Inner product [N] of each query with the passage of its row. Raises as `dense_matrix`."""
    return _pairs("dense", queries, passages)


def sparse_matrix(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Lexical matching [Q, P]: over the token ids two rows share, the sum of their products.

    0 where they share none, as an empty vector does with all.
    """
    return _matrix("sparse", queries, passages)


def sparse_pairs(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Lexical matching [N] of each query with the passage of its row."""
    return _pairs("sparse", queries, passages)


def colbert_matrix(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """MaxSim [Q, P]: over a query's tokens, the mean of the best inner product in the passage.

    A row without tokens (an encoder gives none: even "" has its end token) scores 0 with all.

    Raises:
        ModelError: the two have different dimensions.
    """
    return _matrix("colbert", queries, passages)


def colbert_pairs(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """MaxSim [N] of each query with the passage of its row; otherwise as `colbert_matrix`."""
    return _pairs("colbert", queries, passages)


def pair_scores(
    queries: pa.Table, passages: pa.Table, weights: Weights = (1.0, 1.0, 1.0)
) -> dict[str, np.ndarray]:
    """FlagEmbedding's five `compute_score`s, float32 [N], of each query with its row's passage.

    Tables with the columns dense, sparse and colbert. Keys: colbert, sparse, dense, sparse+dense,
    colbert+sparse+dense (`weighted_mean`s).

    Raises:
        ModelError: a column is missing, or dimensions differ.
    """
    for side, table in (("queries", queries), ("passages", passages)):
        missing = [name for name in OUTPUTS if name not in table.column_names]
        if missing:
            raise ModelError(
                f"{side}: expected columns {', '.join(OUTPUTS)}, found no {', '.join(missing)}.",
                f"Encode with outputs={OUTPUTS}, or call the pair functions of what there is.",
            )
    scores = {output: _pairs(output, queries[output], passages[output]) for output in OUTPUTS}
    without: dict[Output, np.ndarray] = {o: scores[o] for o in OUTPUTS if o != "colbert"}
    return {
        **{output: scores[output] for output in reversed(OUTPUTS)},
        "sparse+dense": weighted_mean(without, weights),
        "colbert+sparse+dense": weighted_mean(scores, weights),
    }


def _matrix(output: Output, queries: Column, passages: Column) -> np.ndarray:
    from actors.search.kernels import score_matrix  # late: torch

    return score_matrix(output, queries, passages)


def _pairs(output: Output, queries: Column, passages: Column) -> np.ndarray:
    from actors.search.kernels import ROW_PAIRS  # late: torch

    if len(queries) != len(passages):
        raise ValueError(
            f"expected as many queries as passages, got {len(queries)} and {len(passages)}"
        )
    return ROW_PAIRS[output](queries, passages)
