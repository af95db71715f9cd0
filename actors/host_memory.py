"""Blocks of megabytes that are freed stay with the process, which asks for their like at once.

What a layer makes of a micro-batch is freed a moment later. glibc gives such blocks back to the
kernel, and has them again a page at a time, zeroed: on a CPU with AMX that was a tenth of the time.
"""

from __future__ import annotations

import ctypes

_KEPT_BYTES = 256 << 20
# Parameters of mallopt(3), by malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_THRESHOLD = 32 << 20
"""glibc takes no higher one: larger blocks come from the kernel each time."""


def keep_freed_blocks() -> None:
    """Keep up to 256 MiB of what this process frees; where there is no glibc nothing happens.

    Threads that start later share one heap, since only that one is not cut into pieces of 64 MiB
    that come and go. Small blocks have a cache in each thread, as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
