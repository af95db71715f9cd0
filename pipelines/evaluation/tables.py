"""An evaluation in a terminal, and what is said of numbers in every report of one."""

from __future__ import annotations

from rich import box
from rich.table import Table

from pipelines.evaluation.metrics import MEASURES, Mean
from pipelines.evaluation.results import DatasetFacts, Evaluation, compare_evaluations
from pipelines.evaluation.significance import PERMUTATIONS


def table(evaluation: Evaluation) -> Table:
    """Every mode with its measures, their intervals, and p against the baseline."""
    shown = Table(box=box.SIMPLE, caption=explained(evaluation), caption_justify="left")
    shown.add_column("mode", no_wrap=True)
    for name in MEASURES:
        shown.add_column(name, no_wrap=True, justify="right")
    shown.add_column("p", no_wrap=True, justify="right")
    for mode in evaluation.modes:
        against = mode.against_baseline.get(MEASURES[0])
        cells = [
            f"{mode.measures[name].mean:.3f}\n{interval(mode.measures[name])}" for name in MEASURES
        ]
        shown.add_row(mode.name, *cells, in_words(against.p_holm) if against else "")
    return shown


COMPARED = ("mode", "measure", "before", "after", "difference", "p", "won/lost/tied")
"""What `comparison_rows` gives."""


def comparison_table(before: Evaluation, after: Evaluation) -> Table:
    """Every mode that both have, by every measure: the second against the first.

    Raises:
        ConfigError: no mode in common, or other queries.
    """
    rows = comparison_rows(before, after)
    caption = f"p: {test_named(len(rows) // len(MEASURES))}"
    shown = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for i, name in enumerate(COMPARED):
        shown.add_column(name, no_wrap=True, justify="left" if i < 2 else "right")
    for row in rows:
        shown.add_row(*row)
    return shown


def comparison_rows(before: Evaluation, after: Evaluation) -> list[list[str]]:
    """Of COMPARED, a row a measure of each mode; raises as `comparison_table`."""
    rows = []
    for mode, compared in compare_evaluations(before, after).items():
        for i, (name, of) in enumerate(compared.items()):
            means = [each.mode(mode).measures[name].mean for each in (before, after)]
            rows.append(
                [
                    "" if i else mode,
                    name,
                    *(f"{mean:.3f}" for mean in means),
                    f"{of.difference:+.3f}",
                    in_words(of.p_holm),
                    f"{of.wins:,}/{of.losses:,}/{of.ties:,}",
                ]
            )
    return rows


def explained(evaluation: Evaluation) -> str:
    """What intervals and p mean."""
    n = len(evaluation.modes)
    queries = len(evaluation.query_ids)
    return (
        f"Mean of {queries:,} queries and its {evaluation.confidence:.0%} bootstrap interval. "
        f"p: {MEASURES[0]} against {evaluation.baseline}, {test_named(n - 1)}."
    )


def unknown_said(dataset: DatasetFacts) -> str:
    """That relevant documents are not in the index; nothing where all are."""
    if not dataset.unknown_documents:
        return ""
    return (
        f"{dataset.unknown_documents:,} of {dataset.relevant_documents:,} relevant documents "
        "are not in the index: no mode can find them."
    )


def test_named(comparisons: int) -> str:
    """Which test p values are of."""
    corrected = ", Holm-corrected" if comparisons > 1 else ""
    return f"paired permutation test ({PERMUTATIONS:,}){corrected}"


def interval(mean: Mean) -> str:
    """Its bounds."""
    return f"{mean.low:.3f}–{mean.high:.3f}"


def in_words(p: float) -> str:
    """A p value in three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
