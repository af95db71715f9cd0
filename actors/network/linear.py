"""Linear layers for inference, with weights in the layout of the kernel and fused operations.

On a CPU, oneDNN multiplies weights in a blocked layout (AMX tiles for bfloat16).
`torch.nn.functional.linear` converts the weights to it on every call; here they are converted once,
and GELU or a residual is applied while the result is in cache. torch.compile's CPU backend emits
the same operations, but needs a compiler on the machine. oneDNN also generates code for each number
of rows, which takes longer than the product, so numbers of rows are rounded up to a few values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional as F


class Linear(Protocol):
    """A layer y = x W^T + b, with x [T, in] and y [T, out]."""

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y."""

    def gelu(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return the exact (erf) GELU of y."""

    def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
        """Return y + residual."""


def prepared(weight_OI: torch.Tensor, bias_O: torch.Tensor) -> Linear:
    """Return the fastest layer for the device and type of the weights [out, in] and bias [out]."""
    return (_Blocked if _is_blocked(weight_OI) else _Plain)(weight_OI, bias_O)


def steady_rows(rows: int, like: torch.Tensor) -> int:
    """Return `rows` rounded up to a number that linears with weights as `like` compute directly.

    Adds at most 1/32, or up to a multiple of 16 for bfloat16. Linears pad other inputs themselves,
    which costs a copy; a caller that pads once avoids it in every layer.
    """
    if not _is_blocked(like):
        return rows
    tile = 16 if like.dtype == torch.bfloat16 else 1
    step = max(tile, (1 << rows.bit_length()) >> 6)
    return -(-rows // step) * step


def _is_blocked(weight: torch.Tensor) -> bool:
    known = weight.dtype in (torch.float32, torch.bfloat16)
    return weight.device.type == "cpu" and known and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    # oneDNN needs AVX-512 or later for bfloat16, with or without AMX.
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Plain:
    """A linear layer for any device and type."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TI, self._weight_OI, self._bias_O)

    def gelu(self, x_TI: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x_TI))

    def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
        return self(x_TI).add_(residual_TO)


class _Blocked:
    """A linear layer with weights in oneDNN's blocked layout."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS)
        self._bias_O = bias_O

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        made = _pointwise(_steady(x_TI), self._weight, self._bias_O, "none", [], "")
        return _cut(made, x_TI.shape[0])

    def gelu(self, x_TI: torch.Tensor) -> torch.Tensor:
        made = _pointwise(_steady(x_TI), self._weight, self._bias_O, "gelu", [], "none")
        return _cut(made, x_TI.shape[0])

    def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
        x, residual = _steady(x_TI), _steady(residual_TO)
        made = _binary(x, residual, self._weight, self._bias_O, "add")
        return _cut(made, x_TI.shape[0])


def _steady(x_TI: torch.Tensor) -> torch.Tensor:
    """Pad with zero rows up to `steady_rows`."""
    rows = x_TI.shape[0]
    steady = steady_rows(rows, x_TI)
    return x_TI if steady == rows else F.pad(x_TI, (0, 0, 0, steady - rows))


def _cut(made_TO: torch.Tensor, rows: int) -> torch.Tensor:
    return made_TO if made_TO.shape[0] == rows else made_TO[:rows]


_ROWS = 1024
"""Number of tokens for which oneDNN chooses the layout; other numbers also work."""
_pointwise: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default
_binary: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.binary
