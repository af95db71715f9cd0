"""An evaluation to look at: eval.json read back, and what it names read where it still is."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged_by_hand import GOOD, POOR, evaluation, evaluation_of_files

from actors.errors import ConfigError, SourceError
from pipelines.evaluation.report import look_at
from pipelines.reports.html import Chart, Note, Section, Table


def written(folder: Path, found, name: str = "eval.json") -> str:
    (folder / name).write_bytes(found.to_bytes())
    return str(folder / name)


def charts(shown: Section | Note) -> list[Chart]:
    assert isinstance(shown, Section)
    return [block for block in shown.blocks if isinstance(block, Chart)]


def test_look_at_a_written_evaluation_shows_modes_and_gains(tmp_path: Path) -> None:
    seen = look_at(written(tmp_path, evaluation()))
    summary = seen.summary()
    (table,) = [block for block in summary.blocks if isinstance(block, Table)]
    assert [row[0] for row in table.rows] == ["dense", "sparse", "colbert"]
    assert "search, s" not in table.header
    assert [chart.title for chart in charts(summary)] == ["nDCG@10", "R@100", "RR@10", "AP"]
    titles = [chart.title for chart in charts(seen.gains())]
    assert titles == ["sparse minus dense", "colbert minus dense"]
    assert "1.000–1.000" in summary._repr_html_()


def test_lengths_are_those_of_the_ledger(tmp_path: Path) -> None:
    seen = look_at(written(tmp_path, evaluation_of_files(tmp_path)))
    shown = charts(seen.lengths())
    assert [chart.title for chart in shown] == ["dense", "sparse", "colbert"]
    axes = shown[1].figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n9"]
    middles = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 1]
    assert middles == [12]  # 3 tokens a passage: 3, 6, ..., 24, and d0 once more


def test_lengths_of_what_is_gone_are_a_note(tmp_path: Path) -> None:
    note = look_at(written(tmp_path, evaluation())).lengths()
    assert isinstance(note, Note)
    assert note.text.startswith("Lengths of documents are unknown: queries.jsonl: expected a fi")


def test_gains_of_one_mode_are_a_note(tmp_path: Path) -> None:
    note = look_at(written(tmp_path, evaluation({"dense": POOR}))).gains()
    assert isinstance(note, Note)
    assert note.text.startswith("dense is the only mode")


def test_evaluation_against_another_shows_all_measures_and_draws_what_changed(
    tmp_path: Path,
) -> None:
    before = written(tmp_path, evaluation({"dense": POOR, "sparse": GOOD}), "before.json")
    seen = look_at(written(tmp_path, evaluation({"dense": GOOD, "sparse": GOOD})))
    shown = seen.against(before)
    assert [chart.title for chart in charts(shown)] == ["dense: after minus before"]
    assert isinstance(shown, Section)
    (table,) = [block for block in shown.blocks if isinstance(block, Table)]
    assert len(table.rows) == 8
    assert table.rows[0][:3] == ["dense", "nDCG@10", "0.565"]
    assert table.rows[0][-1] == "9/0/0"
    assert shown.lead.startswith("Before: generation 2 of out/[x], m, 2026-01-01T00:00:00Z. After:")
    assert isinstance(seen.against(None), Note)


def test_evaluation_against_other_queries_or_no_file_is_refused(tmp_path: Path) -> None:
    seen = look_at(written(tmp_path, evaluation()))
    other = written(tmp_path, evaluation({"dense": {}}, {"other": {"d": 1}}), "other.json")
    with pytest.raises(ConfigError):
        seen.against(other)
    with pytest.raises(SourceError, match="expected a file, found none"):
        seen.against(str(tmp_path / "none.json"))
