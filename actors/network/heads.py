"""Compute the three outputs from hidden states: pooling, sparse head, ColBERT head.

Formulas: BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2), as in FlagEmbedding.
Shape suffixes: T tokens, N passages, H hidden size, D output dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from actors.config import Output, Pooling
from actors.errors import ModelError
from actors.network.linear import prepared
from actors.network.packing import PackedBatch


@dataclass(frozen=True)
class Vectors:
    """The outputs of N passages; an output that was not requested is None."""

    dense_ND: torch.Tensor | None
    sparse_T: torch.Tensor | None
    """Weight of each token after ReLU, float32."""
    colbert_TD: torch.Tensor | None
    """Vector of each token except the first of each passage: T - N rows."""
    finite_N: torch.Tensor
    """Whether the outputs of a passage contain neither NaN nor Inf, bool."""

    def put(
        self, others: Vectors, at_N: torch.Tensor, at_T: torch.Tensor, at_C: torch.Tensor
    ) -> None:
        """Copy `others` to the given rows, tokens and ColBERT vectors of this object."""
        places = {"dense_ND": at_N, "sparse_T": at_T, "colbert_TD": at_C, "finite_N": at_N}
        for name, at in places.items():
            mine = getattr(self, name)
            if mine is not None:
                mine[at] = getattr(others, name)

    def to_pinned(self) -> Vectors:
        """Start an asynchronous copy to pinned memory on the host and return it."""

        def pinned(tensor: torch.Tensor) -> torch.Tensor:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return host.copy_(tensor, non_blocking=True)

        made = {name: pinned(tensor) for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **made)


def load_head(path: Path, hidden_size: int, *, out_features: int | None) -> torch.nn.Linear:
    """Load a `{weight, bias}` state dict as a Linear layer.

    Raises:
        ModelError: the file is not such a dict, or weight is not [out_features, hidden_size].
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = state["weight"], state["bias"]
        shapes = (list(weight.shape), list(bias.shape))
    except Exception as error:  # pickle, torch and zipfile raise different types
        raise ModelError(
            f"{path}: expected a state dict of weight and bias, found: {error!s:.120}."
        ) from error
    rows = out_features or (shapes[0] or [0])[0]
    expected = ([rows, hidden_size], [rows])
    if shapes != expected:
        raise ModelError(
            f"{path}: expected weight {expected[0]} and bias {expected[1]}, "
            f"found {shapes[0]} and {shapes[1]}.",
            "Use the head that was trained with this model.",
        )
    linear = torch.nn.Linear(hidden_size, rows)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear.requires_grad_(False)


_COLBERT_TOKENS = 4096


class OutputHeads:
    """Computes `Vectors` from the last hidden states of a packed micro-batch."""

    def __init__(
        self,
        linears: Mapping[Output, torch.nn.Linear],
        *,
        hidden_size: int,
        pooling: Pooling,
        normalize: bool,
        truncate_dim: int | None,
        vector_dtype: torch.dtype,
    ) -> None:
        self._linears = {
            output: prepared(linear.weight, linear.bias) for output, linear in linears.items()
        }
        self.dim = min(truncate_dim or hidden_size, hidden_size)
        """Dimension of dense vectors."""
        self.colbert_dim: int | None = None
        """Dimension of ColBERT vectors; None without a ColBERT head."""
        if "colbert" in linears:
            full = linears["colbert"].out_features
            self.colbert_dim = min(truncate_dim or full, full)
        self._pooling = pooling
        self._normalize = normalize
        self._truncate_dim = truncate_dim
        self._vector_dtype = vector_dtype

    def __call__(
        self, hidden_TH: torch.Tensor, packed: PackedBatch, outputs: Collection[Output]
    ) -> Vectors:
        """Compute the requested outputs without waiting for the device."""
        n = packed.cu_seqlens.shape[0] - 1
        finite_N = torch.ones(n, dtype=torch.bool, device=hidden_TH.device)
        dense_ND = sparse_T = colbert_TD = None
        if "dense" in outputs:
            dense_ND = self._finish(self._pool(hidden_TH, packed))
            finite_N &= dense_ND.isfinite().all(dim=1)
        if "sparse" in outputs:
            sparse_T = torch.relu(self._linears["sparse"](hidden_TH)).squeeze(-1).float()
            # ReLU keeps NaN. It turns -Inf into 0, which is the correct weight.
            finite_N &= _all_by_passage(sparse_T.isfinite(), packed.lengths_N)
        if "colbert" in outputs:
            others_N = packed.lengths_N - 1
            passage_T = _passage_of(others_N, len(hidden_TH) - n)
            # Skip one first token for each passage up to and including the token's own.
            at_T = torch.arange(len(passage_T), device=hidden_TH.device) + passage_T + 1
            colbert_TD, finite_T = self._colbert(hidden_TH.index_select(0, at_T))
            finite_N &= _all_by_passage(finite_T, others_N)
        return Vectors(dense_ND, sparse_T, colbert_TD, finite_N)

    def need_first_only(self, outputs: Collection[Output]) -> bool:
        """Return whether these outputs depend only on the first token of each passage."""
        return self._pooling == "cls" and set(outputs) == {"dense"}

    def of_first(self, first_NH: torch.Tensor) -> Vectors:
        """Compute the outputs from the states of first tokens; see `need_first_only`."""
        dense_ND = self._finish(first_NH)
        return Vectors(dense_ND, None, None, dense_ND.isfinite().all(dim=1))

    def zeros(
        self,
        passages: int,
        tokens: int,
        colbert_tokens: int,
        outputs: Collection[Output],
        device: torch.device,
    ) -> Vectors:
        """Return `Vectors` of zeros; `colbert_tokens`: tokens without the first of each passage."""

        def zeros(*shape: int, dtype: torch.dtype = self._vector_dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return Vectors(
            zeros(passages, self.dim) if "dense" in outputs else None,
            zeros(tokens, dtype=torch.float32) if "sparse" in outputs else None,
            zeros(colbert_tokens, self.colbert_dim or 0) if "colbert" in outputs else None,
            zeros(passages, dtype=torch.bool),
        )

    def _colbert(self, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors and which are finite, in blocks to bound the size of float32 copies."""
        linear = self._linears["colbert"]
        made_TD = hidden_TH.new_empty(
            (len(hidden_TH), self.colbert_dim or 0), dtype=self._vector_dtype
        )
        finite_T = torch.empty(len(hidden_TH), dtype=torch.bool, device=hidden_TH.device)
        for start in range(0, len(hidden_TH), _COLBERT_TOKENS):
            some = slice(start, start + _COLBERT_TOKENS)
            made_TD[some] = self._finish(linear(hidden_TH[some]))
            finite_T[some] = made_TD[some].isfinite().all(dim=1)
        return made_TD, finite_T

    def _pool(self, hidden_TH: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden_TH[packed.firsts_N]
        if self._pooling == "last_token":
            return hidden_TH[packed.cu_seqlens[1:].long() - 1]
        return torch.segment_reduce(  # unsafe: skip the check of lengths, which would wait
            hidden_TH.float(), "mean", lengths=packed.lengths_N, axis=0, unsafe=True
        )

    def _finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Truncate, normalise in float32 and cast, in this order."""
        if self._truncate_dim is not None:
            vectors = vectors[:, : self._truncate_dim]
        vectors = vectors.float()
        if self._normalize:
            vectors = F.normalize(vectors, dim=-1)
        return vectors.to(self._vector_dtype)


def _all_by_passage(ok_T: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    bad_N = torch.zeros(len(lengths_N), dtype=torch.int32, device=ok_T.device)
    return bad_N.index_add_(0, _passage_of(lengths_N, len(ok_T)), (~ok_T).int()) == 0


def _passage_of(lengths_N: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the passage of each token; `tokens`: sum of the lengths, to avoid a device wait."""
    passages_N = torch.arange(len(lengths_N), device=lengths_N.device)
    return torch.repeat_interleave(passages_N, lengths_N, output_size=tokens)
