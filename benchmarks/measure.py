"""What computing costs: a model's operations, what matmuls reach here, memory.

Knows torch and the standard library alone: every system's process can import it.
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
    """The sizes that operations follow from: layers, hidden size H, intermediate size I."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, folder: Path) -> Transformer:
        """Of the model in a folder, by its config.json."""
        config = json.loads((folder / "config.json").read_text())
        names = ("num_hidden_layers", "hidden_size", "intermediate_size")
        layers, hidden, intermediate = (int(config[name]) for name in names)
        return cls(layers=layers, hidden=hidden, intermediate=intermediate)

    def flops(self, lengths: Iterable[int], outputs: Collection[str] = ("dense",)) -> int:
        """Floating-point operations for texts of so many tokens, a multiplication and addition two.

        Of a text of L tokens, in each layer: the linears, L (8 H² + 4 H I), and attention over its
        own tokens alone, 4 L² H (scores and weighted values). Then the heads: 2 L H² for colbert,
        2 L H for sparse. Not counted: embeddings, norms, softmax, GELU, padding.
        """
        H = self.hidden
        token = self.layers * (8 * H * H + 4 * H * self.intermediate)
        token += 2 * H * H * ("colbert" in outputs) + 2 * H * ("sparse" in outputs)
        square = self.layers * 4 * H
        return sum(token * length + square * length * length for length in lengths)

    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) features of a layer's linears; query, key and value as one."""
        H, I = self.hidden, self.intermediate  # noqa: E741  the papers' letters
        return (H, 3 * H), (H, H), (H, I), (I, H)


@torch.inference_mode()
def matmul_rate(
    model: Transformer, dtype: str, device: str = "cpu", *, tokens: int, seconds: float = 0.4
) -> float:
    """Floating-point operations a second of bare matmuls: what a model here cannot be faster than.

    Those of one layer, `tokens` rows each, one after the other into buffers that are there, for so
    long; of all turns the median.
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
    """Of `timed`."""

    seconds: float


@contextmanager
def timed(device: str = "cpu") -> Iterator[Turn]:
    """Wall-clock seconds, until the device has done what it was given."""
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
    """Most bytes this process has had: resident, or allocated by torch on a CUDA device."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
