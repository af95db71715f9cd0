"""A short chaos; `make chaos` is the long one."""

from __future__ import annotations

import re

import chaos
import chaos_reindex
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5])
def test_run_killed_at_random_moments_ends_with_the_undisturbed_runs_index(
    capsys: pytest.CaptureFixture[str], kills: int
) -> None:
    code = chaos.main(["--kills", f"{kills}", "--documents", "400", "--seconds-between", "1"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert re.search(rf"kills survived: {kills} .*lost 0, duplicated 0, rejected 0", said, re.S), (
        said
    )


@pytest.mark.slow
def test_reindexing_and_compaction_killed_at_random_moments_show_the_old_or_the_new_view(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--kills": 2, "--compactions": 2, "--documents": 200, "--seconds-between": 1}
    code = chaos_reindex.main([str(word) for pair in options.items() for word in pair])
    said = capsys.readouterr().out
    assert code == 0, said
    for name in ("re-indexing", "compaction"):
        assert sum(map(int, re.findall(rf"{name}: (\d+) kills", said))) == 2, said


def test_differences_of_vectors_are_seen() -> None:
    """What the comparison above rests on."""
    table = chaos.pa.table(
        {
            "dense": chaos.pa.array([[1.0, 2.0]], chaos.pa.list_(chaos.pa.float32(), 2)),
            "colbert": [[[1.0, 0.0]]],
            "sparse": [{"indices": [3], "values": [0.5]}],
        }
    )
    assert chaos.largest_difference(table, table) == 0
    for name, value in {
        "dense": [[1.0, 2.5]],
        "colbert": [[[1.0, 0.25]]],
        "sparse": [{"indices": [3], "values": [1.0]}],
    }.items():
        column = chaos.pa.array(value, table.schema.field(name).type)
        other = table.set_column(table.schema.names.index(name), name, column)
        assert chaos.largest_difference(table, other) >= 0.25
    other = table.set_column(2, "sparse", [[{"indices": [4], "values": [0.5]}]])
    assert chaos.largest_difference(table, other) == float("inf")
