"""What an index holds, sorted for comparison: found again exactly, whatever the buckets."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.index.schemas import DELETIONS_SCHEMA, HASH, LEDGER_SCHEMA, UNCHANGED_SCHEMA
from pipelines.plan.known import NOT_READ_AS, IdSet, KnownDocuments, bucket_of
from pipelines.plan.mentions import DELETED, LEDGER, UNCHANGED, Mentions, resolve

PARTS = ["data/a.parquet", "data/b.parquet"]


def doc_hash(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def ledger(rows):
    """(doc_id, text, unit, part, first_row, n_rows)."""
    names = ("doc_id", "doc_hash", "unit", "part", "first_row", "n_rows")
    made = [
        dict(zip(names, (doc_id, doc_hash(text), unit, PARTS[part], *place), strict=True))
        for doc_id, text, unit, part, *place in rows
    ]
    more = [{"position": 0, "n_tokens": row["n_rows"]} for row in made]
    return pa.Table.from_pylist([a | b for a, b in zip(made, more, strict=True)], LEDGER_SCHEMA)


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


UNITS = np.arange(10, dtype=np.int32)
MENTIONS = Mentions(PARTS, 1)
X = ("x", "x", 2, 0, 0, 1)


def of_ledger(*rows, generation=1, units=UNITS):
    return MENTIONS.of(LEDGER, ledger(rows), generation, units)


def known(*mentioned, buckets=1, parts=PARTS):
    return KnownDocuments([resolve(rows[b] for rows in mentioned) for b in range(buckets)], parts)


def look_up(documents, pairs):
    ids = pa.array([doc_id for doc_id, _ in pairs], pa.string())
    return documents.look_up(ids, pa.array([doc_hash(text) for _, text in pairs], HASH))


def unit_of_x(*mentioned):
    [unit] = look_up(known(*mentioned), [("x", "x")]).unit.tolist()
    return unit


def test_look_up_of_same_edited_and_new_documents_tells_them_apart():
    found = look_up(
        known(of_ledger(("x", "one", 3, 0, 5, 2), ("y", "two", 4, 1, 7, 1))),
        [("y", "other"), ("z", "one"), ("x", "one")],
    )
    assert found.known.tolist() == [True, False, True]
    assert found.same.tolist() == [False, False, True]
    assert found.unit.tolist() == [4, NOT_READ_AS, 3]
    assert found.part.tolist() == [1, -1, 0]
    assert found.first_row.tolist() == [7, -1, 5]
    assert found.n_rows.tolist() == [1, 0, 2]


def test_resolve_of_a_document_seen_elsewhere_since_has_its_newest_unit():
    seen, earlier = (
        MENTIONS.of(UNCHANGED, unchanged([("x", unit)]), generation, UNITS)
        for unit, generation in ((5, 3), (4, 2))
    )
    assert unit_of_x(seen, of_ledger(X), earlier) == 5


def test_resolve_of_ids_that_two_files_have_is_where_the_first_has_it():
    """The other row is masked, or, found unchanged, a reject."""
    first, second = of_ledger(X), of_ledger(("x", "other", 3, 1, 0, 1))
    lost = MENTIONS.of(DELETED, deletions([("x", 1, 0)]), 1)
    assert unit_of_x(second, first, lost) == 2
    both = MENTIONS.of(UNCHANGED, unchanged([("x", 5), ("x", 4), ("x", 6)]), 2, UNITS)
    assert unit_of_x(both, second, first, lost) == 4


def test_mentions_of_units_that_are_read_again_or_beyond_the_numbering_have_none():
    for numbers in (UNITS[:0], UNITS[:2], np.full(3, NOT_READ_AS, np.int32)):
        assert unit_of_x(of_ledger(X, units=numbers)) == NOT_READ_AS


def test_find_with_first_hashes_that_are_equal_tells_ids_by_the_second():
    ids = np.array([7, 7, 7, 9], np.uint64)
    checks = np.array([1, 2, 3, 1], np.uint64)
    wanted = np.array([7, 7, 9, 7, 5], np.uint64), np.array([3, 1, 1, 4, 1], np.uint64)
    assert IdSet(ids, checks).find(*wanted).tolist() == [2, 0, 3, -1, -1]
    assert IdSet.of([]).find(*wanted).tolist() == [-1] * 5


def test_bucket_takes_48_bytes_a_document():
    bucket = resolve(of_ledger(*((f"d{i}", "x", 0, 0, i, 1) for i in range(100))))
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
        said.append(mentions.of(LEDGER, rows, number, UNITS))
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
