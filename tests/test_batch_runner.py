"""What a device's batches run on: threads that compute alone, memory that is used again."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from actors.network import batch_runner
from actors.network.batch_runner import SingleThreads, keep_freed_blocks


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [2, 3])
def test_run_gives_each_piece_one_thread_that_computes_alone(threads):
    torch.set_num_threads(threads)
    together = threading.Barrier(threads, timeout=60)
    seen: list[tuple[int, int]] = []

    def work(piece):
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
def test_run_of_one_piece_or_one_thread_stays_in_this_thread(threads, pieces):
    torch.set_num_threads(threads)
    seen: list[tuple[int, int]] = []

    def work(_):
        seen.append((threading.get_ident(), torch.get_num_threads()))

    SingleThreads().run(work, range(pieces))
    assert seen == [(threading.get_ident(), threads)] * pieces


def test_run_raises_what_the_first_piece_that_fails_does():
    torch.set_num_threads(2)

    def work(piece):
        if piece:
            raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 1"):
        SingleThreads().run(work, range(4))


_FAULTS = """
import ctypes, resource, threading
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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_blocks_freed_in_a_thread_are_used_again():
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # How many times over the pages came from the kernel: of 20 passes, all of them without it.
    assert float(done.stdout) < 2


def test_keep_freed_blocks_without_glibc_does_nothing(monkeypatch):
    monkeypatch.setattr(batch_runner.ctypes, "CDLL", lambda _: SimpleNamespace())
    keep_freed_blocks()
