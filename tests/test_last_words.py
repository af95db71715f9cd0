"""What processes say before they die, and how a passage that kills is found from it."""

from __future__ import annotations

import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import EmbedError
from pipelines.encode.crash_journal import (
    DEATHS_ALONE,
    MOST_DEATHS,
    MOST_STARTS,
    PIECES,
    CrashJournal,
    SliceSlots,
    describe_journal,
    is_hopeless,
    pieces,
    read_journal,
)
from pipelines.store import open_store

SLICE = "000001-0000000000"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "index"))


def one(store, session="s1", worker="host:1"):
    words = CrashJournal(store, "run", session, worker)
    words.loaded()
    return words


# Pieces


@given(n=st.integers(0, 5000), data=st.data())
def test_pieces_cover_the_slice_in_order_whatever_died(n, data):
    bounds = st.integers(0, n)
    died = data.draw(st.lists(st.tuples(bounds, bounds), max_size=5))
    cut = [*pieces(n, Counter([(0, n), *died]))]
    assert [cut[0][0] if cut else 0, cut[-1][1] if cut else n] == [0, n]
    assert all(before[1] == after[0] for before, after in pairwise(cut))
    assert all(start < stop for start, stop in cut) or n == 0


def test_pieces_of_a_slice_nobody_died_on_are_the_slice():
    assert [*pieces(500, Counter())] == [(0, 500)]


def test_pieces_only_what_was_died_on_is_cut_again():
    cut = [*pieces(6400, Counter({(0, 6400): 1, (100, 200): 1}))]
    assert cut[:3] == [(0, 100), (100, 102), (102, 104)]
    assert cut[-1] == (6300, 6400)
    assert len(cut) == PIECES - 1 + 50


def killed(n, killers):
    """(passages given up, deaths until a slice is through) of a slice with such passages."""
    deaths: Counter[tuple[int, int]] = Counter()
    while True:
        rejected = set()
        for piece in pieces(n, deaths):
            if is_hopeless(piece, deaths):
                rejected.add(piece[0])
            elif not killers.isdisjoint(range(*piece)):
                deaths[piece] += 1
                break
        else:
            return rejected, deaths.total()


@given(n=st.integers(1, 20_000), data=st.data())
def test_passage_that_always_kills_is_the_only_one_given_up(n, data):
    killer = data.draw(st.integers(0, n - 1))
    rejected, deaths = killed(n, {killer})
    assert rejected == {killer}
    assert DEATHS_ALONE <= deaths <= DEATHS_ALONE + math.ceil(math.log(n, PIECES))


@given(n=st.integers(1, 2000), data=st.data())
def test_several_passages_that_kill_are_all_found(n, data):
    killers = data.draw(st.sets(st.integers(0, n - 1), max_size=5))
    rejected, deaths = killed(n, killers)
    assert rejected == killers
    assert deaths <= len(killers) * (DEATHS_ALONE + 2) <= MOST_DEATHS


# Words


def test_words_of_a_process_that_died_are_heard_by_the_next(store):
    first = one(store)
    with pytest.raises(SystemExit), first.announced(SLICE, (0, 90), careful=False):
        raise SystemExit
    assert one(store).deaths(SLICE) == {(0, 90): 1}
    assert one(store).deaths("000001-0000000100") == {}
    assert first.deaths(SLICE) == {}  # its own words are no news to it


def test_words_of_several_sessions_add_up(store):
    for session in ("s1", "s2", "s2"):
        with pytest.raises(SystemExit), one(store, session).announced(SLICE, (3, 4), careful=True):
            raise SystemExit
    assert one(store, "s3").deaths(SLICE) == {(3, 4): 3}


def test_words_after_careful_work_blame_nothing(store):
    with one(store).announced(SLICE, (3, 4), careful=True):
        pass
    assert one(store).deaths(SLICE) == {}


def test_words_of_two_slices_at_once_blame_both(store):
    words, other = one(store), "000002-0000000000"
    with (
        pytest.raises(SystemExit),
        words.announced(SLICE, (0, 9), careful=False),
        words.announced(other, (0, 7), careful=False),
    ):
        raise SystemExit
    heard = one(store)
    assert (heard.deaths(SLICE), heard.deaths(other)) == ({(0, 9): 1}, {(0, 7): 1})


def test_words_of_finished_work_are_gone_with_the_next(store):
    words = one(store)
    with words.announced(SLICE, (0, 9), careful=False):
        pass
    with pytest.raises(SystemExit), words.announced("000002-0000000000", (0, 7), careful=False):
        raise SystemExit
    assert one(store).deaths(SLICE) == {}


def test_words_said_by_many_threads_are_the_last_ones(store):
    words = one(store)

    def work(number):
        for _ in range(5):
            with words.announced(f"{number:06d}-0000000000", (0, 1), careful=number % 2 == 0):
                pass
        words._say("end", None)

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(work, range(8))]
    [said] = read_journal(store, "run").values()
    assert (said.worker, said.at) == ("host:1", {})


def test_deaths_beyond_what_one_run_may_take_stop_it_naming_the_slice(store):
    for number in range(MOST_DEATHS + 1):
        one(store).deaths(SLICE)  # not yet
        with pytest.raises(SystemExit), one(store).announced(SLICE, (0, number), careful=True):
            raise SystemExit
    with pytest.raises(EmbedError, match=f"{SLICE}.*died {MOST_DEATHS + 1} times") as caught:
        one(store).deaths(SLICE)
    assert "run the command again: finished slices are kept" in caught.value.remedy
    assert one(store, "s2").deaths(SLICE).total() == MOST_DEATHS + 1  # another try goes on


def test_processes_that_die_before_they_have_a_model_end_the_run(store):
    for _ in range(2 * MOST_STARTS):
        CrashJournal(store, "run", "s1", "host:1", actors=2)
    CrashJournal(store, "run", "s2", "host:1", actors=2)  # another try starts anew
    with pytest.raises(EmbedError, match=f"{2 * MOST_STARTS} more processes that died"):
        CrashJournal(store, "run", "s1", "host:1", actors=2)


def test_processes_that_die_loading_now_and_then_end_nothing(store):
    for _ in range(3 * MOST_STARTS):
        CrashJournal(store, "run", "s1", "host:1")
        one(store)


def test_processes_that_had_a_model_do_not_count_as_failed_starts(store):
    for _ in range(MOST_STARTS + 2):
        one(store)


def test_describe_words_names_slices_and_workers_of_the_session(store):
    assert describe_journal(store, "run", "s1") == ""
    for session in ("s1", "s2"):
        words = one(store, session, f"h:{session}")
        with pytest.raises(SystemExit), words.announced(SLICE, (0, 1), careful=True):
            raise SystemExit
    assert describe_journal(store, "run", "s1") == f" (last begun: slice {SLICE} in h:s1)"


# Turns


def test_turns_alone_waits_for_the_others_and_keeps_them_out():
    turns, inside, seen = SliceSlots(3), Counter(), []

    def work(number):
        alone = number % 3 == 0
        with turns.take(alone=alone):
            inside[alone] += 1
            seen.append((alone, inside[True], inside[False]))
            threading.Event().wait(0.002)
            inside[alone] -= 1

    with ThreadPoolExecutor(3) as pool:
        [*pool.map(work, range(60))]
    assert all(others == 0 and mine == 1 for alone, mine, others in seen if alone)
    assert all(mine == 0 for alone, mine, _ in seen if not alone)
    assert max(others for alone, _, others in seen if not alone) > 1
