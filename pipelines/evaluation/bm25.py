"""BM25 over the passages of an index: the lexical baseline that vectors have to beat."""

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
"""Token ids of each text."""


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
    """The best `top` documents of each query; a document scores as its best passage.

    `doc_ids` and `texts`: of each passage, its document and what is indexed (the title before it,
    where the encoder sees one). `tokenize`: none for words as bm25s splits them, of two and more
    letters, in lower case, without stop words or stemming, so that no language is favoured; for
    languages without spaces, `encoder_tokens`.

    Lucene's variant as bm25s computes it (Lù, 2024; Kamphuis et al., ECIR 2020), k1 1.5 and b 0.75
    as there; Lucene's own k1 is 1.2. Documents without a word of the query are not found; equal
    scores are in the order of the documents.

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
    model = bm25s.BM25(k1=k1, b=b)  # of the NumPy backend: the same numbers wherever it runs
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
    """Token ids of whole texts by the tokenizer of a model's folder: no special tokens, no prompt.

    Raises:
        ModelError: no tokenizer there.
    """
    tokenizer = load_tokenizer(folder)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):  # encodings weigh some hundred bytes a token
            batch = list(texts[start : start + _TEXTS])
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids += [encoding.ids for encoding in encodings]
        return ids

    return tokenize
