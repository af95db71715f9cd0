"""Score Arrow columns of tokenised pairs with a reranker, as an `Encoder` encodes passages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from actors.config import RerankerConfig
from actors.encoded import SCORE, EncodedBatch, Identity
from actors.fingerprint import fingerprint, score_parts
from actors.models.reranker_files import resolve_reranker
from actors.network.batch_runner import device_errors
from actors.network.micro_batches import micro_batches
from actors.reranker import Reranker, load_reranker
from actors.tokens.pair_tokens import PairTokens
from actors.vectors import fixed_size_lists

_WINDOW_BATCHES = 8  # rows of similar length are chosen from these (batch_runner.py)


class PairScorer:
    """A `TokenEncoder` that computes a column of scores."""

    def __init__(self, reranker: Reranker, space_fingerprint: str) -> None:
        self._reranker = reranker
        own = reranker.info
        self.info = Identity(
            name=own.name,
            dim=len(own.cutoff_layers or (0,)),
            max_length=own.max_length,
            dtype=own.dtype,
            device=own.device,
            space_fingerprint=space_fingerprint,
        )

    def stream(self, tokens: pa.StructArray | pa.ChunkedArray, /) -> Iterator[EncodedBatch]:
        """Score a column of PAIR_TOKENS_TYPE; a pair that fails does not affect the others.

        Raises:
            DeviceError: the device failed permanently.
        """
        pairs = PairTokens.from_arrow(tokens, self._reranker.pair_shape)
        window = _WINDOW_BATCHES * self._reranker.max_batch_tokens
        for start, stop in micro_batches(pairs.offsets, window):
            with device_errors(self.info.device, "scores"):
                scores_NL, failures = self._reranker.score_tokens(pairs.part(start, stop))
            moved = {start + row: reason for row, reason in failures.items()}
            yield EncodedBatch(start, stop, _columns(scores_NL), moved)

    def empty(self) -> pa.Table:
        """Return the output column with no rows."""
        return _columns(np.zeros((0, self.info.dim), np.float32))


def _columns(scores_NL: np.ndarray) -> pa.Table:
    one = scores_NL.shape[1] == 1
    return pa.table({SCORE: pa.array(scores_NL[:, 0]) if one else fixed_size_lists(scores_NL)})


def load_pair_scorer(config: RerankerConfig) -> PairScorer:
    """Load a reranker onto its device; raise as `load_reranker`."""
    parts = score_parts(config, resolve_reranker(config))
    return PairScorer(load_reranker(config), fingerprint(parts))
