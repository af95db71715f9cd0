"""Kills whatever a run consists of, again and again, and compares what it ends with.

    python tests/chaos.py --kills 25

Builds an index of the same articles undisturbed, and then under kills: SIGKILL hits the driver,
encoder actors, reading tasks and the raylet at random moments, and the same command is started
again until it has committed. A run that ends before the number of kills is reached is followed by
another one in an empty folder. Prints what was lost, duplicated and encoded twice; exits with code
1 where anything but work was.
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
from dataclasses import dataclass, field
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
MOST_RUNS = 20


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


@dataclass
class Comparison:
    """What the disturbed runs ended with, summed over them."""

    passages: int = 0
    lost: int = 0
    duplicated: int = 0
    rejected: int = 0
    encoded_twice: int = 0
    difference: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, disturbed: Path, expected: pa.Table) -> None:
        """Compare one finished index with the rows of the undisturbed one."""
        found = rows_of(disturbed)
        ids = [Counter(table["passage_id"].to_pylist()) for table in (expected, found)]
        self.passages += expected.num_rows
        self.lost += (lost := (ids[0] - ids[1]).total())
        self.duplicated += (duplicated := (ids[1] - ids[0]).total())
        self.rejected += open_index(str(disturbed)).rejects().num_rows
        self.encoded_twice += encoded_again(disturbed)
        self.problems += verify(open_store(str(disturbed)), deep=True).problems.lines()
        # Rows are compared by their place, so only where both hold the same passages.
        other = float("inf") if lost or duplicated else largest_difference(expected, found)
        self.difference = max(self.difference, other)

    @property
    def right(self) -> bool:
        """Nothing but work was lost."""
        wrong = self.lost or self.duplicated or self.rejected or self.problems
        return not wrong and self.difference <= TOLERANCE


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where every disturbed index equals the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--seconds-between", type=float, default=4.0, help="on average")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    kills, runs, sessions, compared = Counter[str](), 0, 0, Comparison()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        calm, began = Path(folder, "calm"), time.monotonic()
        subprocess.run(command(calm, options.documents), cwd=ROOT, check=True, capture_output=True)
        calm_seconds, began = time.monotonic() - began, time.monotonic()
        expected = rows_of(calm)
        while (left := options.kills - kills.total()) > 0 and runs < MOST_RUNS:
            disturbed = Path(folder, f"disturbed-{runs}")
            again = command(disturbed, options.documents)
            chaos = Chaos(again, left, options.seconds_between, options.seed + runs)
            chaos.run()
            runs, sessions, kills = runs + 1, sessions + chaos.sessions, kills + chaos.kills
            compared.add(disturbed, expected)
        seconds = time.monotonic() - began
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(kills.items()))
    sys.stdout.write(
        "".join(f"{line}\n" for line in compared.problems)
        + f"kills survived: {kills.total()} ({kinds}) in {sessions} sessions of {runs} runs, "
        f"{seconds:.0f} s; undisturbed {calm_seconds:.0f} s; seed {options.seed}\n"
        f"passages: {compared.passages:,} expected, lost {compared.lost}, "
        f"duplicated {compared.duplicated}, rejected {compared.rejected}\n"
        f"encoded twice: at most {compared.encoded_twice:,} passages, "
        f"{compared.encoded_twice / compared.passages:.1%} of all\n"
        f"largest difference of a vector's number: {compared.difference:.1e} "
        f"(allowed: {TOLERANCE:g})\n"
        f"verify_index --deep: {len(compared.problems)} problems\n"
    )
    enough = kills.total() >= options.kills
    if not enough:
        sys.stdout.write(f"too few kills: {runs} runs were over before {options.kills} of them\n")
    return 0 if compared.right and enough else 1


if __name__ == "__main__":
    sys.exit(main())
