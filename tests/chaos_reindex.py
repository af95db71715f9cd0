"""Kills re-indexing and compaction, again and again, while a reader looks: it sees old or new.

    python tests/chaos_reindex.py --kills 12

An index of articles is built, its source changed, and the re-indexing run killed (SIGKILL) at
random moments, then the compaction. Meanwhile a reader opens the index over and over: each time the
rows it sees must be those before or those after. Exit code 1 where they were not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from chaos import (
    MOST_RUNS,
    ROOT,
    SETTINGS,
    SHARE_OF_STARTS,
    Chaos,
    largest_difference,
    rows_of,
)

from pipelines.index import open_index
from pipelines.store import open_store
from pipelines.verify_index import verify

ARTICLES = ROOT / "conf/data/simplewiki-1200.parquet"
FILES = 6
EDITED_SHARE = 0.3


class Watcher:
    """Opens the live view until it is stopped, and notes which state it was."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: Counter[frozenset[tuple[str, bytes]]] = Counter()
        self.errors: list[str] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.seen[state_of(self._index)] += 1
            except Exception as error:  # noqa: BLE001  what a reader must never meet
                self.errors.append(f"{type(error).__name__}: {error}")


def state_of(index: Path) -> frozenset[tuple[str, bytes]]:
    """The live passages and what is in them."""
    table = open_index(str(index)).to_table(columns=["passage_id", "passage_hash"])
    columns = (table[name].to_pylist() for name in table.column_names)
    return frozenset(zip(*columns, strict=True))


def write_source(folder: Path, documents: int, *, edited: bool) -> None:
    """Articles in files; edited: texts changed, documents gone and come, moved between files."""
    folder.mkdir(exist_ok=True)
    rows = pq.read_table(ARTICLES).slice(0, documents + documents // 10).to_pylist()
    rows, more = rows[:documents], rows[documents:]
    if edited:
        chooser = random.Random(5)
        for row in chooser.sample(rows, int(EDITED_SHARE * documents)):
            row["text"] += " This sentence is new."
        rows = chooser.sample(rows, documents - documents // 10) + more
    schema = pq.read_schema(ARTICLES)
    for number in range(FILES):
        mine = pa.Table.from_pylist(rows[number::FILES], schema.remove_metadata())
        pq.write_table(mine, folder / f"{number}.parquet")


def command(module: str, source: Path, index: Path) -> list[str]:
    """A run over the articles; every slice is so small that a kill finds many to be done."""
    settings = [f"source.uri={source}", f"index.uri={index}", "gate.max_deleted=1", *SETTINGS]
    run = [sys.executable, "-m", module, "conf/debug.yaml"]
    return [*run, *(word for setting in settings for word in ("--set", setting))]


def disturb(name: str, chaos: Chaos, index: Path) -> list[str]:
    """Run to its end under kills; what was wrong meanwhile."""
    before, began = state_of(index), time.monotonic()
    with Watcher(index) as watcher:
        chaos.run()
    after = state_of(index)
    others = [state for state in watcher.seen if state not in (before, after)]
    sys.stdout.write(
        f"{name}: {chaos.kills.total()} kills in {chaos.sessions} sessions, "
        f"{time.monotonic() - began:.0f} s; the live view was read {watcher.seen.total():,} times: "
        f"{watcher.seen[before]:,} times as before, "
        f"{watcher.seen[after] if after != before else 0:,} as after, {len(others)} as neither; "
        f"{len(watcher.errors)} errors\n"
    )
    wrong = [f"{name}: {error}" for error in watcher.errors[:3]]
    wrong += [f"{name}: a view of neither state" for _ in others]
    problems = verify(open_store(str(index)), deep=True).problems
    return wrong + problems.lines()


def disturb_until(
    name: str,
    arguments: Sequence[str],
    index: Path,
    kills: int,
    *,
    between: float,
    seed: int,
    share_of_starts: float = SHARE_OF_STARTS,
) -> list[str]:
    """Run the command on copies of one index until `kills` kills have hit; what was wrong."""
    kept, left, wrong = index.with_name(f"before-{name}"), kills, list[str]()
    shutil.copytree(index, kept)
    for number in range(MOST_RUNS):
        if number:
            shutil.rmtree(index)
            shutil.copytree(kept, index)
        chaos = Chaos(arguments, left, between, seed + number, share_of_starts)
        wrong += disturb(name, chaos, index)
        left -= chaos.kills.total()
        if left <= 0 or wrong:
            return wrong
    return [f"{name}: too few kills: {kills - left} in {MOST_RUNS} runs"]


def disturb_compaction(index: Path, kills: int, seed: int) -> list[str]:
    """Kill compaction at any moment; the rows must stay what they were."""
    found = rows_of(index)
    arguments = [sys.executable, "-m", "pipelines.compact_index", str(index), "--force"]
    trial = index.with_name("trial")
    shutil.copytree(index, trial)
    began = time.monotonic()
    run_calmly([str(trial) if word == str(index) else word for word in arguments])
    between = (time.monotonic() - began) / 2
    wrong = disturb_until(
        "compaction", arguments, index, kills, between=between, seed=seed, share_of_starts=1
    )
    if not rows_of(index).equals(found):
        wrong.append("compaction: another view than before")
    return wrong


def run_calmly(arguments: Sequence[str]) -> None:
    """To its end, undisturbed."""
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where every look was at the old or the new state, and the end is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--compactions", type=int, default=12, help="kills of the compaction")
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--seconds-between", type=float, default=3.0, help="on average")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        source, index, fresh = (Path(folder, name) for name in ("source", "index", "fresh"))
        write_source(source, options.documents, edited=False)
        run_calmly(command("pipelines.embed_corpus", source, index))
        write_source(source, options.documents, edited=True)
        again = command("pipelines.reindex", source, index)
        wrong = disturb_until(
            "re-indexing",
            again,
            index,
            options.kills,
            between=options.seconds_between,
            seed=options.seed,
        )
        run_calmly(command("pipelines.embed_corpus", source, fresh))
        expected, found = rows_of(fresh), rows_of(index)
        if expected["passage_id"].to_pylist() != found["passage_id"].to_pylist():
            wrong.append("re-indexing: other passages than a fresh build has")
        difference = largest_difference(expected, found)
        sys.stdout.write(f"largest difference from a fresh build: {difference:.1e}\n")
        if options.compactions:
            wrong += disturb_compaction(index, options.compactions, options.seed)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong or difference > 2e-3 else 0


if __name__ == "__main__":
    sys.exit(main())
