"""Units in, slices out: what a CPU task of the pipeline does.

A process may die of what it reads, of memory most likely, and Ray would repeat that for ever. So
each notes what it begins, and a unit that was begun too often counts as one that cannot be read:

    runs/<run_id>/readings/<session>-<unit>/<nonce>
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.config import AnyRunConfig
from pipelines.done_records import read_done
from pipelines.layout import new_nonce, readings_folder
from pipelines.plan import unit_of
from pipelines.slices import Slice, SliceReader, unreadable_slice
from pipelines.source import Unit
from pipelines.storage import Store, open_store

if TYPE_CHECKING:
    from pipelines.known_on_ray import KnownRefs

MOST_READINGS = 8
"""Of one unit in one session. More than one: machines that are taken away end a process too, and
Ray reads again what was lost with one."""


def read_slices(
    batch: pa.Table,
    config: AnyRunConfig,
    run_id: str,
    session: str,
    known: KnownRefs | None = None,
) -> Iterator[pa.Table]:
    """Rows of `todo_table` in, one-row tables (`Slice.to_row`) out.

    `session`: of the driver; `known`: what the index has, to leave out what did not change.
    """
    reader = _cached_reader(type(config), config.model_dump_json())
    documents = known.get() if known else None
    store = open_store(config.index.uri, config.index.storage_options)
    for row in batch.to_pylist():
        unit = unit_of(row)
        if not _may_read(store, readings_folder(run_id, session, unit.number)):
            yield _given_up(store, run_id, unit).to_row()
            continue
        for start, stop in row["todo"]:
            for piece in reader.slices(unit, start, stop, documents):
                yield piece.to_row()


@functools.lru_cache(maxsize=1)
def _cached_reader(kind: type[AnyRunConfig], config: str) -> SliceReader:
    """A worker process reads many units: it loads the tokenizer once."""
    return SliceReader(kind.model_validate_json(config))


def _may_read(store: Store, folder: str) -> bool:
    begun = len(store.list(folder))
    if begun < MOST_READINGS:
        store.overwrite(f"{folder}/{new_nonce()}", b"")
    return begun < MOST_READINGS


def _given_up(store: Store, run_id: str, unit: Unit) -> Slice:
    """What stands for the rest of a unit on which every process died."""
    done = [record for record in read_done(store, run_id, unit.number) if not record.unreadable]
    first = max((record.next_document for record in done), default=unit.wanted[0][0])
    reason = f"{unit}: the process that read and tokenised it died {MOST_READINGS} times"
    return unreadable_slice(unit.number, first, reason)
