"""Computes and draws topics, token weights and ColBERT alignments of an index.

Shape suffixes: N passages, M distinct vectors, K topics, Q tokens of a query, P tokens of a
passage, W stored weights, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.encoder import Encoder
from actors.errors import IndexStateError
from actors.scoring import colbert_pairs
from actors.token_names import TokenNames
from actors.tokens.tokenizer import encoder_input
from actors.vectors import SparseVectors, TokenVectors, dense_vectors
from pipelines.config.sections import ChunkConfig
from pipelines.evaluation.measures import extra
from pipelines.index.reader import Index
from pipelines.passages.chunker import Chunker
from pipelines.reports.html import (
    CARD,
    INK,
    MUTED,
    SERIES,
    Chart,
    legend,
    new_figure,
    rows_of_bars,
    write_beside,
)
from pipelines.reports.run_numbers import spread

_SAMPLED_PARTS = 64
_FEWEST = 8  # distinct vectors below which no map is drawn
_NAME_TOKENS = 3
_PERPLEXITY = 30
_SEED = 0
_BLANKS = " ▁"  # tokenizers without a decoder keep the second one in their tokens

_MARKERS = ("o", "^", "s")
_COLUMNS, _ROWS = 44, 24  # most tokens of an alignment chart whose labels are readable
_CELL = 15

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Topics:
    """Topics of passages, and their positions on a plane."""

    topic_N: Ints
    """The topic of each passage; topic 0 has the most passages."""
    names: Sequence[Sequence[str]]
    """[K] typical words of each topic, the most typical first."""
    xy_N2: Floats
    """Positions; neighbours are close to each other, but distances between groups mean little."""


@dataclass(frozen=True)
class Alignment:
    """Similarities from which ColBERT scores a passage, for each pair of tokens."""

    query_tokens: Sequence[str]
    passage_tokens: Sequence[str]
    similarity_QP: Floats
    score: float
    """The mean of the rows' maxima, from `actors.scoring.colbert_pairs`."""

    @property
    def best_Q(self) -> Ints:
        """The most similar passage token for each token of the query."""
        return np.asarray(np.argmax(self.similarity_QP, axis=1))


def read_sample(index: Index, columns: Sequence[str], rows: int) -> pa.Table:
    """Read at most `rows` live passages, in the order of the parts.

    They are spread evenly over all parts, or over 64 parts of a larger index.
    """
    parts = [part for part in index.parts if part.live]
    parts = [parts[i] for i in spread(len(parts), _SAMPLED_PARTS)]
    live = [np.concatenate([np.arange(*pair) for pair in part.live]) for part in parts]
    part_of = np.repeat(np.arange(len(parts)), [len(own) for own in live])
    chosen = spread(len(part_of), rows)
    first = np.concatenate([np.zeros(0, np.int64), *live])[chosen]
    paths = pa.array([parts[i].path for i in part_of[chosen]], pa.string())
    places = pa.table({"part": paths, "first_row": first, "n_rows": np.ones_like(first)})
    return index.rows_of(places, columns).read_all().combine_chunks()


def read_passage(index: Index, passage_id: str, columns: Sequence[str]) -> pa.Table:
    """Read the row of a live passage by its id.

    Raises:
        IndexStateError: there is no such passage.
    """
    doc_id = passage_id.rpartition("#")[0]
    names = dict.fromkeys(["passage_id", *columns])
    rows = index.rows_of(index.documents(pa.array([doc_id])), list(names)).read_all()
    rows = rows.filter(pc.equal(rows["passage_id"], passage_id))
    if not rows.num_rows:
        raise IndexStateError(
            f"{index.store.uri}: expected a passage {passage_id!r}, found none.",
            "The id of a passage is <doc_id>#<n>, with n from 0.",
        )
    return rows.select(list(columns)).combine_chunks()


def find_topics(sample: pa.Table, topics: int, names: TokenNames | None) -> Topics | None:
    """Find topics in a sample with `dense`; None if it has too few distinct vectors.

    A topic is named by the tokens of `sparse` that weigh more in it than in the whole sample, or,
    without `names`, by the title or id of its central passage.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    dense_ND = dense_vectors(sample["dense"]).astype(np.float32)
    # Equal vectors share a position: t-SNE crashes the process if all vectors are equal.
    distinct_MD, of_N = np.unique(dense_ND, axis=0, return_inverse=True)
    if len(distinct_MD) < _FEWEST:
        return None
    topics = min(topics, len(distinct_MD) // 2)
    k_means = extra("sklearn.cluster", "notebooks").KMeans(topics, n_init=4, random_state=_SEED)
    found_N = k_means.fit_predict(dense_ND)
    order_K = np.argsort(-np.bincount(found_N, minlength=topics), kind="stable")
    topic_N = np.argsort(order_K)[found_N]
    if names is None:
        middles_K = k_means.transform(dense_ND).argmin(axis=0)[order_K]
        middles = sample.take(pa.array(middles_K)).to_pylist()
        labels = [[str(row.get("title") or row["passage_id"])] for row in middles]
    else:
        labels = _typical_tokens(SparseVectors.of(sample["sparse"]), topic_N, topics, names)
    t_sne = extra("sklearn.manifold", "notebooks").TSNE(
        init="pca", perplexity=min(_PERPLEXITY, (len(distinct_MD) - 1) / 3), random_state=_SEED,
        max_iter=500, angle=0.7,  # a third of the time of the defaults, and equally readable
    )  # fmt: skip
    places_M2 = np.asarray(t_sne.fit_transform(distinct_MD), dtype=np.float32)
    return Topics(topic_N, labels, places_M2[of_N])


def align(
    encoder: Encoder, chunk: ChunkConfig, names: TokenNames, query: str, passage: pa.Table
) -> Alignment:
    """Align a query with a stored passage, a row with `title`, `text` and `colbert`.

    Raises:
        IndexStateError: the tokens of the passage's text do not match its vectors.
    """
    encoded = encoder.encode_queries([query])["colbert"]
    query_QD, passage_PD = (
        TokenVectors.of(column).vectors_TD.astype(np.float32)
        for column in (encoded, passage["colbert"])
    )
    row = passage.to_pylist()[0]
    head = Chunker(chunk, encoder.passage_tokenizer).titles([row["title"]])[0].text
    text = encoder_input(head, row["text"])
    found = encoder.passage_tokenizer.tokenize([text], len(passage_PD) + 1).values
    if len(found) != len(passage_PD) + 1:
        raise IndexStateError(
            f"passage: expected {len(passage_PD) + 1} tokens, found {len(found)}.",
            "The passage was not cut or titled as the index's configuration says.",
        )
    return Alignment(
        # ColBERT has no vector for the first token.
        names.of_ids(encoder.tokenize_queries([query]).values[1:].tolist()),
        names.of_ids(found[1:].tolist()),
        query_QD @ passage_PD.T,
        float(colbert_pairs(encoded, passage["colbert"])[0]),
    )


def columns_shown(alignment: Alignment, most: int) -> Ints:
    """Return at most `most` token positions of a passage, ascending: the best tokens, and as many
    tokens around each of them as fit.
    """
    best = np.unique(alignment.best_Q)[:most]
    tokens = np.arange(len(alignment.passage_tokens))
    away = np.abs(tokens[:, None] - best).min(axis=1)
    widest = np.sum(np.cumsum(np.bincount(away)) <= most) - 1
    return np.flatnonzero(away <= widest)


def _typical_tokens(
    sparse: SparseVectors, topic_N: Ints, topics: int, names: TokenNames
) -> list[list[str]]:
    """Return the [K] typical tokens of topics: mean weight in the topic minus that in the sample,
    times an inverse document frequency, as common words like "he" vary between topics too.
    """
    ids, at_W = np.unique(sparse.indices_W, return_inverse=True)
    keys_W = topic_N[sparse.rows_W] * len(ids) + at_W
    sums = np.bincount(keys_W, sparse.values_W, topics * len(ids)).reshape(topics, len(ids))
    sizes_K = np.bincount(topic_N, minlength=topics)
    lift = sums / sizes_K[:, None] - sums.sum(axis=0) / len(topic_N)
    lift *= np.log(len(topic_N) / np.bincount(at_W, minlength=len(ids)))
    found = []
    for row in lift:
        heaviest = [int(ids[i]) for i in np.argsort(-row)[: 8 * _NAME_TOKENS] if row[i] > 0]
        words = dict.fromkeys(
            text.strip(_BLANKS).lower()
            for text in names.of_ids(heaviest)
            # Skip punctuation, and WordPiece continuations of words.
            if any(c.isalpha() for c in text) and not text.startswith("##")
        )
        found.append(list(words)[:_NAME_TOKENS] or ["?"])
    return found


def topics_chart(topics: Topics, live: int) -> Chart:
    """Draw passages on a plane, coloured by topic; `live`: number of passages in the index."""
    figure, axes = new_figure(720, 460)
    axes.axis("off")
    for topic, name in enumerate(topics.names):
        own_N2 = topics.xy_N2[topics.topic_N == topic]
        turn, colour = divmod(topic, len(SERIES))
        axes.plot(
            *own_N2.T, _MARKERS[turn % len(_MARKERS)], color=SERIES[colour], markersize=5.5,
            alpha=0.75, markeredgecolor=CARD, markeredgewidth=0.4,
            label=f"{_clipped(', '.join(name), 28)}  {len(own_N2):,}",
        )  # fmt: skip
        x, y = np.median(own_N2, axis=0)
        axes.annotate(
            _clipped(name[0], 22), (x, y), color=INK, fontsize=12, weight="bold",
            ha="center", va="center",
            bbox={"facecolor": CARD, "alpha": 0.8, "edgecolor": "none", "boxstyle": "round,pad=.2"},
        )  # fmt: skip
    legend(axes, beside=True)
    shown = len(topics.topic_N)
    return Chart(
        f"Topics of {shown:,} passages",
        figure,
        f"{'All' if shown == live else f'A sample of the {live:,}'} passages: groups by k-means of "
        "the dense vectors, positions by t-SNE. Neighbours are close to each other; distances "
        "between groups and their sizes mean little. The number of passages follows each name.",
    )


def tokens_chart(weights: Mapping[str, float], passage: str, most: int) -> Chart:
    """Draw the sparse vector of a passage: {token: weight}, the largest weight first."""
    shown = dict(islice(weights.items(), most))
    figure, axes = new_figure(height=44 + 19 * max(len(shown), 2))
    rows_of_bars(axes, [_shown(token) for token in shown])
    for row, weight in enumerate(shown.values()):
        axes.barh(row, weight, 0.62, color=SERIES[0])
        write_beside(axes, f"{weight:.2f}", weight, row, MUTED)
    axes.set_xlim(0, max([*shown.values(), 1e-9]) * 1.15)
    axes.set_xticks([])
    rest = f"the {len(shown)} heaviest of {len(weights):,}" if len(shown) < len(weights) else "all"
    return Chart(f"Sparse weights of {passage}", figure, f"Tokens and their weights: {rest}.")


def alignment_chart(alignment: Alignment, query: str, passage: str) -> Chart:
    """Draw the similarities of query and passage tokens; the largest of each row is framed."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    tokens, similarity_QP = alignment.query_tokens[:_ROWS], alignment.similarity_QP[:_ROWS]
    shown = replace(alignment, query_tokens=tokens, similarity_QP=similarity_QP)
    columns = columns_shown(shown, _COLUMNS)
    similarity_QP = similarity_QP[:, columns]
    (height, width), best_Q = similarity_QP.shape, np.searchsorted(columns, shown.best_Q)
    figure, axes = new_figure(max(150 + _CELL * width, 360), 110 + _CELL * height)
    rows_of_bars(axes, [_shown(token) for token in tokens])
    axes.grid(visible=False)
    colours = LinearSegmentedColormap.from_list("", [to_rgba(SERIES[0], 0.04), SERIES[0]])
    corners = [np.arange(size + 1) - 0.5 for size in (width, height)]
    axes.pcolormesh(*corners, similarity_QP, cmap=colours)
    axes.bar(best_Q, 0.92, 0.92, np.arange(height) - 0.46, fill=False, edgecolor=INK, linewidth=1.3)
    for row, best in enumerate(similarity_QP.max(axis=1)):
        write_beside(axes, f"{best:.2f}", width - 0.5, row)
    for gap in np.flatnonzero(np.diff(columns) > 1):
        axes.axvline(gap + 0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    labels = [_shown(alignment.passage_tokens[i]) for i in columns]
    axes.set_xticks(range(width), labels, rotation=90, fontsize=10.5)
    axes.set_xlim(-0.5, width - 0.5)
    left_out = (
        f" Shown: {height} of {len(alignment.query_tokens)} query tokens, {width} of "
        f"{len(alignment.passage_tokens)} passage tokens; dashes stand for the others."
        if similarity_QP.size < alignment.similarity_QP.size
        else ""
    )
    return Chart(
        f"ColBERT, {alignment.score:.4f}: “{query}” in {passage}",
        figure,
        "Query tokens by passage tokens; a stronger colour means a larger similarity "
        f"({similarity_QP.min():.2f} to {similarity_QP.max():.2f}). Frames mark the most similar "
        "passage token of each query token. The numbers on the right are these similarities; the "
        f"score is their mean.{left_out}",
    )


def _shown(token: str) -> str:
    return _clipped(token.strip(_BLANKS), 16) or "␣"


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
