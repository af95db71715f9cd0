"""Measures the cost of computing: a model's operations, the rate of matmuls, memory.

Needs only torch and the standard library, so that every system's process can import it.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Sizes that determine a model's operations: layers, hidden size H, intermediate size I."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, folder: Path) -> Transformer:
        """Read the sizes of the model in a folder from its config.json."""
        config = json.loads((folder / "config.json").read_text())
        names = ("num_hidden_layers", "hidden_size", "intermediate_size")
        layers, hidden, intermediate = (int(config[name]) for name in names)
        return cls(layers=layers, hidden=hidden, intermediate=intermediate)

    def flops(self, lengths: Iterable[int], outputs: Collection[str] = ("dense",)) -> int:
        """Return the floating-point operations for texts of `lengths` tokens; a multiply-add is 2.

        A text of L tokens costs, in each layer, L (8 H² + 4 H I) for the linears and 4 L² H for
        attention (scores and weighted values). The heads add 2 L H² for colbert and 2 L H for
        sparse. Not counted: embeddings, norms, softmax, GELU, padding.
        """
        H = self.hidden
        token = self.layers * (8 * H * H + 4 * H * self.intermediate)
        token += 2 * H * H * ("colbert" in outputs) + 2 * H * ("sparse" in outputs)
        square = self.layers * 4 * H
        return sum(token * length + square * length * length for length in lengths)

    def linears(self) -> tuple[tuple[int, int], ...]:
        """Return (in, out) features of a layer's linears; query, key and value are one linear."""
        H, I = self.hidden, self.intermediate  # noqa: E741  the papers' letters
        return (H, 3 * H), (H, H), (H, I), (I, H)


@torch.inference_mode()
def matmul_rate(
    model: Transformer, dtype: str, device: str = "cpu", *, tokens: int, seconds: float = 0.4
) -> float:
    """Measure operations per second of bare matmuls, an upper bound for a model on this machine.

    Runs the matmuls of one layer, with `tokens` rows each, into preallocated buffers for `seconds`;
    returns the median over turns.
    """
    work = [
        [torch.randn(shape, dtype=DTYPES[dtype], device=device) for shape in shapes]
        for rows, columns in model.linears()
        for shapes in [((tokens, rows), (rows, columns), (tokens, columns))]
    ]
    flops = sum(2 * tokens * rows * columns for rows, columns in model.linears())
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < 4 or time.perf_counter() < began + seconds:
        with timed(device) as turn:
            for left, right, product in work:
                torch.mm(left, right, out=product)
        took.append(turn.seconds)
    return flops / statistics.median(took[1:])  # the first turn prepares kernels


class Turn:
    """The result of `timed`."""

    seconds: float


@contextmanager
def timed(device: str = "cpu") -> Iterator[Turn]:
    """Measure wall-clock seconds, including pending work of the device."""
    turn = Turn()
    _wait(device)
    began = time.perf_counter()
    yield turn
    _wait(device)
    turn.seconds = time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_memory(device: str = "cpu") -> int:
    """Return the peak bytes of this process: resident, or allocated by torch on a CUDA device."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
