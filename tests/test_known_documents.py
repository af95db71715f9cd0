"""What an index holds, sorted for comparison: found again exactly, whatever the buckets."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.index.schemas import DELETIONS_SCHEMA, HASH, LEDGER_SCHEMA, UNCHANGED_SCHEMA
from pipelines.plan.known import NOT_READ_AS, Bucket, IdSet, KnownDocuments, bucket_of, id_hashes
from pipelines.plan.mentions import DELETED, LEDGER, UNCHANGED, Mentions, resolve

PARTS = ["data/a.parquet", "data/b.parquet"]


def doc_hash(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def ledger(rows):
    """(doc_id, text, unit, part, first_row, n_rows)."""
    return pa.Table.from_pylist(
        [
            {
                "doc_id": doc_id,
                "doc_hash": doc_hash(text),
                "unit": unit,
                "position": 0,
                "part": PARTS[part],
                "first_row": first,
                "n_rows": n,
                "n_tokens": n,
            }
            for doc_id, text, unit, part, first, n in rows
        ],
        LEDGER_SCHEMA,
    )


def deletions(rows):
    return pa.Table.from_pylist(
        [
            {"doc_id": doc_id, "part": PARTS[part], "first_row": first, "n_rows": 1}
            for doc_id, part, first in rows
        ],
        DELETIONS_SCHEMA,
    )


def unchanged(rows):
    return pa.Table.from_pylist(
        [{"doc_id": doc_id, "unit": unit, "position": 0} for doc_id, unit in rows],
        UNCHANGED_SCHEMA,
    )


def same_units(n=10):
    return np.arange(n, dtype=np.int32)


def known(*mentioned, buckets=1, parts=PARTS):
    return KnownDocuments([resolve(rows[b] for rows in mentioned) for b in range(buckets)], parts)


def look_up(documents, pairs):
    ids = pa.array([doc_id for doc_id, _ in pairs], pa.string())
    return documents.look_up(ids, pa.array([doc_hash(text) for _, text in pairs], HASH))


def test_look_up_of_same_edited_and_new_documents_tells_them_apart():
    mentions = Mentions(PARTS, 1)
    rows = ledger([("x", "one", 3, 0, 5, 2), ("y", "two", 4, 1, 7, 1)])
    found = look_up(
        known(mentions.of(LEDGER, rows, 1, same_units())),
        [("y", "other"), ("z", "one"), ("x", "one")],
    )
    assert found.known.tolist() == [True, False, True]
    assert found.same.tolist() == [False, False, True]
    assert found.unit.tolist() == [4, NOT_READ_AS, 3]
    assert found.part.tolist() == [1, -1, 0]
    assert found.first_row.tolist() == [7, -1, 5]
    assert found.n_rows.tolist() == [1, 0, 2]


def test_resolve_of_deleted_and_replaced_rows_keeps_the_live_ones():
    mentions = Mentions(PARTS, 1)
    documents = known(
        mentions.of(
            LEDGER, ledger([("x", "old", 0, 0, 0, 1), ("y", "y", 0, 0, 1, 1)]), 1, same_units()
        ),
        mentions.of(LEDGER, ledger([("x", "new", 1, 1, 0, 1)]), 2, same_units()),
        mentions.of(DELETED, deletions([("x", 0, 0), ("y", 0, 1)]), 2),
    )
    assert len(documents) == 1
    found = look_up(documents, [("x", "new"), ("x", "old"), ("y", "y")])
    assert found.same.tolist() == [True, False, False]
    assert found.known.tolist() == [True, True, False]
    assert found.part.tolist() == [1, 1, -1]


def test_resolve_of_a_document_seen_elsewhere_since_has_its_newest_unit():
    mentions = Mentions(PARTS, 1)
    rows = ledger([("x", "x", 2, 0, 0, 1)])
    seen = mentions.of(UNCHANGED, unchanged([("x", 5)]), 3, same_units())
    earlier = mentions.of(UNCHANGED, unchanged([("x", 4)]), 2, same_units())
    documents = known(seen, mentions.of(LEDGER, rows, 1, same_units()), earlier)
    assert look_up(documents, [("x", "x")]).unit.tolist() == [5]


def test_resolve_of_ids_that_two_files_have_is_where_the_first_has_it():
    """The other row is masked, or, found unchanged, a reject."""
    mentions = Mentions(PARTS, 1)
    first = mentions.of(LEDGER, ledger([("x", "x", 2, 0, 0, 1)]), 1, same_units())
    second = mentions.of(LEDGER, ledger([("x", "other", 3, 1, 0, 1)]), 1, same_units())
    lost = mentions.of(DELETED, deletions([("x", 1, 0)]), 1)
    assert look_up(known(second, first, lost), [("x", "x")]).unit.tolist() == [2]
    both = mentions.of(UNCHANGED, unchanged([("x", 5), ("x", 4), ("x", 6)]), 2, same_units())
    assert look_up(known(both, second, first, lost), [("x", "x")]).unit.tolist() == [4]


@pytest.mark.parametrize("numbers", [np.zeros(0, np.int32), np.full(3, NOT_READ_AS, np.int32)])
def test_mentions_of_units_that_are_read_again_have_none(numbers):
    rows = Mentions(PARTS, 1).of(LEDGER, ledger([("x", "x", 2, 0, 0, 1)]), 1, numbers)
    assert look_up(known(rows), [("x", "x")]).unit.tolist() == [NOT_READ_AS]


def test_mentions_of_a_unit_beyond_the_numbering_have_none():
    rows = Mentions(PARTS, 1).of(LEDGER, ledger([("x", "x", 12, 0, 0, 1)]), 1, same_units())
    assert look_up(known(rows), [("x", "x")]).unit.tolist() == [NOT_READ_AS]


def test_find_with_first_hashes_that_are_equal_tells_ids_by_the_second():
    ids = np.array([7, 7, 7, 9], np.uint64)
    checks = np.array([1, 2, 3, 1], np.uint64)
    wanted = np.array([7, 7, 9, 7, 5], np.uint64), np.array([3, 1, 1, 4, 1], np.uint64)
    assert IdSet(ids, checks).find(*wanted).tolist() == [2, 0, 3, -1, -1]


def test_find_in_no_ids_finds_none():
    nothing = IdSet.of([])
    ids = id_hashes(pa.array(["a", "b"]))
    assert nothing.find(*ids).tolist() == [-1, -1]


def test_bucket_takes_48_bytes_a_document():
    rows = ledger([(f"d{i}", "x", 0, 0, i, 1) for i in range(100)])
    bucket = resolve(Mentions(PARTS, 1).of(LEDGER, rows, 1, same_units()))
    assert sum(array.nbytes for array in vars(bucket).values()) == 48 * 100


def test_bucket_of_hashes_is_by_their_first_bits():
    ids = np.array([0, 1 << 62, 1 << 63, (1 << 64) - 1], np.uint64)
    assert bucket_of(ids, 4).tolist() == [0, 1, 2, 3]
    assert bucket_of(ids, 1).tolist() == [0, 0, 0, 0]


history = st.lists(
    st.dictionaries(st.text(max_size=3), st.sampled_from(["a", "b", None]), max_size=8),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(history, st.sampled_from([1, 2, 8]))
def test_known_documents_after_any_history_are_those_that_are_live(generations, buckets):
    """Each generation sets documents to a text, or (None) deletes them."""
    parts = [f"data/{n}.parquet" for n in range(len(generations))]
    mentions, live, said = Mentions(parts, buckets), {}, []
    for number, changes in enumerate(generations):
        old = [(i, *live[i]) for i in changes if i in live and live[i][0] != changes[i]]
        gone = pa.Table.from_pylist(
            [{"doc_id": i, "part": p, "first_row": f, "n_rows": 1} for i, _, p, f in old],
            DELETIONS_SCHEMA,
        )
        new = []
        for doc_id, text in changes.items():
            if text is None:
                live.pop(doc_id, None)
            elif doc_id not in live or live[doc_id][0] != text:
                live[doc_id] = (text, parts[number], len(new))
                new.append((doc_id, text, 0, 0, len(new), 1))
        rows = ledger(new)
        part = pa.array([parts[number]] * len(new), pa.string())
        rows = rows.set_column(rows.schema.get_field_index("part"), "part", part)
        said.append(mentions.of(LEDGER, rows, number, same_units()))
        said.append(mentions.of(DELETED, gone, number))
    documents = known(*said, buckets=buckets, parts=parts)
    assert len(documents) == len(live)
    ids = sorted({doc_id for changes in generations for doc_id in changes} | {"never"})
    found = look_up(documents, [(i, live[i][0] if i in live else "a") for i in ids])
    assert found.known.tolist() == [i in live for i in ids]
    assert found.same.tolist() == [i in live for i in ids]
    for i, part, row in zip(ids, found.part, found.first_row, strict=True):
        if i in live:
            assert (parts[part], row) == live[i][1:]


def test_buckets_out_of_shared_memory_are_read_in_place(ray_cluster):
    import ray

    rows = ledger([(f"d{i}", "x", 0, 0, i, 1) for i in range(20_000)])
    bucket: Bucket = ray.get(ray.put(resolve(Mentions(PARTS, 1).of(LEDGER, rows, 1, same_units()))))
    assert not any(array.flags.owndata or array.flags.writeable for array in vars(bucket).values())
