"""Commits a run: checks done records, deletes duplicates, writes tables and manifest.

The manifest is written last, so a reader sees the whole run or nothing. Every step may be repeated
after a crash. Tables have unique names, so concurrent commits do not damage each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import EmbedError
from pipelines.config.run import AnyRunConfig
from pipelines.index.generations import (
    create_manifest,
    highest_generation,
    read_manifest,
    software_versions,
    write_tables,
)
from pipelines.index.layout import commit_rejects_path, new_nonce
from pipelines.index.parts import read_columns, write_table
from pipelines.index.records import Counts, Done, Manifest, ModelRecord, Tables
from pipelines.index.schemas import DELETIONS_SCHEMA, LOST_SCHEMA, reject_table
from pipelines.plan.known import duplicate_of, id_hashes
from pipelines.plan.plan import PlannedRun, incomplete_units
from pipelines.run.context import RunContext
from pipelines.run.job import Job
from pipelines.run.supersede import NOTHING, Comparison, Inheritance
from pipelines.store.store import Store

_THREADS = 16


def find_duplicates(store: Store, done: Sequence[Done]) -> pa.Table:
    """Return documents whose id also occurs at an earlier (unit, position), as LOST_SCHEMA.

    Two passes: 64-bit hashes of all ids (8 bytes a document), then the rows whose hash repeats.
    """
    found = [file for record in done for file in (record.ledger, record.unchanged_file) if file]
    paths = [file.path for file in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(lambda p: _hashes(read_columns(store, p, ["doc_id"])), paths))
        every = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        suspects = [
            path for path, h in zip(paths, hashes, strict=True) if np.isin(h, repeated).any()
        ]
        rows = list(
            pool.map(lambda p: _with_hash_in(read_columns(store, p, None), repeated), suspects)
        )
    # Only the place of an unchanged document is known; the other columns become null.
    every_row = pa.concat_tables([LOST_SCHEMA.empty_table(), *rows], promote_options="default")
    candidates = every_row.sort_by([("unit", "ascending"), ("position", "ascending")])
    later = pd.Series(candidates["doc_id"].to_pylist()).duplicated(keep="first")
    return candidates.filter(pa.array(later.to_numpy()))


def _hashes(table: pa.Table) -> np.ndarray:
    return id_hashes(table["doc_id"])[0]


def _with_hash_in(table: pa.Table, repeated: np.ndarray) -> pa.Table:
    rows = table.filter(pa.array(np.isin(_hashes(table), repeated)))
    return rows.select([name for name in LOST_SCHEMA.names if name in rows.column_names])


def commit(
    context: RunContext,
    run: PlannedRun,
    done: Sequence[Done],
    check_lease: Callable[[], None],
    comparison: Comparison | None = None,
) -> Manifest:
    """Commit a finished run as a generation; readers see it once it is published.

    `comparison` compares the run with its parent generation, if it has one.

    Raises:
        EmbedError: a unit is incomplete or unreadable, or too many documents were rejected.
        LeaseHeldError: another run has taken over the lease.
    """
    store, config = context.store, context.config
    missing = incomplete_units(run.units, done)
    if missing:
        raise EmbedError(
            f"run {run.plan.run_id}: {len(missing)} of {len(run.units)} units are incomplete "
            f"(first: unit {missing[0]}).",
            "Run the same command again: finished slices are kept.",
        )
    _check_readable(config, run, done)
    lost = find_duplicates(store, done)
    inherited = comparison.inherit(done, lost) if comparison else NOTHING
    rejects = _count_rejects(done, lost, inherited)
    embedded = sum(record.embedded for record in done) - _with_rows(lost).num_rows
    _check_rejects(config, run, embedded + inherited.documents, rejects)
    check_lease()
    number = highest_generation(store) + 1
    tables = _write_tables(store, number, run.plan.run_id, done, lost, inherited)
    manifest = _manifest(context, run, done, lost, inherited, rejects, number, tables)
    return create_manifest(store, manifest)


def _count_rejects(done: Sequence[Done], lost: pa.Table, inherited: Inheritance) -> Counter[str]:
    counts = Counter(inherited.rejects["code"].to_pylist())
    for record in done:
        counts.update(record.rejects)
    if lost.num_rows:
        counts["duplicate_id"] += lost.num_rows
    return counts


def _check_readable(config: AnyRunConfig, run: PlannedRun, done: Sequence[Done]) -> None:
    units = {unit.number: unit for unit in run.units}
    bad = [units[record.unit] for record in done if record.unreadable]
    if bad and not config.allow_unreadable_units:
        raise EmbedError(
            f"{len(bad)} of {len(run.units)} units cannot be read (first: {bad[0]}): not "
            "committed; everything else is done and kept.",
            f"See rejects/{run.plan.run_id}/*.parquet in the index. Run again to retry them; "
            "to commit without them: --set allow_unreadable_units=true.",
        )


def _check_rejects(
    config: AnyRunConfig, run: PlannedRun, embedded: int, rejects: Counter[str]
) -> None:
    """Check the share of rejects; `embedded` counts the documents in the index."""
    limit = config.max_reject_fraction
    rejected = rejects.total() - rejects["unreadable_unit"]  # see allow_unreadable_units
    documents = embedded + rejected
    if rejected > limit * documents:
        codes = ", ".join(f"{n:,} {code}" for code, n in rejects.most_common())
        raise EmbedError(
            f"{rejected:,} of {documents:,} documents were rejected ({codes}), more than "
            f"max_reject_fraction allows ({limit:.1%}): not committed.",
            f"See rejects/{run.plan.run_id}/*.parquet in the index. To commit anyway: "
            f"--set max_reject_fraction={min(rejected / documents + 0.005, 1):.2f} (nothing is "
            "encoded again).",
        )


def _write_tables(
    store: Store,
    number: int,
    run_id: str,
    done: Sequence[Done],
    lost: pa.Table,
    inherited: Inheritance,
) -> Tables:
    nonce = new_nonce()
    parts = [record.part for record in done if record.part]
    ledgers = [record.ledger for record in done if record.ledger]
    rejects = [record.reject_file for record in done if record.reject_file]
    unchanged = [record.unchanged_file for record in done if record.unchanged_file]
    names = ("doc_id", "unit", "position")
    doubles = zip(*(lost[name].to_pylist() for name in names), strict=True)
    rows = reject_table((*row, *duplicate_of("in another slice")) for row in doubles)
    rows = pa.concat_tables([rows, inherited.rejects])
    if rows.num_rows:
        rejects.append(write_table(store, rows, commit_rejects_path(run_id, nonce)))
    deletions = [
        pa.Table.from_pylist(
            [row.model_dump() for r in done for row in r.masked], DELETIONS_SCHEMA
        ),
        _with_rows(lost).select(DELETIONS_SCHEMA.names).cast(DELETIONS_SCHEMA),
        inherited.masked,
    ]
    return write_tables(
        store,
        number,
        nonce,
        parts=parts,
        documents=ledgers,
        rejects=rejects,
        deletions=pa.concat_tables(deletions),
        unchanged=unchanged,
    )


def _with_rows(lost: pa.Table) -> pa.Table:
    return lost.filter(pc.is_valid(lost["part"]))


def _manifest(
    context: RunContext,
    run: PlannedRun,
    done: Sequence[Done],
    lost: pa.Table,
    inherited: Inheritance,
    rejects: Mapping[str, int],
    number: int,
    tables: Tables,
) -> Manifest:
    passages, reused = (sum(getattr(r, name) for r in done) for name in ("passages", "reused"))
    lost, store, job, request = _with_rows(lost), context.store, context.job, context.request
    return Manifest(
        generation=number,
        parent=run.plan.parent,
        run_id=run.plan.run_id,
        space_fingerprint=request.space_fingerprint,
        index_fingerprint=request.index_fingerprint,
        model=_model(store, job, run, done),
        outputs=list(job.outputs),
        vector_dtype=job.vector_dtype,
        colbert_storage=context.config.index.colbert_storage,
        counts=Counts(
            documents=sum(record.embedded for record in done) - lost.num_rows,
            passages=passages - sum(lost["n_rows"].to_pylist()),
            tokens=sum(record.tokens for record in done) - sum(lost["n_tokens"].to_pylist()),
            truncated=sum(record.truncated for record in done) - _truncated(store, lost),
            encoded=passages - reused,
            reused=reused,
            unchanged=inherited.documents,
            deleted=inherited.deleted,
            replaced=inherited.replaced,
            edited=sum(record.edited for record in done),
            rejects=dict(sorted(rejects.items())),
        ),
        started=run.plan.created,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        tables=tables,
    )


def _model(store: Store, job: Job, run: PlannedRun, done: Sequence[Done]) -> ModelRecord:
    if not done:  # the run only deletes documents
        assert run.plan.parent is not None
        return read_manifest(store, run.plan.parent).model
    encoder = done[0].encoder
    return ModelRecord(
        name=job.model.name,
        revision=job.model.revision,
        dim=encoder.dim,
        colbert_dim=encoder.colbert_dim,
        max_length=encoder.max_length,
        pooling=encoder.pooling,
        dtypes=sorted({record.encoder.dtype for record in done}),
    )


def _truncated(store: Store, lost: pa.Table) -> int:
    """Count the truncated passages among the rows of duplicates."""
    total = 0
    for part in lost["part"].unique().to_pylist():  # each part is read once
        ranges = lost.filter(pc.equal(lost["part"], part))
        flags = read_columns(store, part, ["truncated"])["truncated"].to_numpy()
        if flags.any():
            firsts, counts = ranges["first_row"].to_pylist(), ranges["n_rows"].to_pylist()
            total += sum(int(flags[a : a + n].sum()) for a, n in zip(firsts, counts, strict=True))
    return total
