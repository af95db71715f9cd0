"""Select the exact best rows of each query from scores that arrive one block of rows at a time.

    best = TopRows(queries=1000, k=100)
    best.add(scores_QB, first_row=0)
    best.add(scores_QB, first_row=4096)
    scores_QK, rows_QK = best.sorted()

The order is total: by score, then the lower row first. A score and its row are packed into one
int64, so that partitioning integers keeps them together. Shape suffixes: Q queries, B rows of a
block, K best rows.
"""

from __future__ import annotations

import numpy as np
import torch

_NOTHING = np.iinfo(np.int64).min
_PENDING = 2  # times Q * K: the number of candidates collected before the worst are dropped
_GROUP = 8  # booleans tested as one integer


class TopRows:
    """The K best rows of each of Q queries."""

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._best_QK = np.full((queries, k), _NOTHING)
        self._least_Q = np.full(queries, -np.inf, dtype=np.float32)
        self._is_full = False
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending_n = 0

    def add(self, scores: torch.Tensor, first_row: int, *, above: float = -np.inf) -> None:
        """Add float32 scores [Q, B] of rows [first_row, first_row + B); rows are below 2**32.

        `above`: ignore scores that are not greater, such as 0 of rows without a shared token. If
        the scores are on a GPU, only the best of the block are copied from it.
        """
        if not scores.numel():
            return
        if scores.device.type != "cpu":
            self.add_from_device(scores, first_row, above=above)
            return
        scores_QB = scores.contiguous().numpy()
        n = scores_QB.shape[1]
        least_Q = np.maximum(self._least_Q, np.float32(above))
        if not self._is_full and n > self._k:
            # In the first block, only its own K best rows are candidates.
            own = np.partition(scores_QB, n - self._k, axis=1)[:, n - self._k]
            passes = scores_QB >= own[:, None]
            passes &= scores_QB > least_Q[:, None]
        else:
            passes = scores_QB > least_Q[:, None]
        at = _true_places(passes)
        query, row = np.divmod(at, n)
        self._keep(query, _keys(scores_QB.reshape(-1)[at], row + first_row))

    def add_from_device(self, scores: torch.Tensor, first_row: int, *, above: float) -> None:
        """Add scores as `add` does, selecting the block's best rows on the device of the scores."""
        bits = (scores + 0.0).view(torch.int32).long()
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        rows = torch.arange(scores.shape[1], device=scores.device) + first_row
        keys = ((bits << 32) | (0xFFFFFFFF - rows)).masked_fill(scores <= above, _NOTHING)
        best = torch.topk(keys, min(self._k, keys.shape[1]), dim=1).values.cpu().numpy()
        query, at = np.nonzero(best != _NOTHING)
        self._keep(query, best[query, at])

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 scores [Q, K], best first, and int64 rows [Q, K]; pad with -inf and -1."""
        self._compact()
        keys_QK = np.sort(self._best_QK, axis=1)[:, ::-1]
        return _scores(keys_QK), _rows(keys_QK)

    def _keep(self, query: np.ndarray, keys: np.ndarray) -> None:
        self._pending.append((query, keys))
        self._pending_n += len(keys)
        if not self._is_full or self._pending_n > _PENDING * self._best_QK.size:
            self._compact()

    def _compact(self) -> None:
        if not self._pending_n:
            self._pending.clear()
            return
        query = np.concatenate([q for q, _ in self._pending])
        keys = np.concatenate([k for _, k in self._pending])
        self._pending, self._pending_n = [], 0
        order = np.argsort(query, kind="stable")
        query, keys = query[order], keys[order]
        counts = np.bincount(query, minlength=len(self._best_QK))
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = int(counts.max())
        all_QW = np.full((len(counts), self._k + width), _NOTHING)
        all_QW[:, : self._k] = self._best_QK
        all_QW[query, self._k + place] = keys
        self._best_QK = np.partition(all_QW, width, axis=1)[:, width:]
        least = self._best_QK.min(axis=1)
        self._is_full = bool((least > _NOTHING).all())
        self._least_Q = np.where(least > _NOTHING, _scores(least), np.float32(-np.inf))


def _true_places(mask: np.ndarray) -> np.ndarray:
    """Compute `np.flatnonzero` of a mostly false mask, by testing eight values at a time first."""
    flat = mask.reshape(-1)
    whole = len(flat) // _GROUP * _GROUP
    groups = np.flatnonzero(flat[:whole].view(np.uint64) != 0)
    within = flat[:whole].reshape(-1, _GROUP)[groups]
    group, place = np.nonzero(within)
    rest = np.flatnonzero(flat[whole:]) + whole
    return np.concatenate([groups[group] * _GROUP + place, rest])


def _keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return integers whose order is that of (score, lower row)."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return np.asarray((bits << 32) | (0xFFFFFFFF - rows))


def _scores(keys: np.ndarray) -> np.ndarray:
    bits = keys >> 32
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32)
    return np.where(keys == _NOTHING, np.float32(-np.inf), bits.view(np.float32))


def _rows(keys: np.ndarray) -> np.ndarray:
    return np.where(keys == _NOTHING, -1, 0xFFFFFFFF - (keys & 0xFFFFFFFF))
