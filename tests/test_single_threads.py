"""A pool of single threads: each computes alone, failures come out, torch's number stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from actors.batch_runner import SingleThreads


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [2, 3])
def test_run_gives_each_piece_one_thread_that_computes_alone(threads: int) -> None:
    torch.set_num_threads(threads)
    together = threading.Barrier(threads, timeout=60)
    seen: list[tuple[int, int]] = []

    def work(piece: int) -> None:
        together.wait()  # no thread takes two
        torch.ones(200, 200) @ torch.ones(200, 200)
        seen.append((piece, torch.get_num_threads()))

    pools = SingleThreads()
    for _ in range(2):
        seen.clear()
        pools.run(work, range(threads))
        assert sorted(seen) == [(piece, 1) for piece in range(threads)]
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("threads", "pieces"), [(1, 3), (2, 1)])
def test_run_of_one_piece_or_one_thread_stays_in_this_thread(threads: int, pieces: int) -> None:
    torch.set_num_threads(threads)
    seen: list[tuple[str, int]] = []
    SingleThreads().run(
        lambda _: seen.append((threading.current_thread().name, torch.get_num_threads())),
        range(pieces),
    )
    assert seen == [(threading.current_thread().name, threads)] * pieces


def test_run_raises_what_the_first_piece_that_fails_does() -> None:
    torch.set_num_threads(2)

    def work(piece: int) -> None:
        if piece:
            raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 1"):
        SingleThreads().run(work, range(4))
