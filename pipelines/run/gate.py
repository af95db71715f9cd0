"""Checks a generation before publication: shares of change, vectors, canary queries, quality.

A generation that fails stays committed but unpublished, so that a person can inspect it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import ConfigError
from pipelines.config.run import RunConfig
from pipelines.config.sections import GateConfig
from pipelines.index.generations import read_chain
from pipelines.index.reader import Index
from pipelines.index.records import Manifest
from pipelines.index.schemas import UNIT_LENGTH_TOLERANCE
from pipelines.store.store import Store

_SAMPLED_PARTS = 32
_SAMPLED_ROWS = 64  # of each part
_TELLING_ROWS = 16  # fewer rows do not show whether the model has collapsed


@dataclass(frozen=True)
class Canary:
    """A query and documents, at least one of which it must find."""

    query: str
    doc_ids: frozenset[str]


def read_canaries(path: str) -> list[Canary]:
    """Read the canary queries of a JSONL file.

    Raises:
        ConfigError: the file cannot be read, or a line is invalid.
    """
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"gate.canaries: cannot read {path} ({error}).") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            ids = row["doc_id"]
            ids = [ids] if isinstance(ids, str) else ids
            found.append(Canary(str(row["query"]), frozenset(map(str, ids))))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f'gate.canaries: expected {{"query": ..., "doc_id": ...}} in line {number} of '
                f"{path}, found {line[:80]!r}."
            ) from None
    return found


def check_gate(config: RunConfig) -> None:
    """Check before a run that the gate can be evaluated after it.

    Raises:
        ConfigError, SourceError: canaries or judged queries are unreadable; a package is missing.
        IndexStateError: a measure needs an output that is not computed.
    """
    if config.gate.canaries:
        read_canaries(config.gate.canaries)
    if config.gate.quality:
        from pipelines.evaluation.evaluate import check_ready  # late: optional packages

        check_ready(config, [floor.mode for floor in config.gate.quality])


def findings(store: Store, config: RunConfig, manifest: Manifest) -> list[str]:
    """Return the reasons against publishing a generation, [] if it may go live.

    Raises:
        ConfigError: canaries cannot be read.
    """
    chain, gate = read_chain(store, manifest.generation), config.gate
    found = list(_shares(gate, chain))
    if gate.vectors and "dense" in manifest.outputs:
        found += _vectors(store, manifest, gate.max_alike, config.model.normalize)
    if gate.canaries:
        found += _canaries(config, Index(store, chain))
    if gate.quality:
        found += _quality(config, Index(store, chain))
    return found


def _shares(gate: GateConfig, chain: Sequence[Manifest]) -> Iterator[str]:
    if len(chain) == 1:
        return
    counts, before = chain[0].counts, chain[1].counts
    documents = before.documents + before.unchanged
    if documents < gate.min_documents:
        return
    for what, n, limit in (
        ("deleted", counts.deleted, gate.max_deleted),
        ("changed", counts.edited, gate.max_changed),
    ):
        if n > limit * documents:
            yield (
                f"{n:,} of {documents:,} documents ({n / documents:.1%}) are {what}, "
                f"more than gate.max_{what} allows ({limit:.1%})"
            )


def _vectors(store: Store, manifest: Manifest, max_alike: float, normalized: bool) -> Iterator[str]:
    """Check vectors of the first row groups of parts spread over the generation."""
    paths = Index(store, [manifest]).part_paths
    step = max(len(paths) // _SAMPLED_PARTS, 1)
    tables = [_sample(store, path) for path in paths[::step][:_SAMPLED_PARTS]]
    if not tables:
        return
    rows = pa.concat_tables(tables)
    flat = rows["dense"].combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(rows.num_rows, -1).astype(np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        yield f"{(~finite).sum():,} of {len(vectors):,} sampled vectors have NaN or Inf"
        return
    norms = np.linalg.norm(vectors, axis=1)
    tolerance = UNIT_LENGTH_TOLERANCE.get(manifest.vector_dtype, 0.0)
    bad = norms == 0 if not normalized else np.abs(norms - 1) > tolerance
    if bad.any():
        length = f"{norms[bad][0]:.4f}"
        yield f"{bad.sum():,} of {len(vectors):,} sampled vectors have a wrong length: {length}"
        return
    _, first = np.unique(np.array(rows["passage_hash"].to_pylist(), "S16"), return_index=True)
    n = len(first)
    if n >= _TELLING_ROWS:
        units = vectors[first] / norms[first, None]
        total = float(np.square(units.sum(axis=0, dtype=np.float64)).sum())
        alike = (total - n) / (n * (n - 1))
        if alike > max_alike:
            yield (
                f"vectors of {n:,} different passages are all alike (mean cosine {alike:.7f}): "
                "the model has collapsed"
            )


def _sample(store: Store, path: str) -> pa.Table:
    with store.open_input(path) as file:
        columns = ["passage_hash", "dense"]
        batches = pq.ParquetFile(file).iter_batches(_SAMPLED_ROWS, row_groups=[0], columns=columns)
        return pa.Table.from_batches([next(batches)])


def _canaries(config: RunConfig, index: Index) -> Iterator[str]:
    """Search the live view exhaustively, keeping one batch and the best of each query."""
    canaries, top = read_canaries(config.gate.canaries or ""), config.gate.canary_top
    if "dense" not in config.outputs:
        raise ConfigError("gate.canaries: expected dense among the outputs, found none.")
    if not canaries:
        return
    from actors.encoder import load_encoder  # late: torch, needed only with canaries
    from actors.scoring import dense_matrix

    encoder = load_encoder(config.encoder)
    queries = encoder.encode_queries([canary.query for canary in canaries])["dense"]
    best: list[dict[str, float]] = [{} for _ in canaries]
    for batch in index.scanner(columns=["doc_id", "dense"]).to_batches():
        scores = dense_matrix(queries, batch["dense"])
        ids = batch["doc_id"]
        for mine, row in zip(best, scores, strict=True):
            order = np.argsort(-row, kind="stable")
            for at in order.tolist():
                if len(mine) >= top and row[at] <= min(mine.values()):
                    break
                doc_id = ids[at].as_py()
                mine[doc_id] = max(mine.get(doc_id, -np.inf), float(row[at]))
                if len(mine) > top:
                    del mine[min(mine, key=lambda name: mine[name])]
    for canary, mine in zip(canaries, best, strict=True):
        if not canary.doc_ids & mine.keys():
            expected = ", ".join(sorted(canary.doc_ids))
            yield f"canary {canary.query!r:.80} no longer finds {expected} among the first {top}"


def _quality(config: RunConfig, index: Index) -> Iterator[str]:
    """Evaluate the judged queries in the modes that gate.quality names."""
    from pipelines.evaluation.evaluate import evaluate  # late: optional packages

    modes = tuple(dict.fromkeys(floor.mode for floor in config.gate.quality))
    evaluation = evaluate(config, index, modes, bm25=False).evaluation
    for floor in config.gate.quality:
        mean = evaluation.mode(floor.mode).measures[floor.measure].mean
        if mean < floor.least:
            yield (
                f"{floor.measure} of {floor.mode} is {mean:.4f} over "
                f"{len(evaluation.query_ids):,} judged queries, less than gate.quality requires "
                f"({floor.least:g})"
            )
