"""Compute scores of queries and passages from their vectors: dense, sparse, ColBERT, combined.

    scores = dense_matrix(encoder.encode_queries(texts)["dense"], index_table["dense"])    # [Q, P]
    scores = pair_scores(query_table, passage_table)["colbert+sparse+dense"]               # [N]

`*_matrix` functions score every query with every passage; `*_pairs` functions score row i of the
queries with row i of the passages. Inputs are numpy vectors or Arrow columns of an encoder or an
index, also sliced or chunked. Scores are float32, for float16 and float32 vectors alike.

Formulas: BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2), as FlagEmbedding 1.4.2 computes
them in inference/embedder/encoder_only/m3.py. FlagEmbedding pads ColBERT vectors with zeros, which
can win a maximum; here nothing is padded. Needs no model; torch is loaded at the first score.

All functions raise TypeError for a column of another type and EncodeError for a null row.
Shapes: Q queries, P passages, N rows, D dimensions.
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
    """Return inner products [Q, P] of vectors [Q, D] and [P, D]; cosines if they are normalised.

    Raises:
        ModelError: queries and passages have different dimensions.
    """
    return _matrix("dense", queries, passages)


def dense_pairs(queries: np.ndarray | Column, passages: np.ndarray | Column) -> np.ndarray:
    """Return the inner products [N] of vectors [N, D] and [N, D], row by row.

    Raises:
        ModelError: queries and passages have different dimensions.
        ValueError: queries and passages have different numbers of rows.
    """
    return _pairs("dense", queries, passages)


def sparse_matrix(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Return lexical scores [Q, P]: sums of weight products over the token ids two rows share.

    The score is 0 if they share no token id.
    """
    return _matrix("sparse", queries, passages)


def sparse_pairs(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Return lexical scores [N], row by row.

    Raises:
        ValueError: queries and passages have different numbers of rows.
    """
    return _pairs("sparse", queries, passages)


def colbert_matrix(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """Return MaxSim [Q, P]: for each query token the largest inner product, averaged over tokens.

    A row without token vectors scores 0. An encoder makes no such row: even "" has an end token.

    Raises:
        ModelError: queries and passages have different dimensions.
    """
    return _matrix("colbert", queries, passages)


def colbert_pairs(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """Return MaxSim [N], row by row.

    Raises:
        ModelError: queries and passages have different dimensions.
        ValueError: queries and passages have different numbers of rows.
    """
    return _pairs("colbert", queries, passages)


def pair_scores(
    queries: pa.Table, passages: pa.Table, weights: Weights = (1.0, 1.0, 1.0)
) -> dict[str, np.ndarray]:
    """Return the five scores of FlagEmbedding's `compute_score`, float32 [N] each, row by row.

    The tables need the columns dense, sparse and colbert. The keys of the result are colbert,
    sparse, dense, sparse+dense and colbert+sparse+dense; the last two are weighted means.
    `weights`: the weights of dense, sparse and colbert, in this order.

    Raises:
        ModelError: a column is missing, or queries and passages have different dimensions.
        ValueError: queries and passages have different numbers of rows.
    """
    for side, table in (("queries", queries), ("passages", passages)):
        missing = [name for name in OUTPUTS if name not in table.column_names]
        if missing:
            raise ModelError(
                f"{side}: expected columns {', '.join(OUTPUTS)}, found no {', '.join(missing)}.",
                f"Encode with outputs={OUTPUTS}, or call the *_pairs functions of single outputs.",
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
