"""Read and write TREC run files, and add other systems' runs to an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.errors import ConfigError, SourceError
from pipelines.evaluation.dataset import (
    JudgedQueries,
    Options,
    Rankings,
    number_in,
    numbered_lines,
)
from pipelines.evaluation.evaluate import Evaluated
from pipelines.evaluation.results import Evaluation, evaluate_modes, read_evaluation
from pipelines.store.files import put_local

_COLUMNS = "query, Q0, document, rank, score, tag"
_RUNS = (".run", ".trec", ".txt")


def write_run(path: Path, rankings: Rankings, tag: str) -> None:
    """Write a run, one line per document: query, Q0, document, rank from 1, score, tag.

    Tools sort by score and break ties by document id. Each score is therefore written as a float32
    below the score before it, by one step if the search's scores are equal. Tabs separate columns:
    every reader takes them as white space, and `read_trec_run` can read ids with blanks.
    """
    lines = []
    for query, ranking in rankings.items():
        before = np.float32(np.inf)
        for rank, (document, score) in enumerate(ranking.items(), start=1):
            below = min(np.float32(score), np.nextafter(before, np.float32(-np.inf)))
            lines.append(f"{query}\tQ0\t{document}\t{rank}\t{below!s}\t{tag}\n")
            before = below
    put_local(path, "".join(lines).encode(), exclusive=False)


def read_trec_run(uri: str, storage_options: Options | None = None) -> Rankings:
    """Read a run from a local path or URI, possibly compressed; sort it by score, then by rank.

    Raises:
        SourceError: the file cannot be read, has an invalid line, or a document twice for a query.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for number, line in numbered_lines(uri, storage_options):
        query, document, score, rank = _row(line, f"{uri}, line {number}")
        documents = found.setdefault(query, {})
        if document in documents:
            raise SourceError(
                f"{uri}, line {number}: expected each document once for a query, found "
                f"{document!r} again for {query!r}."
            )
        documents[document] = (-score, rank)
    if not found:
        raise SourceError(f"{uri}: expected a TREC run, found an empty file.")
    return {
        query: {doc: -negated for doc, (negated, _) in sorted(row.items(), key=lambda at: at[1])}
        for query, row in found.items()
    }


@dataclass(frozen=True)
class Against:
    """The contents of the files that --against names."""

    evaluations: list[Evaluation]
    runs: Mapping[str, Rankings]
    """Runs by file name, without extension."""


def read_against(uris: Sequence[str], judged: JudgedQueries) -> Against:
    """Read files for --against, and check that they are of the queries of `judged`.

    Raises:
        ConfigError: an unknown file type, or other queries. SourceError: a file cannot be read.
    """
    evaluations, runs = [], dict[str, Rankings]()
    for uri in uris:
        if uri.endswith(".json"):
            evaluation = read_evaluation(uri)
            _check(uri, set(evaluation.query_ids) ^ set(judged.queries), "the same judged queries")
            evaluations.append(evaluation)
            continue
        path = Path(uri.removesuffix(".gz"))
        if path.suffix not in _RUNS:
            raise ConfigError(
                "--against: expected an eval.json or a run file (.run, .trec, .txt, also .gz), "
                f"got {uri}."
            )
        run = read_trec_run(uri)
        others = set(judged.queries) - run.keys()
        _check(uri, others if len(others) == len(judged.queries) else set(), "judged queries")
        runs[path.stem] = run
    return Against(evaluations, runs)


def with_runs(found: Evaluated, runs: Mapping[str, Rankings]) -> Evaluated:
    """Return the evaluation with the runs of other systems added as modes."""
    if not runs:
        return found
    named = {(f"{n} (file)" if n in found.rankings else n): run for n, run in runs.items()}
    rankings = {**found.rankings, **named}
    before = found.evaluation
    modes = evaluate_modes(
        found.judged.qrels,
        rankings,
        baseline=before.baseline,
        ignore_identical_ids=before.ignore_identical_ids,
        settings={mode.name: mode.settings for mode in before.modes},
    )
    return Evaluated(before.model_copy(update={"modes": modes}), found.judged, rankings)


def _row(line: str, where: str) -> tuple[str, str, float, float]:
    """Return query, document, score and rank."""
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) != 6:
        raise SourceError(f"{where}: expected {_COLUMNS}, found {len(fields)} columns.")
    rank, score = map(number_in, fields[3:5])
    if not (math.isfinite(rank) and math.isfinite(score)):
        raise SourceError(
            f"{where}: expected numbers as rank and score, found "
            f"{fields[3]!r:.40} and {fields[4]!r:.40}."
        )
    return fields[0], fields[2], score, rank


def _check(uri: str, others: set[str], expected: str) -> None:
    if others:
        raise ConfigError(
            f"--against: expected {expected} in {uri}, found other queries ({min(others)!r}, ...)."
        )
