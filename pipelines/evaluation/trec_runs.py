"""Rankings as TREC run files, which every evaluation tool reads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from actors.errors import SourceError
from pipelines.evaluation.dataset import Rankings
from pipelines.evaluation.judged_files import Options, numbered_lines
from pipelines.local_files import put_local

_COLUMNS = "query, Q0, document, rank, score, tag"


def write_run(path: Path, rankings: Rankings, tag: str) -> None:
    """One line a document: query, Q0, document, rank from 1, score, tag.

    Tools sort by score and break ties by document id, so each score is written as a float32 below
    the one before it: where the search's are equal, a step below. Columns are between tabs: white
    space to every reader, and ids with blanks come back through `read_run`.
    """
    lines = []
    for query, ranking in rankings.items():
        before = np.float32(np.inf)
        for rank, (document, score) in enumerate(ranking.items(), start=1):
            below = min(np.float32(score), np.nextafter(before, np.float32(-np.inf)))
            lines.append(f"{query}\tQ0\t{document}\t{rank}\t{below!s}\t{tag}\n")
            before = below
    put_local(path, "".join(lines).encode(), exclusive=False)


def read_run(uri: str, storage_options: Options | None = None) -> Rankings:
    """A run of any system, by score; where scores are equal by the rank it says.

    A local path or URI; also compressed.

    Raises:
        SourceError: it cannot be read; a line of another kind; a document twice for one query.
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


def _row(line: str, where: str) -> tuple[str, str, float, float]:
    """Query, document, score, rank."""
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) != 6:
        raise SourceError(f"{where}: expected {_COLUMNS}, found {len(fields)} columns.")
    try:
        rank, score = float(fields[3]), float(fields[4])
    except ValueError:
        rank = score = math.nan
    if not (math.isfinite(rank) and math.isfinite(score)):
        raise SourceError(
            f"{where}: expected numbers as rank and score, found "
            f"{fields[3]!r:.40} and {fields[4]!r:.40}."
        )
    return fields[0], fields[2], score, rank
