"""From done records to a live generation: check, mask duplicates, tables, manifest, publication.

The manifest is written last: a reader sees the whole run or nothing of it. Every step may be
repeated after a crash; tables have unique names, so that a losing committer spoils nothing.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from actors.errors import EmbedError, IndexStateError
from pipelines.config import RunConfig
from pipelines.duplicates import find_duplicates, read_columns
from pipelines.generations import highest_generation, publish, read_chain, read_manifest
from pipelines.index import Index
from pipelines.layout import generation_path, manifest_path, new_nonce
from pipelines.output import write_table
from pipelines.plan import Request, Run, incomplete_units
from pipelines.records import (
    DELETIONS_SCHEMA,
    FILES_SCHEMA,
    LEDGER_SCHEMA,
    Counts,
    Done,
    FileRecord,
    Manifest,
    ModelRecord,
    TableRecord,
    Tables,
    reject_table,
)
from pipelines.replay import NOTHING, Inheritance, inherit
from pipelines.storage import Store

_PACKAGES = ("packvec", "ray", "torch", "transformers", "tokenizers", "pyarrow")


def commit(
    store: Store,
    config: RunConfig,
    request: Request,
    run: Run,
    done: Sequence[Done],
    check_lease: Callable[[], None],
    this_run: Callable[[], Mapping[str, Any]],
) -> Manifest:
    """Make a finished run the live generation of its index.

    `this_run`: what the report says of this process's own work (`Progress.report`).

    Raises:
        EmbedError: a unit is not complete or cannot be read, or too many documents were rejected.
        LeaseHeldError: another run has taken the index over.
    """
    missing = incomplete_units(run.units, done)
    if missing:
        raise EmbedError(
            f"run {run.plan.run_id}: {len(missing)} of {len(run.units)} units are not complete "
            f"(first: unit {missing[0]}).",
            "Run the same command again: finished slices are kept.",
        )
    _check_readable(config, run, done)
    lost = find_duplicates(store, done)
    inherited = _inherit(store, run, done, lost)
    lost = pa.concat_tables([lost, inherited.lost])
    rejects = _count_rejects(done, lost, inherited)
    _check_rejects(config, run, sum(r.documents for r in done) + inherited.documents, rejects)
    check_lease()
    number = highest_generation(store) + 1
    tables = _write_tables(store, number, run.plan.run_id, done, lost, inherited)
    manifest = _manifest(
        store, config, request, run, done, lost, inherited, rejects, number, tables
    )
    path = manifest_path(number)
    if not store.create_exclusive(path, manifest.to_bytes()):
        winner = read_manifest(store, number)
        if winner.run_id != manifest.run_id:
            raise IndexStateError(
                f"{store.url(path)}: run {winner.run_id} committed while this one did.",
                "Nothing of it was changed; run again to see what differs.",
            )
        manifest = winner
    finish(store, config, manifest, done, this_run)
    return manifest


def finish(
    store: Store,
    config: RunConfig,
    manifest: Manifest,
    done: Sequence[Done],
    this_run: Callable[[], Mapping[str, Any]],
) -> None:
    """What follows the manifest: make it live, and write what people read later.

    Also for a run that died between its manifest and its publication.
    """
    publish(store, manifest.generation)
    _write_report(store, config, manifest, done, this_run())


def _inherit(store: Store, run: Run, done: Sequence[Done], lost: pa.Table) -> Inheritance:
    if run.plan.parent is None:
        return NOTHING
    ledgers = [read_columns(store, r.ledger.path, None) for r in done if r.ledger]
    embedded = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *ledgers])
    keys = ["unit", "position"]
    embedded = embedded.join(lost.select(keys), keys, join_type="left anti")
    return inherit(Index(store, read_chain(store, run.plan.parent)), embedded)


def _count_rejects(done: Sequence[Done], lost: pa.Table, inherited: Inheritance) -> Counter[str]:
    counts = Counter(inherited.final_rejects["code"].to_pylist())
    for record in done:
        counts.update(record.rejects)
    if doubles := lost.num_rows + inherited.replaced.num_rows:
        counts["duplicate_id"] += doubles
    return counts


def _check_readable(config: RunConfig, run: Run, done: Sequence[Done]) -> None:
    bad = [run.units[record.unit] for record in done if record.unreadable]
    if bad and not config.allow_unreadable_units:
        raise EmbedError(
            f"{len(bad)} of {len(run.units)} units cannot be read (first: {bad[0]}): not "
            "committed; everything else is done and kept.",
            f"See rejects/{run.plan.run_id}/*.parquet in the index. Run again to try them again; "
            "to commit without them: --set allow_unreadable_units=true.",
        )


def _check_rejects(config: RunConfig, run: Run, documents: int, rejects: Counter[str]) -> None:
    limit = config.max_reject_fraction
    rejected = rejects.total() - rejects["unreadable_unit"]  # these have a switch of their own
    if rejected > limit * documents:
        codes = ", ".join(f"{n:,} {code}" for code, n in rejects.most_common())
        raise EmbedError(
            f"{rejected:,} of {documents:,} documents were rejected ({codes}), more than "
            f"max_reject_fraction allows ({limit:.1%}): not committed.",
            f"See rejects/{run.plan.run_id}/*.parquet in the index. To commit all the same: "
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
    masked = pa.concat_tables([lost, inherited.replaced])
    names = ("doc_id", "unit", "position")
    doubles = zip(*(masked[name].to_pylist() for name in names), strict=True)
    rows = reject_table((*row, "duplicate_id", "in another slice") for row in doubles)
    rows = pa.concat_tables([rows, inherited.final_rejects])
    if rows.num_rows:
        rejects.append(write_table(store, rows, f"rejects/{run_id}/commit-{nonce}.parquet"))
    deletions = [
        pa.Table.from_pylist(
            [row.model_dump() for r in done for row in r.masked], DELETIONS_SCHEMA
        ),
        masked.select(DELETIONS_SCHEMA.names).cast(DELETIONS_SCHEMA),
    ]

    def put(name: str, table: pa.Table) -> TableRecord:
        path = generation_path(number, f"{name}-{nonce}.parquet")
        return TableRecord(path=path, sha256=write_table(store, table, path).sha256)

    return Tables(
        parts=put("parts", _files_table(parts)),
        documents=put("documents", _files_table(ledgers)),
        rejects=put("rejects", _files_table(rejects)),
        deletions=put("deletions", pa.concat_tables(deletions)),
    )


def _files_table(files: Sequence[FileRecord]) -> pa.Table:
    return pa.Table.from_pylist([file.model_dump() for file in files], FILES_SCHEMA)


def _manifest(
    store: Store,
    config: RunConfig,
    request: Request,
    run: Run,
    done: Sequence[Done],
    lost: pa.Table,
    inherited: Inheritance,
    rejects: Mapping[str, int],
    number: int,
    tables: Tables,
) -> Manifest:
    encoder = done[0].encoder
    passages = sum(record.passages for record in done)
    return Manifest(
        generation=number,
        parent=run.plan.parent,
        run_id=run.plan.run_id,
        space_fingerprint=encoder.space_fingerprint,
        index_fingerprint=request.index_fingerprint,
        model=ModelRecord(
            name=config.model.name,
            revision=config.model.revision,
            dim=encoder.dim,
            colbert_dim=encoder.colbert_dim,
            max_length=encoder.max_length,
            pooling=encoder.pooling,
            dtypes=sorted({record.encoder.dtype for record in done}),
        ),
        outputs=list(config.outputs),
        vector_dtype=config.model.vector_dtype,
        colbert_storage=config.index.colbert_storage,
        counts=Counts(
            documents=sum(record.embedded for record in done) - lost.num_rows,
            passages=passages - sum(lost["n_rows"].to_pylist()),
            tokens=sum(record.tokens for record in done) - sum(lost["n_tokens"].to_pylist()),
            truncated=sum(record.truncated for record in done) - _truncated(store, lost),
            encoded=passages,
            unchanged=inherited.documents,
            deleted=inherited.replaced.num_rows,
            rejects=dict(sorted(rejects.items())),
        ),
        started=run.plan.created,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        tables=tables,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a working directory, not installed
        return "unknown"


def _truncated(store: Store, lost: pa.Table) -> int:
    """Truncated passages among the rows that duplicates lose."""
    total = 0
    for part in lost["part"].unique().to_pylist():  # each part is read once
        ranges = lost.filter(pc.equal(lost["part"], part))
        flags = read_columns(store, part, ["truncated"])["truncated"].to_numpy()
        if flags.any():
            firsts, counts = ranges["first_row"].to_pylist(), ranges["n_rows"].to_pylist()
            total += sum(int(flags[a : a + n].sum()) for a, n in zip(firsts, counts, strict=True))
    return total


def read_report(store: Store, generation: int) -> dict[str, Any]:
    """report.json of a generation; empty where a run died before it wrote one."""
    try:
        report: dict[str, Any] = json.loads(store.read(_report_path(generation)))
    except FileNotFoundError:
        return {}
    return report


def _report_path(generation: int) -> str:
    return generation_path(generation, "report.json")


def _write_report(
    store: Store,
    config: RunConfig,
    manifest: Manifest,
    done: Sequence[Done],
    this_run: Mapping[str, Any],
) -> None:
    """What a person reads later; not part of the commit."""
    seconds = sum(record.seconds for record in done)
    report = {
        "generation": manifest.generation,
        "run_id": manifest.run_id,
        "started": manifest.started,
        "ended": manifest.ended,
        "slices": len(done),
        "encoder_seconds": round(seconds, 3),
        "counts": manifest.counts.model_dump(),
        "bytes": sum(record.part.bytes for record in done if record.part),
        **this_run,
    }
    number = manifest.generation
    configuration = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    store.overwrite(generation_path(number, "config.yaml"), configuration.encode())
    store.overwrite(_report_path(number), json.dumps(report, indent=1).encode())
