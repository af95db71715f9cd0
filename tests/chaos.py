"""Kills whatever a run consists of, again and again, and compares what it ends with.

    python tests/chaos.py --kills 25

Two indexes of the same articles: one whose run nobody disturbs, and one whose driver, encoder
actors, reading tasks and raylet are killed (SIGKILL) at random moments; the same command is started
again until it has committed. Prints what was lost, doubled and done twice; exit code 1 where
anything but work is.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from pipelines.encode.crash_journal import read_journal
from pipelines.index import open_index
from pipelines.index.layout import slice_name
from pipelines.plan.plan import read_done
from pipelines.store import open_store
from pipelines.verify_index import verify

ROOT = Path(__file__).parent.parent
SETTINGS = ("slice.documents=4", "model.dtype=float32", "ray.stuck_minutes=3")
TOLERANCE = 2e-3  # fp16 as stored; a piece of a slice is another batch
WEIGHTS = {"encoder": 5, "driver": 3, "reader": 3, "raylet": 1}
SHARE_OF_STARTS = 0.2
MOST_SESSIONS = 100


class Chaos:
    """A run that is killed until it has had enough, and finishes."""

    def __init__(
        self,
        arguments: Sequence[str],
        kills: int,
        seconds_between: float,
        seed: int,
        share_of_starts: float = SHARE_OF_STARTS,
    ) -> None:
        """`share_of_starts`: of the kills that would hit a run without an encoder yet."""
        self.kills: Counter[str] = Counter()
        self.sessions = 0
        self._arguments = arguments
        self._wanted, self._seconds_between = kills, seconds_between
        self._share_of_starts = share_of_starts
        self._random = random.Random(seed)
        self._seen: dict[int, psutil.Process] = {}

    def run(self) -> None:
        """Start the command until it ends well."""
        try:
            while True:
                self.sessions += 1
                with tempfile.TemporaryFile() as log:
                    driver = psutil.Popen(self._arguments, cwd=ROOT, stderr=log)
                    code = self._disturb(driver)
                    log.seek(0)
                    said = log.read().decode(errors="replace")
                if code == 0:
                    return
                if self.sessions >= MOST_SESSIONS:
                    raise SystemExit(f"not done after {self.sessions} sessions:\n{said}")
        finally:
            self._end_everything()

    def _disturb(self, driver: psutil.Popen) -> int:
        while driver.poll() is None:
            pause = self._random.uniform(0, 2 * self._seconds_between)
            with suppress(psutil.TimeoutExpired):
                return driver.wait(pause)
            if self.kills.total() < self._wanted:
                self._kill_one(driver)
        return driver.wait()

    def _kill_one(self, driver: psutil.Popen) -> None:
        found: dict[str, list[psutil.Process]] = {"driver": [driver]}
        with suppress(psutil.NoSuchProcess):
            for process in driver.children(recursive=True):
                self._seen[process.pid] = process
                if kind := kind_of(process):
                    found.setdefault(kind, []).append(process)
        if "encoder" not in found and self._random.random() > self._share_of_starts:
            return  # else hardly a session would get beyond its start
        kinds = sorted(found)
        kind = self._random.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        with suppress(psutil.NoSuchProcess):
            self._random.choice(found[kind]).kill()
            self.kills[kind] += 1

    def _end_everything(self) -> None:
        """What killed drivers left behind; their pids may be others' by now, so ask."""
        left = [process for process in self._seen.values() if process.is_running()]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def kind_of(process: psutil.Process) -> str | None:
    """What a process below a driver is for."""
    name = " ".join(process.cmdline()[:1])
    if "SliceEncoder" in name:
        return "encoder"
    if "read_rows" in name:
        return "reader"
    return "raylet" if name.endswith("/raylet") else None


def command(index: Path, documents: int) -> list[str]:
    """The command whose run is disturbed."""
    settings = [f"index.uri={index}", f"source.limit={documents}", *SETTINGS]
    run = [sys.executable, "-m", "pipelines.embed_corpus", "conf/debug.yaml"]
    return [*run, *(word for setting in settings for word in ("--set", setting))]


def rows_of(index: Path) -> pa.Table:
    """All live rows."""
    return open_index(str(index)).to_table().sort_by("passage_id")


def largest_difference(one: pa.Table, other: pa.Table) -> float:
    """Between the numbers of two tables' vectors; Inf where they are not as many."""
    differences = [0.0]
    for name in ("dense", "colbert", "sparse"):
        columns = [table[name].combine_chunks() for table in (one, other)]
        if name == "sparse":
            if columns[0].field("indices") != columns[1].field("indices"):
                return float("inf")
            columns = [column.field("values") for column in columns]
        numbers = []
        for column in columns:
            while not pa.types.is_floating(column.type):
                column = column.flatten()
            numbers.append(column.to_numpy(zero_copy_only=False).astype(np.float32))
        if len(numbers[0]) != len(numbers[1]):
            return float("inf")
        differences.append(float(np.abs(numbers[0] - numbers[1]).max(initial=0)))
    return max(differences)


def encoded_again(index: Path) -> int:
    """At most so many passages: those a process was at, or past, when it was killed."""
    store, run_id = open_store(str(index)), open_index(str(index)).info.run_id
    done = {slice_name(d.unit, d.first_document): d for d in read_done(store, run_id)}
    return sum(
        stop
        for words in read_journal(store, run_id).values()
        for name, (_, stop) in words.at.items()
        if done[name].encoder.worker != words.worker
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where the two indexes are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--seconds-between", type=float, default=4.0, help="on average")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    say = sys.stdout.write
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        calm, disturbed = Path(folder, "calm"), Path(folder, "disturbed")
        began = time.monotonic()
        subprocess.run(command(calm, options.documents), cwd=ROOT, check=True, capture_output=True)
        calm_seconds, began = time.monotonic() - began, time.monotonic()
        kills, between = options.kills, options.seconds_between
        chaos = Chaos(command(disturbed, options.documents), kills, between, options.seed)
        chaos.run()
        seconds = time.monotonic() - began
        problems = verify(open_store(str(disturbed)), deep=True).problems
        expected, found = rows_of(calm), rows_of(disturbed)
        ids = [Counter(table["passage_id"].to_pylist()) for table in (expected, found)]
        lost, doubled = (ids[0] - ids[1]).total(), (ids[1] - ids[0]).total()
        rejected = open_index(str(disturbed)).rejects().num_rows
        difference = float("inf") if lost or doubled else largest_difference(expected, found)
        again = encoded_again(disturbed)
        say("".join(f"{line}\n" for line in problems.lines()))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(chaos.kills.items()))
    say(
        f"kills survived: {chaos.kills.total()} ({kinds}) in {chaos.sessions} sessions, "
        f"{seconds:.0f} s; undisturbed {calm_seconds:.0f} s; seed {options.seed}\n"
        f"passages: {expected.num_rows:,} expected, lost {lost}, duplicated {doubled}, "
        f"rejected {rejected}\n"
        f"encoded twice: at most {again:,} passages, {again / expected.num_rows:.1%} of all\n"
        f"largest difference of a vector's number: {difference:.1e} (allowed: {TOLERANCE:g})\n"
        f"verify_index --deep: {problems.count} problems\n"
    )
    enough = chaos.kills.total() >= options.kills
    if not enough:
        say(f"too few kills: the run was over before {options.kills} of them\n")
    right = not (lost or doubled or rejected or problems.count) and difference <= TOLERANCE
    return 0 if right and enough else 1


if __name__ == "__main__":
    sys.exit(main())
