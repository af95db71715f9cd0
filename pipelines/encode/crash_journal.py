"""Crash journal: what each process works on, so that its successor can isolate what kills it.

The input of a process may kill it, for example through memory use or a faulty kernel. Ray would
restart it on the same input for ever. So each process records on storage what it begins:

    runs/<run_id>/words/<session>-<nonce>.json      {"at": {"000001-0000000000": [0, 180]}, ...}
    runs/<run_id>/readings/<session>-<unit>/<nonce>

If a process died on a slice, the slice is encoded in pieces. Each piece is announced before it
begins and runs alone in its process; a piece on which a process died is divided again. A passage
that was alone at three deaths is rejected. One killing passage in n is found after ceil(3 +
log64(n)) deaths. A unit whose reading began MOST_READINGS times counts as unreadable.
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
"""The passages [first, stop) of a slice."""

PIECES = 64
DEATHS_ALONE = 3
"""Deaths before a passage is rejected. More than one, because a preempted machine also kills."""
MOST_STARTS = 8
"""The limit per actor of the pool and session on deaths before the model was loaded, minus
processes that loaded it."""
MOST_DEATHS = 32
"""The limit of deaths per slice and session; large enough to isolate several killing passages."""
MOST_READINGS = 8
"""The limit of readings per unit and session. More than one, because a preempted machine also ends
a process, and Ray reads lost blocks again."""


def may_read(store: Store, run_id: str, session: str, unit: int) -> bool:
    """Record that the reading of a unit begins; return False if it began too often."""
    folder = readings_folder(run_id, session, unit)
    begun = len(store.list(folder))
    if begun < MOST_READINGS:
        store.overwrite(reading_path(run_id, session, unit, new_nonce()), b"")
    return begun < MOST_READINGS


class JournalEntry(JsonRecord):
    """The last recorded work of one process."""

    worker: str
    """The process, as host:pid."""
    at: dict[str, Rows]
    """Slice name -> the passages that the process was encoding."""
    loaded: bool = False
    """Whether the process had loaded its model."""


def pieces(n: int, deaths: Counter[Rows]) -> Iterator[Rows]:
    """Divide [0, n) into consecutive pieces, smaller ones where processes died."""

    def cut(start: int, stop: int) -> Iterator[Rows]:
        if not deaths[start, stop] or stop - start <= 1:
            yield start, stop
            return
        size = -(-(stop - start) // PIECES)
        for first in range(start, stop, size):
            yield from cut(first, min(first + size, stop))

    return cut(0, n)


def is_hopeless(piece: Rows, deaths: Counter[Rows]) -> bool:
    """Whether a piece is a single passage with DEATHS_ALONE deaths."""
    return piece[1] - piece[0] == 1 and deaths[piece] >= DEATHS_ALONE


class CrashJournal:
    """The entries of this process and of earlier processes. Safe to share between threads."""

    def __init__(
        self, store: Store, run_id: str, session: str, worker: str, actors: int = 1
    ) -> None:
        """Read the entries of earlier processes, and record that this process has begun.

        `session`: the session of the run's driver; `actors`: the size of the pool, whose actors
        may all be loading their models.

        Raises:
            EmbedError: too many processes died before they had loaded the model.
        """
        self._store, self.worker = store, worker
        self._path = words_path(run_id, session, new_nonce())
        self._heard: dict[str, Counter[Rows]] = defaultdict(Counter)
        self._deaths_now: Counter[str] = Counter()
        failed = 0  # minus successes: a long run on preemptible machines has both
        for path, words in read_journal(store, run_id).items():
            is_now = Path(path).name.startswith(session)
            failed += is_now * (-1 if words.loaded else 1)
            for name, rows in words.at.items():
                self._heard[name][rows] += 1
                self._deaths_now[name] += is_now
        if failed >= MOST_STARTS * actors:
            raise EmbedError(
                f"expected actors to load the model, found {failed} more processes that died "
                "before they had loaded it than processes that loaded it.",
                "Check Ray's logs, and whether the actors have enough memory for the model.",
            )
        self._at: dict[str, Rows] = {}
        self._loaded = False
        self._lock = threading.Lock()
        self._write()

    def loaded(self) -> None:
        """Record that this process has loaded its model."""
        with self._lock:
            self._loaded = True
            self._write()

    def deaths(self, name: str) -> Counter[Rows]:
        """Return the number of deaths for each range of passages of a slice.

        Raises:
            EmbedError: more than MOST_DEATHS processes died on the slice in this session.
        """
        if self._deaths_now[name] > MOST_DEATHS:
            raise EmbedError(
                f"slice {name}: expected to encode it, found that the process died "
                f"{self._deaths_now[name]} times on it, at different passages.",
                "Give the actors more memory, or lower model.max_batch_tokens or "
                "slice.max_tokens; then run the command again: finished slices are kept.",
            )
        return self._heard[name]

    @contextmanager
    def announced(self, name: str, rows: Rows, *, careful: bool) -> Iterator[None]:
        """Record that passages are being encoded and, if `careful`, when they are done."""
        self._say(name, rows)
        yield
        self._say(name, None, write=careful)

    def _say(self, name: str, rows: Rows | None, *, write: bool = True) -> None:
        with self._lock:  # the file must hold the latest state
            self._at.pop(name, None)
            if rows:
                self._at[name] = rows
            if write:
                self._write()

    def _write(self) -> None:
        words = JournalEntry(worker=self.worker, at=self._at, loaded=self._loaded)
        self._store.overwrite(self._path, words.to_bytes())


def read_journal(store: Store, run_id: str) -> dict[str, JournalEntry]:
    """Return the path and entry of every process of a run."""
    paths = store.list(words_folder(run_id))
    entries = map(JournalEntry.model_validate_json, store.read_many(paths))
    return dict(zip(paths, entries, strict=True))


def describe_journal(store: Store, run_id: str, session: str) -> str:
    """Describe for a message what the encoding processes of a session were working on."""
    said = [
        f"{name} in {words.worker}"
        for path, words in read_journal(store, run_id).items()
        if Path(path).name.startswith(session)
        for name in words.at
    ]
    return f" (last begun: slice {', '.join(said[:4])})" if said else ""


class SliceSlots:
    """Limits how many slices are encoded at once in this process, or gives it to one slice."""

    def __init__(self, threads: int) -> None:
        self._free = threading.Semaphore(threads)
        self._threads = threads
        self._alone = threading.Lock()

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Wait for a slot; if `alone`, for all slots."""
        wanted = self._threads if alone else 1
        with self._alone if alone else nullcontext():
            for _ in range(wanted):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(wanted)
