"""Which units are read again, and under which numbers the others go on."""

import numpy as np
import pyarrow as pa

from pipelines.index.schemas import reject_table
from pipelines.plan.inventory import Numbering, unchanged_units, units_now
from pipelines.plan.known import NOT_READ_AS
from pipelines.source import Unit
from pipelines.source.units import FileRange, Listing, SourceFile


def file_of(name, etag="1"):
    return SourceFile(f"/docs/{name}", 10, etag)


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


def test_unchanged_units_of_a_file_with_another_etag_are_none_of_its_units():
    a, b = file_of("a"), file_of("b")
    before = [unit_of(0, a), unit_of(1, a, start=5), unit_of(2, b)]
    now = listing_of(file_of("a", etag="2"), b)
    assert [unit.number for unit in unchanged_units(now, before)] == [2]


def test_unchanged_units_of_several_files_need_all_of_them():
    a, b, c = file_of("a"), file_of("b"), file_of("c")
    before = [unit_of(0, a, b), unit_of(1, b, c), unit_of(2, c)]
    assert [u.number for u in unchanged_units(listing_of(b, c), before)] == [2]


def test_unchanged_units_of_another_format_are_none():
    a = file_of("a")
    assert unchanged_units(listing_of(a), [unit_of(0, a, format="text")]) == []


def test_units_now_are_in_the_order_of_the_files_and_carry_origins():
    a, b, c = file_of("a"), file_of("b"), file_of("c")
    source = Source()
    before = [unit_of(0, a), unit_of(1, c), unit_of(2, c, start=5)]
    found = units_now(source, listing_of(a, b, c), before, again=(), types={"x": pa.int64()})
    assert source.asked == ["/docs/b"]
    assert source.known == {"x": pa.int64()}
    assert [u.number for u in found] == [0, 1, 2, 3]
    assert [u.pieces[0].file.path for u in found] == ["/docs/a", "/docs/b", "/docs/c", "/docs/c"]
    assert [u.wanted for u in found] == [(), ((0, None),), (), ()]
    assert [u.origins for u in found] == [
        (("run1", 0),),
        (),
        (("run1", 1),),
        (("run1", 2),),
    ]


def test_units_now_that_are_wanted_again_are_read_whole():
    a, b = file_of("a"), file_of("b")
    source = Source()
    found = units_now(source, listing_of(a, b), [unit_of(0, a), unit_of(1, b)], {1}, {})
    assert source.asked == []
    assert [(u.wanted, u.origins) for u in found] == [((), (("run1", 0),)), (((0, None),), ())]


def test_numbering_of_a_run_maps_carried_units_and_nothing_else():
    units = [
        unit_of(0, file_of("a"), origins=(("r1", 4), ("replay", 4))),
        Unit(1, "jsonl", (), None),
        unit_of(2, file_of("c"), origins=(("r1", 1),)),
    ]
    numbering = Numbering(units)
    none = NOT_READ_AS
    assert numbering.of_run("r1").tolist() == [none, 2, none, none, 0]
    assert numbering.of_run("replay").tolist() == [none] * 4 + [0]
    assert numbering.of_run("other").dtype == np.int32
    assert len(numbering.of_run("other")) == 0


def test_numbering_of_rejects_keeps_those_of_carried_units_only():
    before = [unit_of(0, file_of("a")), unit_of(1, file_of("b"))]
    now = [Unit(0, "jsonl", (), None), unit_of(1, file_of("x")), unit_of(2, file_of("b"))]
    now[1] = unit_of(1, file_of("x"), origins=(("r9", 9),))
    now[2] = unit_of(2, file_of("b"), origins=(("run1", 1),))
    rejects = reject_table([("gone", 0, 3, "empty_text", ""), ("kept", 1, 4, "null_text", "why")])
    kept = Numbering(now).rejects(rejects, before).to_pylist()
    assert [(r["doc_id"], r["unit"], r["position"], r["code"]) for r in kept] == [
        ("kept", 2, 4, "null_text")
    ]
