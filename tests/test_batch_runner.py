"""What a device's batches run on: threads that compute alone, memory that is used again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from actors.network import batch_runner
from actors.network.batch_runner import SingleThreads, keep_freed_blocks


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [2, 3])
def test_run_gives_each_piece_one_thread_that_computes_alone(threads: int) -> None:
    torch.set_num_threads(threads)
    together = threading.Barrier(threads, timeout=60)
    seen: list[tuple[int, int]] = []

    def work(piece: int) -> None:
        together.wait()  # no thread takes two
        torch.ones(200, 200) @ torch.ones(200, 200)
        seen.append((piece, torch.get_num_threads()))

    pools = SingleThreads()
    for _ in range(2):
        seen.clear()
        pools.run(work, range(threads))
        assert sorted(seen) == [(piece, 1) for piece in range(threads)]
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("threads", "pieces"), [(1, 3), (2, 1)])
def test_run_of_one_piece_or_one_thread_stays_in_this_thread(threads: int, pieces: int) -> None:
    torch.set_num_threads(threads)
    seen: list[tuple[str, int]] = []
    SingleThreads().run(
        lambda _: seen.append((threading.current_thread().name, torch.get_num_threads())),
        range(pieces),
    )
    assert seen == [(threading.current_thread().name, threads)] * pieces


def test_run_raises_what_the_first_piece_that_fails_does() -> None:
    torch.set_num_threads(2)

    def work(piece: int) -> None:
        if piece:
            raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 1"):
        SingleThreads().run(work, range(4))


_FAULTS = """
import ctypes, resource, sys, threading
from actors.network.batch_runner import keep_freed_blocks
keep_freed_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 12 << 20

def use():
    for _ in range(20):
        blocks = [libc.malloc(SIZE) for _ in range(8)]
        for block in blocks:
            ctypes.memset(block, 1, SIZE)
        for block in reversed(blocks):
            libc.free(block)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=use)
thread.start()
thread.join()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / (8 * SIZE))
"""


def has_mallopt() -> bool:
    import ctypes

    return hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="no glibc")
def test_blocks_freed_in_a_thread_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=60
    )
    # How many times over the pages came from the kernel: of 20 passes, all of them without it.
    assert float(done.stdout) < 2


def test_keep_freed_blocks_without_glibc_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner.ctypes, "CDLL", lambda _: SimpleNamespace())
    keep_freed_blocks()
