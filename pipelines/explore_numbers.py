"""What there is to see in an index: a sample of it, its topics, weights of tokens, alignments.

Shape suffixes: N passages, M different ones, K topics, Q tokens of a query, P tokens of a passage,
D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.encoder import Encoder
from actors.errors import IndexStateError
from actors.scoring import colbert_pairs
from actors.token_names import TokenNames
from actors.tokenizer import encoder_input
from actors.vectors import Column, SparseVectors, TokenVectors
from pipelines.chunking import Chunker
from pipelines.config_sections import ChunkConfig
from pipelines.evaluation.extras import extra
from pipelines.index import Index

_SAMPLED_PARTS = 64
_PLACES = pa.schema({"part": pa.string(), "first_row": pa.int64(), "n_rows": pa.int64()})
_FEWEST = 8  # different passages: fewer make no map
_NAME_TOKENS = 3
_PERPLEXITY = 30
_SEED = 0
_BLANKS = " ▁"  # the second is in tokens of tokenizers that say nothing of how to decode

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Topics:
    """Passages that are close to each other, and where they lie on a plane."""

    topic_N: Ints
    """Of each passage; topic 0 has the most."""
    names: Sequence[Sequence[str]]
    """[K] what each topic is about, the most typical first."""
    xy_N2: Floats
    """Neighbours are near each other; distances between groups mean little."""


@dataclass(frozen=True)
class Alignment:
    """How ColBERT scores a passage: each token of the query by the passage's most similar one."""

    query_tokens: Sequence[str]
    passage_tokens: Sequence[str]
    similarity_QP: Floats
    score: float
    """`actors.scoring.colbert_pairs`: the mean of the rows' maxima."""

    @property
    def best_Q(self) -> Ints:
        """The passage token that counts, for each token of the query."""
        return np.asarray(np.argmax(self.similarity_QP, axis=1))


def read_sample(index: Index, columns: Sequence[str], rows: int) -> pa.Table:
    """So many live passages at most, in the order of the parts.

    Spread evenly over all parts, or over 64 of them where there are more.
    """
    parts = [part for part in index.parts if part.live]
    if len(parts) > _SAMPLED_PARTS:
        parts = [parts[i] for i in _spread(len(parts), _SAMPLED_PARTS)]
    live = [sum(stop - first for first, stop in part.live) for part in parts]
    chosen = np.array(_spread(sum(live), rows), dtype=np.int64)
    ends = np.cumsum(live)
    places = [_PLACES.empty_table()]
    for part, count, end in zip(parts, live, ends, strict=True):
        own = chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        first = np.concatenate([np.arange(*pair) for pair in part.live])[own]
        of_part = [pa.array([part.path] * len(own)), pa.array(first), pa.array(first * 0 + 1)]
        places.append(pa.table(of_part, schema=_PLACES))
    return index.rows_of(pa.concat_tables(places), columns).read_all().combine_chunks()


def read_passage(index: Index, passage_id: str, columns: Sequence[str]) -> pa.Table:
    """One row: a live passage, by its id.

    Raises:
        IndexStateError: there is none.
    """
    doc_id = passage_id.rpartition("#")[0]
    names = dict.fromkeys(["passage_id", *columns])
    rows = index.rows_of(index.documents(pa.array([doc_id])), list(names)).read_all()
    rows = rows.filter(pc.equal(rows["passage_id"], passage_id))
    if not rows.num_rows:
        raise IndexStateError(
            f"{index.store.uri}: expected a passage {passage_id!r}, found none.",
            "A passage is named <doc_id>#<n>, n from 0.",
        )
    return rows.select(list(columns)).combine_chunks()


def find_topics(sample: pa.Table, topics: int, names: TokenNames | None) -> Topics | None:
    """Topics of a sample with `dense`; None of one with too few that differ.

    They are named by the tokens of `sparse` that weigh more in a topic than in the whole sample;
    without `names` by the title or the id of the passage in a topic's middle.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if not len(sample):
        return None
    dense_ND = np.stack(sample["dense"].to_numpy(zero_copy_only=False)).astype(np.float32)
    # Equal ones get one place: t-SNE crashes the process where there is nothing else.
    distinct_MD, of_N = np.unique(dense_ND, axis=0, return_inverse=True)
    if len(distinct_MD) < _FEWEST:
        return None
    topics = min(topics, len(distinct_MD) // 2)
    k_means = extra("sklearn.cluster", "notebooks").KMeans(topics, n_init=4, random_state=_SEED)
    found_N = k_means.fit_predict(dense_ND)
    order_K = np.argsort(-np.bincount(found_N, minlength=topics), kind="stable")
    topic_N = np.argsort(order_K)[found_N]
    if names is None:
        middles = _middles(dense_ND, topic_N, topics)
        labels = [[_title(row)] for row in sample.take(pa.array(middles)).to_pylist()]
    else:
        labels = _typical_tokens(SparseVectors.of(sample["sparse"]), topic_N, topics, names)
    t_sne = extra("sklearn.manifold", "notebooks").TSNE(
        init="pca", perplexity=min(_PERPLEXITY, (len(distinct_MD) - 1) / 3), random_state=_SEED,
        max_iter=500, angle=0.7,  # a third of the time of the defaults, and no worse to look at
    )  # fmt: skip
    places_M2 = np.asarray(t_sne.fit_transform(distinct_MD), dtype=np.float32)
    return Topics(topic_N, labels, places_M2[of_N])


def align(
    encoder: Encoder, chunk: ChunkConfig, names: TokenNames, query: str, passage: pa.Table
) -> Alignment:
    """A query, and a passage as it is stored: a row with `title`, `text` and `colbert`.

    Raises:
        IndexStateError: the passage's text has not the tokens that it has vectors of.
    """
    encoded = encoder.encode_queries([query])["colbert"]
    query_QD, passage_PD = _vectors(encoded), _vectors(passage["colbert"])
    row = passage.to_pylist()[0]
    head = Chunker(chunk, encoder.passage_tokenizer).titles([row["title"]])[0].text
    text = encoder_input(head, row["text"])
    found = encoder.passage_tokenizer.tokenize([text], len(passage_PD) + 1).values
    if len(found) != len(passage_PD) + 1:
        raise IndexStateError(
            f"passage: expected {len(passage_PD) + 1} tokens, found {len(found)}.",
            "It was cut or titled in another way than the index's configuration says.",
        )
    return Alignment(
        # The first token has no vector.
        names.of_ids(encoder.tokenize_queries([query]).values[1:].tolist()),
        names.of_ids(found[1:].tolist()),
        query_QD @ passage_PD.T,
        float(colbert_pairs(encoded, passage["colbert"])[0]),
    )


def columns_shown(alignment: Alignment, most: int) -> Ints:
    """So many tokens of a passage at most: those that count, with as many around as there is room
    for; ascending.
    """
    tokens = len(alignment.passage_tokens)
    best = np.unique(alignment.best_Q)[:most]
    shown = best
    for around in range(1, tokens):
        wider = np.unique(best[:, None] + np.arange(-around, around + 1))
        wider = wider[(wider >= 0) & (wider < tokens)]
        if len(wider) > most:
            break
        shown = wider
        if len(shown) == tokens:
            break
    return shown


def _spread(count: int, some: int) -> list[int]:
    """Places of `some` of so many, evenly spread; all where there are fewer."""
    places = np.linspace(0, max(count - 1, 0), min(some, count))
    return [int(place) for place in places.round()]


def _middles(dense_ND: Floats, topic_N: Ints, topics: int) -> list[int]:
    """[K] the passage that is most similar to the mean of its topic."""
    middles = []
    for topic in range(topics):
        own = np.flatnonzero(topic_N == topic)
        middles.append(int(own[np.argmax(dense_ND[own] @ dense_ND[own].mean(axis=0))]))
    return middles


def _title(row: dict[str, Any]) -> str:
    return str(row.get("title") or row["passage_id"])


def _typical_tokens(
    sparse: SparseVectors, topic_N: Ints, topics: int, names: TokenNames
) -> list[list[str]]:
    """[K] tokens whose mean weight in a topic is most above that in the sample; the fewer passages
    have one, the more that counts: words like "he" weigh more in lives than elsewhere, too.
    """
    ids, at_W = np.unique(sparse.indices_W, return_inverse=True)
    keys_W = topic_N[sparse.rows_W] * len(ids) + at_W
    sums = np.bincount(keys_W, sparse.values_W, topics * len(ids)).reshape(topics, len(ids))
    sizes_K = np.bincount(topic_N, minlength=topics)
    lift = sums / sizes_K[:, None] - sums.sum(axis=0) / len(topic_N)
    lift *= np.log(len(topic_N) / np.bincount(at_W, minlength=len(ids)))
    weights = [
        {int(ids[i]): float(row[i]) for i in np.argsort(-row)[: 8 * _NAME_TOKENS] if row[i] > 0}
        for row in lift
    ]
    found = []
    for texts in names.texts(weights):
        words = dict.fromkeys(text.strip(_BLANKS).lower() for text in texts if _is_word(text))
        found.append(list(words)[:_NAME_TOKENS] or ["?"])
    return found


def _is_word(text: str) -> bool:
    """Not a mark, and not the continuation of a word as WordPiece writes it."""
    return any(c.isalpha() for c in text) and not text.startswith("##")


def _vectors(column: Column) -> Floats:
    return TokenVectors.of(column).vectors_TD.astype(np.float32)
