"""Convert sparse vectors to readable tokens and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from actors.errors import ModelError
from actors.tokens.tokenizer_files import load_tokenizer
from actors.vectors import Column, SparseVectors


class TokenNames:
    """Names of token ids, from the tokenizer.json of a model folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)

    def texts(self, sparse: SparseVectors | Column) -> list[dict[str, float]]:
        """Return {decoded token: weight} per row, heaviest first, as `convert_id_to_token` does.

        Several ids may decode to the same token, for example a word with and without a leading
        space. The largest weight is kept. FlagEmbedding keeps that of the last one in the text, but
        a stored vector does not have the order of the text.
        """
        return self._named(sparse, lambda i: self._tokenizer.decode([i], skip_special_tokens=False))

    def pieces(self, sparse: SparseVectors | Column) -> list[dict[str, float]]:
        """Return {vocabulary entry: weight} per row, heaviest first; entries are unique."""
        return self._named(sparse, self._tokenizer.id_to_token)

    def of_ids(self, ids: Sequence[int]) -> list[str]:
        """Return each id decoded separately."""
        return [str(self._tokenizer.decode([i], skip_special_tokens=False)) for i in ids]

    def _named(
        self, sparse: SparseVectors | Column, name: Callable[[int], str | None]
    ) -> list[dict[str, float]]:
        vectors = SparseVectors.of(sparse)
        names = {}
        for token_id in np.unique(vectors.indices_W).tolist():
            if self._tokenizer.id_to_token(token_id) is None:  # decode would return ""
                raise ModelError(
                    f"expected ids of a vocabulary of {self._tokenizer.get_vocab_size()}, "
                    f"found token id {token_id}.",
                    "Use the model that computed these vectors.",
                )
            names[token_id] = str(name(token_id))
        order = np.lexsort((-vectors.values_W, vectors.rows_W))
        ids, values = vectors.indices_W[order].tolist(), vectors.values_W[order].tolist()
        rows: list[dict[str, float]] = []
        for start, stop in zip(vectors.offsets[:-1], vectors.offsets[1:], strict=True):
            row: dict[str, float] = {}
            for token_id, value in zip(ids[start:stop], values[start:stop], strict=True):
                row.setdefault(names[token_id], value)
            rows.append(row)
        return rows
