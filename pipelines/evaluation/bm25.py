"""Rank the passages of an index by BM25, the lexical baseline for vector search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actors.tokens.tokenizer_files import load_tokenizer
from pipelines.evaluation.dataset import Rankings
from pipelines.evaluation.measures import extra

K1 = 1.5
B = 0.75
_TEXTS = 256

Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""A function that returns the token ids of each text."""


def bm25_rankings(
    doc_ids: Sequence[str],
    texts: Sequence[str],
    queries: Mapping[str, str],
    top: int,
    *,
    tokenize: Tokenize | None = None,
    k1: float = K1,
    b: float = B,
) -> Rankings:
    """Return the best `top` documents of each query. A document has the score of its best passage.

    `doc_ids` and `texts`: the document and the text of each passage, with the title before the text
    if the encoder reads one. `tokenize`: None splits into lower-case words of at least two letters,
    as bm25s does, without stop words or stemming, so that no language is favoured. Use
    `encoder_tokens` for languages without spaces.

    Computes Lucene's variant of BM25 with bm25s (Lù, 2024; Kamphuis et al., ECIR 2020) and its
    defaults k1 = 1.5, b = 0.75; Lucene's own k1 is 1.2. Documents without a word of the query are
    not found. Documents with equal scores keep their order.

    Raises:
        ConfigError: bm25s is not installed.
    """
    bm25s = extra("bm25s")
    asked: Sequence[Sequence[str | int]]
    vocabulary: dict[str | int, int] = {}
    if tokenize is None:
        passages, vocabulary = bm25s.tokenize(list(texts), stopwords=[], show_progress=False)
        asked = bm25s.tokenize(
            list(queries.values()), stopwords=[], return_ids=False, show_progress=False
        )
    else:
        passages = [
            [vocabulary.setdefault(int(i), len(vocabulary)) for i in ids] for ids in tokenize(texts)
        ]
        asked = tokenize(list(queries.values()))
    if not vocabulary:
        return {query: {} for query in queries}
    model = bm25s.BM25(k1=k1, b=b)  # the NumPy backend: the same numbers on every machine
    model.index((passages, vocabulary), create_empty_token=False, show_progress=False)
    names, document = np.unique(np.array(doc_ids, dtype=object), return_inverse=True)
    first = np.full(len(names), len(document))
    np.minimum.at(first, document, np.arange(len(document)))
    found: Rankings = {}
    for query, tokens in zip(queries, asked, strict=True):
        known = [vocabulary[token] for token in tokens if token in vocabulary]
        best = np.zeros(len(names), np.float32)
        if known:
            np.maximum.at(best, document, model.get_scores_from_ids(known))
        hits = np.flatnonzero(best > 0)
        hits = hits[np.lexsort((first[hits], -best[hits]))][:top]
        found[query] = {names[hit]: float(best[hit]) for hit in hits}
    return found


def encoder_tokens(folder: Path) -> Tokenize:
    """Return a tokeniser of whole texts from a model's folder, without special tokens and prompt.

    Raises:
        ModelError: the folder has no tokenizer.
    """
    tokenizer = load_tokenizer(folder)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):  # an encoding takes hundreds of bytes per token
            batch = list(texts[start : start + _TEXTS])
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids += [encoding.ids for encoding in encodings]
        return ids

    return tokenize
