"""Explain the scores of a hit by its tokens: shared sparse weights and the ColBERT alignment.

Shape suffixes: Q query tokens, P passage tokens, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.text_vectors import TextVectors, rows_of
from actors.tokens.tokenizer import TokenSpan
from pipelines.endpoint.texts import TextReader

Json = dict[str, Any]


def explain_query(reader: TextReader, query: str, vectors: TextVectors) -> Json:
    """Return `QueryExplained` of a query as JSON."""
    found: Json = {}
    if vectors.sparse is not None:
        ids, weights = vectors.sparse
        order = np.lexsort((ids, -weights))
        found["sparse"] = [
            {"token": reader.token(int(ids[i])), "weight": _short(weights[i])} for i in order
        ]
    if tokens := _query_tokens(reader, query, vectors):
        found["query_tokens"] = [_place(piece) for piece in tokens]
    return found


def explain_hits(
    reader: TextReader, query: str, vectors: TextVectors, passages: pa.Table
) -> list[Json]:
    """Return `HitExplained` as JSON for each passage.

    `passages`: rows of an index with `truncated` and vectors. Tokens are left out unless they match
    the stored ColBERT vectors exactly; they do not, for example, if the text is not stored.
    """
    own = _query_tokens(reader, query, vectors)
    stored = passages.select(
        [name for name in passages.column_names if name in ("text", "title", "truncated")]
    ).to_pylist()
    rows = rows_of(passages, [0] * len(stored), [passage["truncated"] for passage in stored])
    found = []
    for row, passage in zip(rows, stored, strict=True):
        said: Json = {}
        text = passage.get("text")
        if vectors.sparse is not None and row.sparse is not None:
            said["sparse"] = _shared(reader, vectors.sparse, row.sparse)
        if own and text is not None and row.colbert is not None:
            whole = reader.passage_pieces(text, passage.get("title"))
            pieces = _kept(whole, len(row.colbert), row.truncated)
            if pieces and vectors.colbert is not None:
                said |= _alignment(vectors.colbert, row.colbert, own, pieces)
        found.append(said)
    return found


def _shared(
    reader: TextReader,
    query: tuple[np.ndarray, np.ndarray],
    passage: tuple[np.ndarray, np.ndarray],
) -> list[Json]:
    ids, left, right = np.intersect1d(query[0], passage[0], True, return_indices=True)
    products = query[1][left] * passage[1][right]
    return [
        {
            "token": reader.token(int(ids[i])),
            "query": _short(query[1][left[i]]),
            "passage": _short(passage[1][right[i]]),
            "product": _short(products[i]),
        }
        for i in np.lexsort((ids, -products))
    ]


def _alignment(
    query_QD: np.ndarray,
    passage_PD: np.ndarray,
    own: Sequence[TokenSpan],
    pieces: Sequence[TokenSpan],
) -> Json:
    scores_QP = query_QD.astype(np.float32) @ passage_PD.astype(np.float32).T
    best_Q = scores_QP.argmax(axis=1)
    # The special token that ends a query matches something too, but that explains no word.
    of_text = [q for q, piece in enumerate(own) if piece.start is not None] or slice(None)
    most_P = scores_QP[of_text].max(axis=0)
    return {
        "passage_tokens": [
            _place(piece) | {"score": _short(score)}
            for piece, score in zip(pieces, most_P, strict=True)
        ],
        "alignment": [[int(p), _short(scores_QP[q, p])] for q, p in enumerate(best_Q)],
    }


def _query_tokens(reader: TextReader, query: str, vectors: TextVectors) -> list[TokenSpan] | None:
    if vectors.colbert is None:
        return None
    return _kept(reader.pieces("query", query), len(vectors.colbert), vectors.truncated)


def _kept(pieces: Sequence[TokenSpan], vectors: int, is_cut: bool) -> list[TokenSpan] | None:
    """Return the tokens that the ColBERT vectors of a text stand for: all tokens except the first.

    A truncated text keeps its first tokens and the special tokens at its end. Return None if the
    tokens cannot belong to this number of vectors.
    """
    n = vectors + 1
    if len(pieces) < n or (len(pieces) > n and not is_cut):
        return None
    end = next((i for i, piece in enumerate(reversed(pieces)) if not piece.special), 0)
    kept = [*pieces[: n - end], *pieces[len(pieces) - end :]] if len(pieces) > n else pieces
    return list(kept[1:])


def _short(number: np.floating[Any]) -> float:
    """Round to five decimals: an explanation contains thousands of numbers."""
    return round(float(number), 5)


def _place(piece: TokenSpan) -> Json:
    return {"text": piece.token, "start": piece.start, "stop": piece.stop}
