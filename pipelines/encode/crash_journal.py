"""Crash journal: what each process works on, so that its successor can isolate what kills it.

A process may die of what it reads or encodes: of memory, of a faulty kernel. Ray starts it again on
the same input, for ever. So each process records on storage what it is about to do:

    runs/<run_id>/words/<session>-<nonce>.json      {"at": {"000001-0000000000": [0, 180]}, ...}
    runs/<run_id>/readings/<session>-<unit>/<nonce>

A slice on which an encoding process died is encoded in pieces, each announced before it begins and
alone in its process; a piece on which a process died is cut again; a passage that was alone at
three deaths is rejected. Of n passages, one that kills is found after 3 + log64(n) deaths, rounded
up. A unit that was begun MOST_READINGS times counts as unreadable.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from actors.errors import EmbedError
from pipelines.index.layout import (
    new_nonce,
    reading_path,
    readings_folder,
    words_folder,
    words_path,
)
from pipelines.index.records import JsonRecord
from pipelines.store.store import Store

Rows = tuple[int, int]
"""Passages [first, stop) of a slice."""

PIECES = 64
DEATHS_ALONE = 3
"""More than one: a machine that is taken away just then must not cost a passage."""
MOST_STARTS = 8
"""For each actor of the pool, in one session: so many more may die before they have a model than
after."""
MOST_DEATHS = 32
"""Of one slice in one session: several passages that kill are still found."""
MOST_READINGS = 8
"""Of one unit in one session. More than one: machines that are taken away end a process too, and
Ray reads again what was lost with one."""


def may_read(store: Store, run_id: str, session: str, unit: int) -> bool:
    """Record that a unit is about to be read; False where that happened too often."""
    folder = readings_folder(run_id, session, unit)
    begun = len(store.list(folder))
    if begun < MOST_READINGS:
        store.overwrite(reading_path(run_id, session, unit, new_nonce()), b"")
    return begun < MOST_READINGS


class JournalEntry(JsonRecord):
    """What one process was working on last."""

    worker: str
    """host:pid."""
    at: dict[str, Rows]
    """Name of each slice -> passages it was encoding."""
    loaded: bool = False
    """Whether its model was loaded."""


def pieces(n: int, deaths: Counter[Rows]) -> Iterator[Rows]:
    """[0, n) cut into consecutive pieces, finer where processes died."""

    def cut(start: int, stop: int) -> Iterator[Rows]:
        if not deaths[start, stop] or stop - start <= 1:
            yield start, stop
            return
        size = -(-(stop - start) // PIECES)
        for first in range(start, stop, size):
            yield from cut(first, min(first + size, stop))

    return cut(0, n)


def is_hopeless(piece: Rows, deaths: Counter[Rows]) -> bool:
    """Whether a piece is one passage that killed often enough."""
    return piece[1] - piece[0] == 1 and deaths[piece] >= DEATHS_ALONE


class CrashJournal:
    """The entry of this process, and those of the ones before it. Safe to share between threads."""

    def __init__(
        self, store: Store, run_id: str, session: str, worker: str, actors: int = 1
    ) -> None:
        """Read the entries of earlier processes, and record that this one has begun.

        `session`: of the run's driver; `actors`: so many may be loading their models just now.

        Raises:
            EmbedError: too many died before they had a model.
        """
        self._store, self.worker = store, worker
        self._path = words_path(run_id, session, new_nonce())
        self._heard: dict[str, Counter[Rows]] = defaultdict(Counter)
        self._deaths_now: Counter[str] = Counter()
        failed = 0  # less those that did not: a long run on machines that go away has both
        for path, words in read_journal(store, run_id).items():
            is_now = Path(path).name.startswith(session)
            failed += is_now * (-1 if words.loaded else 1)
            for name, rows in words.at.items():
                self._heard[name][rows] += 1
                self._deaths_now[name] += is_now
        if failed >= MOST_STARTS * actors:
            raise EmbedError(
                f"expected the model to be loaded, found that {failed} more processes died over it "
                "than did it.",
                "See whether the actors' memory is enough for the model, and Ray's logs.",
            )
        self._at: dict[str, Rows] = {}
        self._loaded = False
        self._lock = threading.Lock()
        self._write()

    def loaded(self) -> None:
        """Record that this process has its model."""
        with self._lock:
            self._loaded = True
            self._write()

    def deaths(self, name: str) -> Counter[Rows]:
        """How often a process died at which passages of a slice.

        Raises:
            EmbedError: it has been too often for one run.
        """
        if self._deaths_now[name] > MOST_DEATHS:
            raise EmbedError(
                f"slice {name}: expected to encode it, found that the process died "
                f"{self._deaths_now[name]} times on it, at different passages.",
                "See whether the actors' memory is enough (model.max_batch_tokens, "
                "slice.max_tokens), then run the same command again: finished slices are kept.",
            )
        return self._heard[name]

    @contextmanager
    def announced(self, name: str, rows: Rows, *, careful: bool) -> Iterator[None]:
        """Record that these passages are being encoded; `careful`: and when they are done."""
        self._say(name, rows)
        yield
        self._say(name, None, write=careful)

    def _say(self, name: str, rows: Rows | None, *, write: bool = True) -> None:
        with self._lock:  # the file must say what was said last
            self._at.pop(name, None)
            if rows:
                self._at[name] = rows
            if write:
                self._write()

    def _write(self) -> None:
        words = JournalEntry(worker=self.worker, at=self._at, loaded=self._loaded)
        self._store.overwrite(self._path, words.to_bytes())


def read_journal(store: Store, run_id: str) -> dict[str, JournalEntry]:
    """Path -> entry, of every process of a run."""
    paths = store.list(words_folder(run_id))
    entries = map(JournalEntry.model_validate_json, store.read_many(paths))
    return dict(zip(paths, entries, strict=True))


def describe_journal(store: Store, run_id: str, session: str) -> str:
    """What the encoding processes of a session were working on, for a message."""
    said = [
        f"{name} in {words.worker}"
        for path, words in read_journal(store, run_id).items()
        if Path(path).name.startswith(session)
        for name in words.at
    ]
    return f" (last begun: slice {', '.join(said[:4])})" if said else ""


class SliceSlots:
    """How many slices may be encoded at once in this process, or one alone."""

    def __init__(self, threads: int) -> None:
        self._free = threading.Semaphore(threads)
        self._threads = threads
        self._alone = threading.Lock()

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn; `alone`: until nobody else has one."""
        wanted = self._threads if alone else 1
        with self._alone if alone else nullcontext():
            for _ in range(wanted):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(wanted)
