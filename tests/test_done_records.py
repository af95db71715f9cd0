"""Done records and their digests: every record counts, and few are read twice."""

from __future__ import annotations

import pytest
from s3_server import s3_bucket, s3_server  # noqa: F401
from test_plan import done_of, unit_with

from pipelines.index.layout import digests_folder, done_folder, done_path, unreadable_path
from pipelines.plan import plan as done_records
from pipelines.plan.plan import DoneRecords, read_done
from pipelines.store import Store, open_store

UNITS = [unit_with(3000, number) for number in range(4)]
RECORDS = [done_of(unit, first, 1000) for unit in UNITS for first in (0, 1000, 2000)]


@pytest.fixture(autouse=True)
def _small_digests(monkeypatch):
    monkeypatch.setattr(done_records, "DIGEST_RECORDS", 5)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def write(store, *records):
    for record in records:
        path = unreadable_path if record.unreadable else done_path
        path = path("run", record.unit, record.first_document)
        assert store.create_exclusive(path, record.to_bytes())


def read_all(store):
    return DoneRecords(store, "run").read()


def reads_of(store, monkeypatch):
    """(records, paths of the single records that were read for them)."""
    read, paths = Store.read, []

    def counted(self, path):
        paths.append(path)
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", counted)
        found = read_all(store)
    return found, [path for path in paths if path.startswith(done_folder("run"))]


def test_read_done_is_ordered_and_complete(store):
    write(store, *reversed(RECORDS))
    assert read_done(store, "run") == RECORDS
    assert read_done(store, "another") == []
    assert read_done(store, "run", unit=2) == RECORDS[6:9]
    assert store.list(digests_folder("run")) == []


def test_records_of_digests_are_not_read_again(store, monkeypatch):
    write(store, *RECORDS)
    assert reads_of(store, monkeypatch) == (RECORDS, [*map(_path, RECORDS)])
    found, read = reads_of(store, monkeypatch)
    assert (found, len(read)) == (RECORDS, 2)  # of twelve, two digests hold ten
    assert len(store.list(digests_folder("run"))) == 2


def test_records_of_receipts_go_into_digests_and_are_not_read_at_the_end(store, monkeypatch):
    records = DoneRecords(store, "run")
    assert records.read() == []
    for record in RECORDS:
        write(store, record)
        records.add(record)
        records.add(record)  # a receipt that comes twice counts once
    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", None)
        assert records.read() == RECORDS
    assert [len(reads) for reads in reads_of(store, monkeypatch)] == [12, 2]


def test_record_whose_file_is_gone_does_not_count_though_a_digest_has_it(store):
    write(store, *RECORDS)
    read_all(store)
    store.delete(_path(RECORDS[0]))
    assert read_all(store) == RECORDS[1:]


def test_unreadable_record_and_the_one_read_later_are_told_apart_in_digests(store):
    failed = RECORDS[0].model_copy(update={"unreadable": True, "documents": 0, "last": True})
    rest = RECORDS[3:7]
    write(store, failed, *rest)
    assert read_all(store) == read_all(store) == [failed, *rest]
    write(store, RECORDS[0])
    assert read_all(store) == [RECORDS[0], *rest]


def test_records_on_s3_are_the_same(s3_bucket):  # noqa: F811
    uri, options = s3_bucket
    store = open_store(uri, options)
    write(store, *RECORDS)
    assert read_all(store) == read_all(store) == RECORDS


def _path(record):
    return done_path("run", record.unit, record.first_document)
