"""What an index shows of its content, as numbers and as charts: topics, token weights, alignments.

Shape suffixes: N passages, M different ones, K topics, Q tokens of a query, P tokens of a passage,
W stored weights, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.encoder import Encoder
from actors.errors import IndexStateError
from actors.scoring import colbert_pairs
from actors.token_names import TokenNames
from actors.tokens.tokenizer import encoder_input
from actors.vectors import Column, SparseVectors, TokenVectors
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_SAMPLED_PARTS = 64
_PLACES = pa.schema({"part": pa.string(), "first_row": pa.int64(), "n_rows": pa.int64()})
_FEWEST = 8  # different passages: fewer make no map
_NAME_TOKENS = 3
_PERPLEXITY = 30
_SEED = 0
_BLANKS = " ▁"  # the second is in tokens of tokenizers that say nothing of how to decode

_BAR = 0.62
_WIDE = 720
_MARKERS = ("o", "^", "s")
_COLUMNS, _ROWS = 44, 24  # of an alignment: labels are still read
_CELL = 15

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
    """At most `rows` live passages, in the order of the parts.

    They are spread evenly over all parts, or over 64 of them where there are more.
    """
    parts = [part for part in index.parts if part.live]
    parts = [parts[i] for i in _spread(len(parts), _SAMPLED_PARTS)]
    live = [np.concatenate([np.arange(*pair) for pair in part.live]) for part in parts]
    part_of = np.repeat(np.arange(len(parts)), [len(own) for own in live])
    chosen = _spread(len(part_of), rows)
    first = np.concatenate([np.zeros(0, np.int64), *live])[chosen]
    paths = [parts[i].path for i in part_of[chosen]]
    places = pa.table([paths, first, np.ones_like(first)], schema=_PLACES)
    return index.rows_of(places, columns).read_all().combine_chunks()


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
        means = [dense_ND[topic_N == topic].mean(axis=0) for topic in range(topics)]
        own_KN = np.arange(topics)[:, None] == topic_N
        middles_K = np.where(own_KN, means @ dense_ND.T, -np.inf).argmax(axis=1)
        middles = sample.take(pa.array(middles_K)).to_pylist()
        labels = [[str(row.get("title") or row["passage_id"])] for row in middles]
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
    """At most `most` tokens of a passage: those that count, with as many tokens around each as
    there is room for; ascending.
    """
    best = np.unique(alignment.best_Q)[:most]
    tokens = np.arange(len(alignment.passage_tokens))
    away = np.abs(tokens[:, None] - best).min(axis=1)
    widest = np.sum(np.cumsum(np.bincount(away)) <= most) - 1
    return np.flatnonzero(away <= widest)


def _spread(count: int, some: int) -> Ints:
    """Places of `some` of `count`, evenly spread; all where there are fewer."""
    return np.linspace(0, max(count - 1, 0), min(some, count)).round().astype(np.int64)


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


def topics_chart(topics: Topics, live: int) -> Chart:
    """Passages on a plane, coloured by topic; `live`: of so many in the index."""
    figure, axes = new_figure(_WIDE, 460)
    axes.axis("off")
    for topic, name in enumerate(topics.names):
        own_N2 = topics.xy_N2[topics.topic_N == topic]
        turn, colour = divmod(topic, len(SERIES))
        axes.plot(
            *own_N2.T, _MARKERS[turn % len(_MARKERS)], color=SERIES[colour], markersize=5.5,
            alpha=0.75, markeredgecolor=CARD, markeredgewidth=0.4,
            label=f"{_clipped(', '.join(name), 28)}  {len(own_N2):,}",
        )  # fmt: skip
        axes.annotate(
            _clipped(name[0], 22), _densest(own_N2), color=INK, fontsize=12, weight="bold",
            ha="center", va="center",
            bbox={"facecolor": CARD, "alpha": 0.8, "edgecolor": "none", "boxstyle": "round,pad=.2"},
        )  # fmt: skip
    legend(axes, beside=True)
    shown = len(topics.topic_N)
    return Chart(
        f"Topics of {shown:,} passages",
        figure,
        f"{'All' if shown == live else f'A sample of the {live:,}'} passages: groups by k-means of "
        "the dense vectors, places by t-SNE. Neighbours are close to each other; how far groups "
        "are apart, and how large they look, means little. Beside a name, its passages.",
    )


def tokens_chart(weights: Mapping[str, float], passage: str, most: int) -> Chart:
    """The sparse vector of a passage, {token: weight}, heaviest first."""
    shown = dict(islice(weights.items(), most))
    figure, axes = new_figure(height=44 + 19 * max(len(shown), 2))
    rows_of_bars(axes, [_shown(token) for token in shown])
    for row, weight in enumerate(shown.values()):
        axes.barh(row, weight, _BAR, color=SERIES[0])
        write_beside(axes, f"{weight:.2f}", weight, row, MUTED)
    axes.set_xlim(0, max([*shown.values(), 1e-9]) * 1.15)
    axes.set_xticks([])
    rest = f"the {len(shown)} heaviest of {len(weights):,}" if len(shown) < len(weights) else "all"
    return Chart(f"Sparse weights of {passage}", figure, f"Tokens and their weights: {rest}.")


def alignment_chart(alignment: Alignment, query: str, passage: str) -> Chart:
    """Similarity of the tokens of a query and of a passage; the cells that count are framed."""
    columns = columns_shown(alignment, _COLUMNS)
    rows = len(alignment.query_tokens[:_ROWS])
    shown_QP = alignment.similarity_QP[:rows, columns]
    low, high = float(shown_QP.min()), float(shown_QP.max())
    strength_QP = (shown_QP - low) / max(high - low, 1e-9)
    best_Q = np.searchsorted(columns, alignment.best_Q[:rows])
    width = 150 + _CELL * len(columns)
    figure, axes = new_figure(max(width, 360), 110 + _CELL * rows)
    rows_of_bars(axes, [_shown(token) for token in alignment.query_tokens[:rows]])
    axes.grid(visible=False)
    x, y = np.meshgrid(np.arange(len(columns)), np.arange(rows))
    _cells(axes, x.ravel(), y.ravel(), strength_QP.ravel())
    counts = best_Q < len(columns)
    _cells(axes, best_Q[counts], np.arange(rows)[counts])
    for gap in np.flatnonzero(np.diff(columns) > 1):
        axes.axvline(gap + 0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    for row in range(rows):
        best = alignment.similarity_QP[row].max()
        write_beside(axes, f"{best:.2f}", len(columns) - 0.5, row)
    tokens = [_shown(alignment.passage_tokens[i]) for i in columns]
    axes.set_xticks(range(len(columns)), tokens, rotation=90, fontsize=10.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    return Chart(
        f"ColBERT, {alignment.score:.4f}: “{query}” in {passage}",
        figure,
        f"Query tokens by passage tokens; the stronger, the more similar ({low:.2f} to {high:.2f})."
        " Framed: the passage's best token for each of the query. Their similarities stand at the "
        f"right, and their mean is the score.{_left_out(alignment, len(columns), rows)}",
    )


def _cells(axes: Axes, x: Ints, y: Ints, strength: Floats | None = None) -> None:
    """Squares around x, y, filled by strength from 0 to 1; only frames where none is given."""
    from matplotlib.collections import PolyCollection

    half = 0.5 if strength is None else 0.46
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    squares = PolyCollection(list(np.stack([x, y], axis=1)[:, None] + corners))
    if strength is None:
        squares.set(facecolor="none", edgecolor=INK, linewidth=1.3)
    else:
        fills = [(SERIES[0], 0.04 + 0.96 * float(value)) for value in strength]
        squares.set(facecolor=fills, edgecolor="none")
    axes.add_collection(squares)


def _left_out(alignment: Alignment, columns: int, rows: int) -> str:
    of_passage, of_query = len(alignment.passage_tokens), len(alignment.query_tokens)
    said = ""
    if rows < of_query:
        said += f" The first {rows} of {of_query} query tokens are shown."
    if columns < of_passage:
        said += f" Of {of_passage} passage tokens {columns} are shown; dashes stand for the others."
    return said


def _densest(xy_N2: Floats) -> tuple[float, float]:
    """The point that most others are near: a mean may lie outside its own group."""
    distances = np.linalg.norm(xy_N2[:, None] - xy_N2[None], axis=2)
    x, y = xy_N2[np.argmin(np.quantile(distances, 0.5, axis=1))]
    return float(x), float(y)


def _shown(token: str) -> str:
    return _clipped(token.strip(_BLANKS), 16) or "␣"


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
