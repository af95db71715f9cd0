"""Freed blocks of megabytes are used again, not asked of the kernel again."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from actors import batch_runner

_FAULTS = """
import ctypes, resource, sys, threading
from actors.batch_runner import keep_freed_blocks
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
    batch_runner.keep_freed_blocks()
