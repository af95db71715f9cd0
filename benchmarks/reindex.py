"""Measures re-indexing when 0, 1, 10 and 100 % of a corpus change, compared with a full build.

    python -m benchmarks.reindex                  # `make bench-reindex`
    python -m benchmarks.reindex --documents 400  # a quick look

The corpus repeats the bundled articles from different start words, so that no two passages are
equal. In a change of n %, n % of the documents get a new sentence, n % are deleted and n % are
added. In every case but the first, all files are rewritten with the documents shuffled across them.
All cases share one Ray cluster. Start-up, in which the actor loads its model, is measured by
re-indexing a corpus of one document before and after, and subtracted from every figure.

After the change of 1 %, the live view is compared with a fresh build of the corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import machine
from pipelines.cluster.ray_cluster import ray_session
from pipelines.config import RunConfig, load_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.records import Counts
from pipelines.reindex import reindex

_ROOT = Path(__file__).parent.parent
_ARTICLES = _ROOT / "conf/data/simplewiki-1200.parquet"
_RESULTS = _ROOT / "benchmarks/results/reindex.json"
_FILES = 16
_WORDS_APART = 7
_TOLERANCE = 2e-3

Rows = list[dict[str, Any]]


class Corpus:
    """The documents of a corpus, some of them held back to be added later."""

    def __init__(self, folder: Path, articles: Path, documents: int, seed: int = 7) -> None:
        self._folder, self._random = folder, random.Random(seed)
        found = pq.read_table(articles, columns=["id", "url", "title", "text"])
        self._schema = found.schema.remove_metadata()
        rows = list(_versions(found.slice(0, 2 * documents).to_pylist(), 2 * documents))
        self.rows, self._later = rows[:documents], rows[documents:]
        folder.mkdir(parents=True)
        self.write()

    def change(self, share: float) -> None:
        """Edit, delete and add `share` of the documents each; shuffle all of them."""
        n = int(share * len(self.rows))
        self._random.shuffle(self.rows)
        gone, edited = self.rows[:n], self.rows[n : 2 * n] if share < 1 else self.rows
        for row in edited:
            row["text"] += f" One more sentence, number {self._random.random()}."
        if share < 1:
            self.rows = [row for row in self.rows if row not in gone]
            self.rows += [self._later.pop() for _ in range(n)]
        self._random.shuffle(self.rows)
        self.write()

    def write(self) -> None:
        """Write all files again."""
        for number in range(_FILES):
            table = pa.Table.from_pylist(self.rows[number::_FILES], self._schema)
            pq.write_table(table, self._folder / f"{number:03d}.parquet", row_group_size=1000)


def _versions(articles: Rows, documents: int) -> Iterator[dict[str, Any]]:
    """Repeat the articles, each time from a later start word, so that all passages differ."""
    for number in range(documents):
        version, article = divmod(number, len(articles))
        row = articles[article]
        text = row["text"]
        words = text.split(" ", version * _WORDS_APART)
        # Each version reads otherwise from its first token on.
        yield row | {
            "id": f"{row['id']}-{version}",
            "text": f"Version {version}. {words[-1]}" if version else text,
        }


def config_for(folder: Path, source: Path, index: str) -> RunConfig:
    """Return the quickstart's configuration for another corpus."""
    return load_config(
        _ROOT / "conf/quickstart.yaml",
        [
            f"source.uri={source}",
            f"index.uri={folder / index}",
            "gate.max_deleted=1",
            "gate.max_changed=1",
        ],
    )


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds and the result of an action."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def start_up(folder: Path, name: str) -> list[float]:
    """Return the seconds of two runs that do little but load the model."""
    source = folder / name
    source.mkdir()
    table = pq.read_table(_ARTICLES).slice(0, 1).select(["id", "url", "title", "text"])
    pq.write_table(table.slice(0, 1), source / "one.parquet")
    config = config_for(folder, source, f"{name}-index")
    seconds = [timed(lambda: embed_corpus(config))[0]]
    short = table.set_column(3, "text", pa.array(["Another text."]))
    pq.write_table(short, source / "one.parquet")
    return [*seconds, timed(lambda: reindex(config))[0]]


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reindex-") as folder:
        yield Path(folder)


def largest_difference(one: RunConfig, other: RunConfig) -> float:
    """Return the largest difference of two indexes' dense vectors; inf if passages differ."""
    columns = ["passage_id", "passage_hash", "title", "dense"]
    tables = [
        open_index(c.index.uri).to_table(columns=columns).sort_by("passage_id")
        for c in (one, other)
    ]
    if not tables[0].drop_columns(["dense"]).equals(tables[1].drop_columns(["dense"])):
        return float("inf")
    numbers = [t["dense"].combine_chunks().flatten().to_numpy().astype(np.float32) for t in tables]
    return float(np.abs(numbers[0] - numbers[1]).max())


def changed_passages(config: RunConfig, before: int, after: int) -> int:
    """Count the passages of a generation that their document lacked in an earlier generation."""
    views = [
        open_index(config.index.uri, generation=number).to_table(["doc_id", "passage_hash"])
        for number in (before, after)
    ]
    old, new = (set(zip(*t.to_pydict().values(), strict=True)) for t in views)
    return len(new - old)


def measure(articles: Path, documents: int, shares: Sequence[float]) -> dict[str, Any]:
    """Measure all cases, one after another."""
    rows: list[dict[str, Any]] = []
    difference, changed = 0.0, None
    with _workplace() as folder:
        corpus = Corpus(folder / "corpus", articles, documents)
        config = config_for(folder, folder / "corpus", "index")
        with ray_session(config.ray):
            starts = start_up(folder, "first")
            full, manifest = timed(lambda: embed_corpus(config))
            _note(rows, "full build", full, manifest.counts)
            seconds, manifest = timed(lambda: reindex(config))
            _note(rows, "0 %, nothing touched", seconds, None)
            for share in shares:
                corpus.change(share)
                seconds, manifest = timed(lambda: reindex(config))
                touched = ", all touched and shuffled"
                _note(rows, f"{share:.0%}{touched}".replace("%", " %"), seconds, manifest.counts)
                if share == 0.01:
                    number = manifest.generation
                    changed = changed_passages(config, number - 1, number)
                    fresh = config_for(folder, folder / "corpus", "fresh")
                    again, _ = timed(lambda fresh=fresh: embed_corpus(fresh))
                    _note(rows, "full build again", again, None)
                    difference = largest_difference(config, fresh)
            starts += start_up(folder, "last")
    start = statistics.median(starts)
    whole = statistics.median([row["seconds"] for row in rows if "full" in row["case"]]) - start
    for row in rows:
        pays = "nothing touched" not in row["case"]
        row["without_start_up"] = round(max(row["seconds"] - start * pays, 0.0), 2)
        row["of_full_build"] = round(row["without_start_up"] / whole, 4)
    return {
        "benchmark": "reindex",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "documents": documents,
        "start_up_seconds": [round(seconds, 2) for seconds in starts],
        "passages_changed_by_1_percent": changed,
        "largest_difference_after_1_percent": difference,
        "rows": rows,
    }


def _note(rows: list[dict[str, Any]], case: str, seconds: float, counts: Counts | None) -> None:
    names = ("encoded", "reused", "unchanged", "replaced", "deleted")
    found = {name: getattr(counts, name) for name in names} if counts else {}
    rows.append({"case": case, "seconds": round(seconds, 2), **found})
    sys.stderr.write(f"{rows[-1]}\n")


def table(result: dict[str, Any]) -> str:
    """Format the result as a table for the terminal and docs/reindexing.md."""
    lines = [
        "| change | seconds | without start-up | of a full build | passages encoded | reused |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        encoded, reused = (f"{row[n]:,}" if n in row else "" for n in ("encoded", "reused"))
        lines.append(
            f"| {row['case']} | {row['seconds']:.1f} | {row['without_start_up']:.1f} | "
            f"{row['of_full_build']:.1%} | {encoded} | {reused} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write benchmarks/results/reindex.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=13_000)
    parser.add_argument("--articles", type=Path, default=_ARTICLES, help="a Parquet file or folder")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.01, 0.1, 1.0])
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    result = measure(options.articles, options.documents, options.shares)
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    difference = result["largest_difference_after_1_percent"]
    changed = result["passages_changed_by_1_percent"]
    sys.stdout.write(
        f"{table(result)}\nafter 1 %: {changed} passages changed; beside a fresh build: the same "
        f"passages, largest difference of a number {difference:.1e}\n"
    )
    if difference > _TOLERANCE:
        sys.exit("the live view is not that of a fresh build")


if __name__ == "__main__":
    main()
