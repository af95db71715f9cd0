"""Where the documents of a chain of generations are in the corpus now: the newest word on each.

A ledger says where a document was when it was embedded; runs that found it unchanged since then say
where they saw it. Units have numbers of their own in each run: an inventory tells today's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipelines.committed import Generation
from pipelines.duplicates import read_columns
from pipelines.inventory import Numbering
from pipelines.known_documents import NOT_READ_AS, IdSet, id_hashes
from pipelines.source import Unit
from pipelines.storage import Store

_THREADS = 16
_SEEN = np.dtype(
    [
        *(("id", "u8"), ("check", "u8"), ("position", "i8")),
        *(("generation", "i4"), ("unit", "i4")),
    ]
)


class CurrentPlaces:
    """In memory: 32 bytes for each document that a run found unchanged."""

    def __init__(self, store: Store, chain: Sequence[Generation], units: Sequence[Unit]) -> None:
        """`units`: the inventory of the chain."""
        numbering = Numbering(units)
        self._nowhere = max((unit.number for unit in units), default=-1) + 1
        self._numbers = {g.number: numbering.of_run(g.manifest.run_id) for g in chain}
        jobs = [(g.number, file.path) for g in chain for file in g.unchanged or []]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda job: _read(store, *job), jobs))
        every = np.concatenate([np.zeros(0, _SEEN), *found])
        # The newest first; of one run, the lowest place: the others lost the id to it.
        keys = (every["position"], every["unit"], -every["generation"].astype(np.int64))
        every = every[np.lexsort((*keys, every["check"], every["id"]))]
        again = (every["id"][1:] == every["id"][:-1]) & (every["check"][1:] == every["check"][:-1])
        self._seen = every[~np.append([False] * bool(len(every)), again).astype(bool)]
        self._ids = IdSet(
            np.ascontiguousarray(self._seen["id"]), np.ascontiguousarray(self._seen["check"])
        )

    def of(self, ledger: pa.Table, generation: int) -> pa.Table:
        """Live rows of a generation's ledger, with the unit and the position of today.

        A document whose last place is in no unit of the inventory any more gets a unit beyond all
        of them: to the next re-indexing run it is in none that is carried over, as before.
        """
        at = self._ids.find(*id_hashes(ledger["doc_id"]))
        newer = np.flatnonzero(at >= 0)
        newer = newer[self._seen["generation"][at[newer]] > generation]
        position = ledger["position"].to_numpy().copy()
        unit = self._today(ledger["unit"].to_numpy(), generation)
        seen = self._seen[at[newer]]
        position[newer] = seen["position"]
        for number in np.unique(seen["generation"]):
            rows = seen["generation"] == number
            unit[newer[rows]] = self._today(seen["unit"][rows], int(number))
        for name, values in (("unit", unit), ("position", position)):
            ledger = ledger.set_column(
                ledger.column_names.index(name), ledger.schema.field(name), pa.array(values)
            )
        return ledger

    def _today(self, units: np.ndarray, generation: int) -> np.ndarray:
        """The numbers now of units of a generation's run."""
        numbers = self._numbers[generation]
        found = np.full(len(units), NOT_READ_AS, np.int32)
        inside = units < len(numbers)
        found[inside] = numbers[units[inside]]
        return np.where(found == NOT_READ_AS, self._nowhere, found).astype(np.int32)


def _read(store: Store, generation: int, path: str) -> np.ndarray:
    table = read_columns(store, path, ["doc_id", "unit", "position"])
    rows = np.zeros(table.num_rows, _SEEN)
    rows["id"], rows["check"] = id_hashes(table["doc_id"])
    rows["generation"] = generation
    for name in ("unit", "position"):
        rows[name] = table[name].to_numpy()
    return rows
