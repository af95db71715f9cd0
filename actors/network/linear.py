"""Linear layers that never train: weights laid out once, elementwise work fused.

On a CPU oneDNN multiplies by weights in a blocked layout of its own (for bfloat16: AMX tiles),
which `torch.nn.functional.linear` makes anew on every call, and applies GELU or adds a residual
while the result is still in cache. Both are what torch.compile's CPU backend emits; called directly
they need no compiler on the machine. oneDNN also writes code for every number of rows it meets,
which takes longer than to multiply them: numbers of rows are rounded up to some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional as F


class Linear(Protocol):
    """x W^T + b; x: [T, in], result: [T, out]."""

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """The plain product."""

    def gelu(self, x_TI: torch.Tensor) -> torch.Tensor:
        """GELU (exact, by erf) of the product."""

    def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
        """The product and a residual."""


def prepared(weight_OI: torch.Tensor, bias_O: torch.Tensor) -> Linear:
    """The fastest of this module for the weights' device and type; keeps no copy it does not need.

    `weight_OI`: [out, in], as torch.nn.Linear has it.
    """
    return (_Blocked if _is_blocked(weight_OI) else _Plain)(weight_OI, bias_O)


def steady_rows(rows: int, like: torch.Tensor) -> int:
    """The number of rows to lay out instead of so many, for linears on this device and type.

    At most a 32nd more, or what tiles of 16 rows take anyway. Linears pad by themselves, with a
    copy; who passes on what it gets from one to the next pads once.
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
    # AMX or not: oneDNN's bfloat16 needs AVX-512 or better.
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Plain:
    """Any device, any type."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TI, self._weight_OI, self._bias_O)

    def gelu(self, x_TI: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x_TI))

    def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
        return self(x_TI).add_(residual_TO)


class _Blocked:
    """oneDNN's own layout of the weights."""

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
    """The rows, and zeros behind them up to `steady_rows`."""
    rows = x_TI.shape[0]
    steady = steady_rows(rows, x_TI)
    return x_TI if steady == rows else F.pad(x_TI, (0, 0, 0, steady - rows))


def _cut(made_TO: torch.Tensor, rows: int) -> torch.Tensor:
    return made_TO if made_TO.shape[0] == rows else made_TO[:rows]


_ROWS = 1024
"""The layout is chosen for about so many tokens at a time; it is right for any number."""
_pointwise: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default
_binary: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.binary
