"""The done records of a run: what is finished, and what each slice consists of.

A large run has many, one small file each, and every start reads them. So the driver copies those it
has seen into digests of some hundred, from which the next start takes all but the last few:

    runs/<run_id>/digests/<nonce>.jsonl.gz

A digest is never more than a copy: a record counts when its own file exists, as a listing shows.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from itertools import zip_longest

from pipelines.layout import (
    digests_folder,
    done_folder,
    done_path,
    done_prefix,
    new_nonce,
    unreadable_path,
)
from pipelines.records import Done
from pipelines.storage import Store

DIGEST_RECORDS = 500


class DoneRecords:
    """Those of one run, as its driver sees them."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self._run_id = store, run_id
        self._known: dict[str, Done] = {}
        self._has_digests = False
        self._loose: list[Done] = []
        """Known, and in no digest yet."""

    def read(self) -> list[Done]:
        """All there are now, by unit and first document; what is known is not read again.

        Of the records that a unit could not be read, one at most: where nothing was read beyond it.
        """
        if not self._has_digests:
            self._known |= {self._path(done): done for done in self._read_digests()}
            self._has_digests = True
        paths = self.store.list(done_folder(self._run_id))
        new = [path for path in paths if path not in self._known]
        for content in self.store.read_many(new):
            self.add(Done.model_validate_json(content))
        return in_order(self._known[path] for path in paths)

    def add(self, done: Done) -> None:
        """Note one that an actor has written."""
        path = self._path(done)
        if path not in self._known:
            self._known[path] = done
            self._loose.append(done)
            if len(self._loose) >= DIGEST_RECORDS:
                self._write_digest()

    def _path(self, done: Done) -> str:
        path = unreadable_path if done.unreadable else done_path
        return path(self._run_id, done.unit, done.first_document)

    def _read_digests(self) -> Iterable[Done]:
        for content in self.store.read_many(self.store.list(digests_folder(self._run_id))):
            yield from map(Done.model_validate_json, gzip.decompress(content).splitlines())

    def _write_digest(self) -> None:
        lines = "\n".join(done.model_dump_json() for done in self._loose)
        path = f"{digests_folder(self._run_id)}/{new_nonce()}.jsonl.gz"
        self.store.overwrite(path, gzip.compress(lines.encode()))
        self._loose = []


def read_done(store: Store, run_id: str, unit: int | None = None) -> list[Done]:
    """The done records of a run, or of one unit of it, as `DoneRecords.read`; writes nothing."""
    paths = store.list(done_folder(run_id))
    if unit is not None:
        paths = [path for path in paths if path.startswith(done_prefix(run_id, unit))]
    return in_order(map(Done.model_validate_json, store.read_many(paths)))


def in_order(records: Iterable[Done]) -> list[Done]:
    """By unit and first document, without records of unreadable units that others go beyond."""
    # Where both begin at one document, what could be read counts.
    found = sorted(records, key=lambda done: (done.unit, done.first_document, not done.unreadable))
    return [
        record
        for record, after in zip_longest(found, found[1:])
        if not record.unreadable or after is None or after.unit != record.unit
    ]
