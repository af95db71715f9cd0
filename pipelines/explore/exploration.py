"""Explores an index in a notebook: its content, neighbours, topics and tokens.

    seen = explore("out/quickstart")
    seen.topics()

Reads a committed index and writes nothing into it. A search keeps a copy of the vectors on this
machine, as search_index does.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import pyarrow as pa

from actors.config import ModelConfig, Output
from actors.encoder import Encoder, load_encoder
from actors.errors import IndexStateError
from actors.models.location import locate
from actors.token_names import TokenNames
from pipelines.config.sections import Mode
from pipelines.explore.charts import (
    align,
    alignment_chart,
    find_topics,
    read_passage,
    read_sample,
    tokens_chart,
    topics_chart,
)
from pipelines.index.reader import Index, open_index
from pipelines.reports.html import Chart, Facts, Note, Section, Table
from pipelines.search.answers import Hit, excerpt, find
from pipelines.search.opening import open_searcher
from pipelines.search.searcher import outputs_for
from pipelines.search.space import IndexSpace, check_same_space, read_space
from pipelines.terminal.text import moment

_SHOWN = 8
_EXCERPT = 180
_TITLE = 40


def explore(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    generation: int | None = None,
    sample: int = 2_000,
) -> Exploration:
    """Open the live generation, or the given one; topics are computed from `sample` passages.

    Raises:
        IndexStateError: nothing is committed, or the generation does not exist.
    """
    return Exploration(open_index(uri, storage_options, generation=generation), sample)


class Exploration:
    """One generation of an index, opened by `explore`.

    Methods return blocks that a notebook displays, or a Note if the index lacks the data.
    """

    def __init__(self, index: Index, sample: int) -> None:
        self.index = index
        self._sample = sample

    def facts(self) -> Section:
        """Return the numbers of the index, its model and its columns."""
        info, counts = self.index.info, self.index.info.counts
        sizes = {"dense": info.model.dim, "colbert": info.model.colbert_dim}
        vectors = [f"{name} ({sizes[name]})" if name in sizes else name for name in self._outputs]
        numbers = [
            ("documents", f"{counts.live_documents:,}"),
            ("passages", f"{self.index.passages:,}"),
            ("generation", f"{info.generation}"),
            ("rejects", f"{sum(counts.rejects.values()):,}"),
        ]
        made = [
            ["index", self.index.store.uri],
            ["committed", moment(info.ended)],
            ["model", info.model.name],
            ["vectors", f"{', '.join(vectors)}; {info.vector_dtype}"],
            ["columns", ", ".join(self.index.schema.names)],
        ]
        return Section("", blocks=[Facts(numbers), Table(["", ""], made)])

    def passages(self) -> Table:
        """Return a table of some passages, evenly spread over the index."""
        rows = read_sample(self.index, self._columns("n_tokens"), _SHOWN).to_pylist()
        cells = [[row["passage_id"], *_words(row), row["n_tokens"]] for row in rows]
        return Table(["passage", "title", "text", "tokens"], cells)

    @cached_property
    def example(self) -> str:
        """The id of a passage in the middle of the index.

        Raises:
            IndexStateError: the index is empty.
        """
        ids = read_sample(self.index, ["passage_id"], 3)["passage_id"].to_pylist()
        if not ids:
            raise IndexStateError(f"{self.index.store.uri}: expected passages, found none.")
        return str(ids[len(ids) // 2])

    def neighbours(self, passage_id: str, top: int = 10, *, mode: Mode | None = None) -> Section:
        """Find the passages most similar to one by its stored vectors; default: the first output.

        Raises:
            IndexStateError: the index lacks the passage, or the vectors of `mode`.
            ConfigError: the vectors do not fit into memory.
        """
        mode = mode or cast("Mode", self._outputs[0])
        outputs = outputs_for([mode], self._outputs, self._space.run.search)
        own = read_passage(self.index, passage_id, self._columns(*outputs))
        parts = outputs if len(outputs) > 1 else ()
        cells = []
        for hit in self._find(own.select(list(outputs)), mode, top + 1):
            scores = [f"{score:.4f}" for score in (hit.score, *(hit.scores[o] for o in parts))]
            if hit.passage["passage_id"] != passage_id:
                cells.append([*scores, hit.passage["passage_id"], *_words(hit.passage)])
        title, text = _words(own.select(self._columns()).to_pylist()[0])
        return Section(
            "",
            f"Most similar to {passage_id}{f', {title}' if title else ''}: {text}",
            [Table([mode, *parts, "passage", "title", "text"], cells[:top])],
        )

    def topics(self, count: int = 12) -> Chart | Note:
        """Draw passages as points on a plane, coloured by topic."""
        if "dense" not in self._outputs:
            return self._lacks("dense", "topics cannot be drawn")
        outputs = [name for name in ("dense", "sparse") if name in self._outputs]
        sample = read_sample(self.index, self._columns(*outputs), self._sample)
        topics = find_topics(sample, count, self._names if "sparse" in outputs else None)
        if topics is None:
            return Note(f"Too few distinct vectors for topics in a sample of {len(sample):,}.")
        return topics_chart(topics, self.index.passages)

    def sparse_tokens(self, passage_id: str, most: int = 16) -> Chart | Note:
        """Draw the tokens of a passage with the largest sparse weights.

        Raises:
            IndexStateError: there is no such passage.
        """
        if "sparse" not in self._outputs:
            return self._lacks("sparse", "token weights cannot be drawn")
        row = read_passage(self.index, passage_id, self._columns("sparse"))
        weights = self._names.texts(row["sparse"])[0]
        return tokens_chart(weights, self._called(row), most)

    def alignment(self, query: str, passage_id: str | None = None) -> Chart | Note:
        """Draw how ColBERT compares a query with a passage, by default with the best one.

        Raises:
            IndexStateError: there is no such passage, or the model's space fingerprint has changed.
            ModelError: the model is not found.
        """
        if "colbert" not in self._outputs:
            return self._lacks("colbert", "tokens cannot be compared")
        if "text" not in self.index.schema.names:
            return Note("The index stores no text: tokens of its ColBERT vectors are unknown.")
        if passage_id is None:
            queries = self._encoder.encode_queries([query])
            passage_id = self._find(queries, "colbert", 1)[0].passage["passage_id"]
        row = read_passage(self.index, passage_id, self._columns("colbert"))
        aligned = align(self._encoder, self._space.run.chunk, self._names, query, row)
        return alignment_chart(aligned, query, self._called(row))

    @property
    def _outputs(self) -> Sequence[str]:
        return self.index.info.outputs

    @cached_property
    def _space(self) -> IndexSpace:
        store = self.index.store
        return read_space(store.uri, store.options, self.index.info.generation)

    @cached_property
    def _names(self) -> TokenNames:
        model = self._space.run.model
        return TokenNames(locate(model.name, model.revision))

    @cached_property
    def _encoder(self) -> Encoder:
        model: ModelConfig = dataclasses.replace(self._space.run.model, outputs=("colbert",))
        with warnings.catch_warnings():
            # A warning about progress bar widgets, which are not used here.
            warnings.filterwarnings("ignore", "IProgress not found")
            encoder = load_encoder(model)
        check_same_space(self._space, model, encoder.info.dtype)
        return encoder

    def _find(self, queries: pa.Table, mode: Mode, top: int) -> list[Hit]:
        run = self._space.run
        outputs: tuple[Output, ...] = outputs_for([mode], self._outputs, run.search)
        with open_searcher(self.index, outputs, run.search, run.ray) as searcher:
            return find(searcher, queries, mode, top, columns=self._columns())[0]

    def _columns(self, *more: str) -> list[str]:
        """Return the stored columns of id, title and text, and `more`."""
        names = ("passage_id", "title", "text")
        return [*(name for name in names if name in self.index.schema.names), *more]

    def _called(self, row: pa.Table) -> str:
        named = row.select(self._columns()).to_pylist()[0]
        return str(_words(named)[0] or named["passage_id"])

    def _lacks(self, output: str, so: str) -> Note:
        has = ", ".join(self._outputs)
        return Note(f"The index has no {output} vectors: {so}. It has {has}.")


def _words(passage: Mapping[str, Any]) -> tuple[str, str]:
    """Return a short title and text, each "" if it is missing."""
    text = " ".join((passage.get("text") or "").split())
    return excerpt(passage.get("title") or "", "", _TITLE), excerpt(text, "", _EXCERPT)
