"""Passages cut below what a reranker could read of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from actors.rerank.pair_tokens import PairTokens


def cut_passages(tokens: PairTokens, most: int) -> tuple[PairTokens, np.ndarray]:
    """Pairs whose passages have at most `most` tokens each, and which of them were cut for it.

    `truncated` stays what it was: it says of pairs that were too long for the reranker.
    """
    lengths = tokens.lengths
    passages = lengths - tokens.passage_starts - tokens.tail
    is_cut = passages > most
    if not is_cut.any():
        return tokens, is_cut
    at_T = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], lengths)
    first_T = np.repeat(tokens.passage_starts + most, lengths)
    after_T = np.repeat(lengths - tokens.tail, lengths)
    kept_T = (at_T < first_T) | (at_T >= after_T)
    kept_lengths = lengths - np.maximum(passages - most, 0)
    cut = dataclasses.replace(
        tokens,
        values=tokens.values[kept_T],
        types=tokens.types[kept_T],
        offsets=np.concatenate(([0], np.cumsum(kept_lengths, dtype=np.int64))),
    )
    return cut, is_cut
