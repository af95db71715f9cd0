"""Define the record of an evaluation, and show it as tables in a terminal.

The fields are the keys of eval.json. Lists of numbers are in the order of `query_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError
from rich import box
from rich.table import Table

from actors.errors import ConfigError, SourceError
from pipelines.config.loading import describe_invalid
from pipelines.evaluation.dataset import JudgedQueries, Options, Qrels, Rankings, numbered_lines
from pipelines.evaluation.measures import (
    CONFIDENCE,
    MEASURES,
    PERMUTATIONS,
    RESAMPLES,
    Compared,
    Comparison,
    Mean,
    PerQuery,
    compare_all,
    compare_pairs,
    first_relevant,
    mean_of,
    measure,
    without_identical_ids,
)
from pipelines.index.records import JsonRecord


class ModeResult(JsonRecord):
    """The results of one mode of search, or of a run of another system."""

    name: str
    """dense, sparse, colbert, hybrid, rrf, bm25, or the name of a run."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the mode, such as weights, k1 or the tokenisation."""
    measures: dict[str, Mean]
    """Measure -> mean over the queries with its confidence interval."""
    against_baseline: dict[str, Comparison] = Field(default_factory=dict)
    """Measure -> comparison of this mode with the baseline; empty for the baseline."""
    per_query: dict[str, list[float]]
    """Measure -> value of each query."""
    first_relevant: list[tuple[int, str] | None]
    """Rank, from 1, and id of each query's first relevant document; null if none was found."""
    top: list[str | None]
    """The best document of each query; null if none was found."""


class IndexFacts(JsonRecord):
    """The index that was searched."""

    uri: str
    generation: int
    model: str
    revision: str | None = None
    space_fingerprint: str
    documents: int
    passages: int


class DatasetFacts(JsonRecord):
    """The judged queries that were searched for."""

    queries: str
    """The URI of the queries."""
    qrels: str
    judged_queries: int
    judgements: int
    relevant_documents: int
    """The number of documents that are relevant for at least one query."""
    unknown_documents: int
    """The number of relevant documents that are not in the index. No mode can find them."""

    @classmethod
    def of(cls, judged: JudgedQueries, queries: str, qrels: str, unknown: int) -> DatasetFacts:
        """Count judged queries. `unknown`: the number of relevant documents not in the index."""
        return cls(
            queries=queries,
            qrels=qrels,
            judged_queries=len(judged.queries),
            judgements=judged.judgements,
            relevant_documents=len(judged.relevant()),
            unknown_documents=unknown,
        )


class Evaluation(JsonRecord):
    """The results of all modes on one index and one dataset."""

    format_version: Literal[1] = 1
    started: str
    """The start time, ISO 8601 in UTC."""
    index: IndexFacts
    dataset: DatasetFacts
    baseline: str
    """The mode that the others are compared with."""
    ignore_identical_ids: bool = False
    """Whether documents with the id of the query were removed from the rankings."""
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    permutations: int = PERMUTATIONS
    seconds: dict[str, float] = Field(default_factory=dict)
    """The seconds per step for all queries: encode, search (all modes share its passes), bm25."""
    versions: dict[str, str] = Field(default_factory=dict)
    query_ids: list[str]
    """Ids of the judged queries, sorted."""
    modes: list[ModeResult]

    def mode(self, name: str) -> ModeResult:
        """Return the results of a mode.

        Raises:
            ConfigError: no such mode.
        """
        found = {mode.name: mode for mode in self.modes}
        if name not in found:
            raise ConfigError(f"evaluation: expected the mode {name!r}, found {', '.join(found)}.")
        return found[name]

    def per_query(self, name: str) -> PerQuery:
        """Return the measures of each query in a mode."""
        found = self.mode(name).per_query
        return PerQuery(tuple(self.query_ids), {name: np.array(found[name]) for name in MEASURES})


def evaluate_modes(
    qrels: Qrels,
    rankings: Mapping[str, Rankings],
    *,
    baseline: str = "dense",
    ignore_identical_ids: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ModeResult]:
    """Measure every mode and compare it with the baseline. Keeps the order of `rankings`.

    Raises:
        ConfigError: no such baseline, or ir-measures is not installed.
    """
    if baseline not in rankings:
        raise ConfigError(
            f"evaluation: expected the baseline {baseline!r}, found {', '.join(rankings)}."
        )
    if ignore_identical_ids:
        rankings = {name: without_identical_ids(each) for name, each in rankings.items()}
    measured = {name: measure(qrels, each) for name, each in rankings.items()}
    others = {name: each for name, each in measured.items() if name != baseline}
    compared = compare_all(measured[baseline], others)
    firsts = {name: first_relevant(qrels, each) for name, each in rankings.items()}
    return [
        ModeResult(
            name=name,
            settings=dict((settings or {}).get(name, {})),
            measures={each: mean_of(per_query, each) for each in MEASURES},
            against_baseline=compared.get(name, {}),
            per_query={each: per_query.values[each].tolist() for each in MEASURES},
            first_relevant=[firsts[name][query] for query in per_query.query_ids],
            top=[next(iter(rankings[name].get(q, ())), None) for q in per_query.query_ids],
        )
        for name, per_query in measured.items()
    ]


def compare_evaluations(before: Evaluation, after: Evaluation) -> Compared:
    """Compare the modes that both evaluations have, `after` with `before`.

    For each measure, p values are corrected over the modes.

    Raises:
        ConfigError: no mode in common, or other queries.
    """
    names = [mode.name for mode in before.modes if mode.name in {m.name for m in after.modes}]
    if not names:
        raise ConfigError("comparison: expected a mode that both evaluations have, found none.")
    return compare_pairs({name: (before.per_query(name), after.per_query(name)) for name in names})


def read_evaluation(uri: str, storage_options: Options | None = None) -> Evaluation:
    """Read an eval.json from a local path or any URI of fsspec.

    Raises:
        SourceError: the file does not exist, or this version cannot read it.
    """
    text = "\n".join(line for _, line in numbered_lines(uri, storage_options))
    try:
        return Evaluation.model_validate_json(text)
    except ValidationError as error:
        raise SourceError(
            describe_invalid(error, uri), "Evaluate the index again with this version."
        ) from None


def table(evaluation: Evaluation) -> Table:
    """Return a table of every mode's measures, intervals and p against the baseline."""
    rows = []
    for mode in evaluation.modes:
        cells = [
            f"{mode.measures[name].mean:.3f}\n{interval(mode.measures[name])}" for name in MEASURES
        ]
        rows.append([mode.name, *cells, p_against_baseline(mode)])
    return _grid(("mode", *MEASURES, "p"), rows, explained(evaluation), names=1)


COMPARED = ("mode", "measure", "before", "after", "difference", "p", "won/lost/tied")
"""The columns of `comparison_rows`."""


def comparison_table(before: Evaluation, after: Evaluation) -> Table:
    """Return a table that compares the modes of both evaluations by every measure.

    Raises:
        ConfigError: no mode in common, or other queries.
    """
    compared = compare_evaluations(before, after)
    rows = comparison_rows(before, after, compared)
    return _grid(COMPARED, rows, f"p: {test_named(len(compared))}", names=2)


def _grid(header: Sequence[str], rows: list[list[str]], caption: str, *, names: int) -> Table:
    """Return a table in which the first `names` columns are names and the others numbers."""
    shown = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        shown.add_column(name, no_wrap=True, justify="left" if i < names else "right")
    for row in rows:
        shown.add_row(*row)
    return shown


def comparison_rows(before: Evaluation, after: Evaluation, compared: Compared) -> list[list[str]]:
    """Format `compare_evaluations` as rows of COMPARED, one per mode and measure."""
    rows = []
    for mode, by_measure in compared.items():
        for i, (name, of) in enumerate(by_measure.items()):
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
    """Return a caption that explains intervals and p."""
    return (
        f"Mean of {len(evaluation.query_ids):,} queries and its {evaluation.confidence:.0%} "
        f"bootstrap interval. p: {MEASURES[0]} against {evaluation.baseline}, "
        f"{test_named(len(evaluation.modes) - 1)}."
    )


def unknown_said(dataset: DatasetFacts) -> str:
    """Return a warning about relevant documents that are not in the index; empty if all are."""
    if not dataset.unknown_documents:
        return ""
    return (
        f"{dataset.unknown_documents:,} of {dataset.relevant_documents:,} relevant documents "
        "are not in the index: no mode can find them."
    )


def test_named(comparisons: int) -> str:
    """Return the name of the test that gives the p values."""
    corrected = ", Holm-corrected" if comparisons > 1 else ""
    return f"paired permutation test ({PERMUTATIONS:,}){corrected}"


def interval(mean: Mean) -> str:
    """Format the bounds of a confidence interval."""
    return f"{mean.low:.3f}–{mean.high:.3f}"


def p_against_baseline(mode: ModeResult) -> str:
    """Format p of the first measure; empty for the baseline."""
    against = mode.against_baseline.get(MEASURES[0])
    return in_words(against.p_holm) if against else ""


def in_words(p: float) -> str:
    """Format a p value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
