"""Which units are read again, and under which numbers the others go on."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.plan.inventory import Numbering, unchanged_units, units_now
from pipelines.plan.known import NOT_READ_AS
from pipelines.source import Unit
from pipelines.source.units import FileRange, Listing, SourceFile


def file_of(name, etag="1"):
    return SourceFile(f"/docs/{name}", 10, etag)


A, B, C = map(file_of, "abc")


def unit_of(number, *files, start=0, origins=(), format="jsonl"):
    pieces = tuple(FileRange(file, file.path[6:], start, start + 5) for file in files)
    return Unit(number, format, pieces, None, origins=origins or (("run1", number),))


def listing_of(*files):
    return Listing(list(files), "jsonl", "/docs")


class Source:
    """Makes one unit of each file it is asked for."""

    def __init__(self):
        self.asked = []

    def units(self, listing, known):
        self.asked = [file.path for file in listing.files]
        self.known = known
        return [
            Unit(n, "jsonl", (FileRange(file, file.path, 0, 10),), None)
            for n, file in enumerate(listing.files)
        ]


@pytest.mark.parametrize(
    ("now", "before", "kept"),
    [
        ([file_of("a", "2"), B], [unit_of(0, A), unit_of(1, A, start=5), unit_of(2, B)], [2]),
        ([B, C], [unit_of(0, A, B), unit_of(1, B, C), unit_of(2, C)], [2]),
        ([A], [unit_of(0, A, format="text")], []),
    ],
    ids=["another etag", "several files need all of them", "another format"],
)
def test_unchanged_units_are_those_of_which_every_file_is_as_it_was(now, before, kept):
    assert [unit.number for unit in unchanged_units(listing_of(*now), before)] == kept


def test_units_now_are_in_the_order_of_the_files_and_carry_origins():
    source = Source()
    before = [unit_of(0, A), unit_of(1, C), unit_of(2, C, start=5)]
    found = units_now(source, listing_of(A, B, C), before, again=(), types={"x": pa.int64()})
    assert source.asked == ["/docs/b"]
    assert source.known == {"x": pa.int64()}
    assert [u.number for u in found] == [0, 1, 2, 3]
    assert [u.pieces[0].file.path for u in found] == ["/docs/a", "/docs/b", "/docs/c", "/docs/c"]
    assert [u.wanted for u in found] == [(), ((0, None),), (), ()]
    origins = [(("run1", 0),), (), (("run1", 1),), (("run1", 2),)]
    assert [u.origins for u in found] == origins


def test_numbering_of_a_run_maps_carried_units_and_nothing_else():
    units = [
        unit_of(0, A, origins=(("r1", 4), ("replay", 4))),
        Unit(1, "jsonl", (), None),
        unit_of(2, C, origins=(("r1", 1),)),
    ]
    numbering = Numbering(units)
    none = NOT_READ_AS
    assert numbering.of_run("r1").tolist() == [none, 2, none, none, 0]
    assert numbering.of_run("replay").tolist() == [none] * 4 + [0]
    assert numbering.of_run("other").dtype == np.int32
    assert len(numbering.of_run("other")) == 0
