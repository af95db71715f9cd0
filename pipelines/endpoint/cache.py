"""Vectors of queries that were asked before, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, TypeVar

from actors.config import Output
from actors.text_vectors import TextVectors

Key = TypeVar("Key")

# Of an entry beside its arrays: objects, array headers, its place in the dict.
_OVERHEAD = 600


class VectorCache(Generic[Key]):
    """Least recently used out first; used by one thread (the event loop's)."""

    def __init__(self, max_bytes: int) -> None:
        """0: keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, tuple[TextVectors, int]] = OrderedDict()
        self.nbytes = 0
        """What it holds."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, outputs: Collection[Output]) -> TextVectors | None:
        """The vectors of a text, where all of these outputs are known."""
        found = self._entries.get(key)
        if found is None or not found[0].has(outputs):
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, vectors: TextVectors, key_bytes: int) -> None:
        """Keep a copy, unless it alone is larger than the cache."""
        size = vectors.nbytes + key_bytes + _OVERHEAD
        if size > self._max_bytes:
            return
        before = self._entries.pop(key, None)
        self.nbytes += size - (before[1] if before else 0)
        self._entries[key] = (vectors.copy(), size)
        while self.nbytes > self._max_bytes:
            _, (_, oldest) = self._entries.popitem(last=False)
            self.nbytes -= oldest
