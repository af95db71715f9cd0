"""Write eval.html: an evaluation as one page, with the queries behind its numbers.

    seen = look_at("out/evaluation/eval.json")
    seen.summary()

`look_at` gives the sections of the page to notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from actors.errors import EmbedError
from pipelines.evaluation.charts import (
    changes_chart,
    differences,
    gains_chart,
    lengths_chart,
    lengths_of_relevant,
    measure_chart,
)
from pipelines.evaluation.dataset import JudgedQueries, Options, read_judged
from pipelines.evaluation.evaluate import lengths_of
from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.results import (
    COMPARED,
    Evaluation,
    ModeResult,
    compare_evaluations,
    comparison_rows,
    explained,
    interval,
    p_against_baseline,
    read_evaluation,
    test_named,
    unknown_said,
)
from pipelines.index.reader import open_index
from pipelines.reports.html import Facts, Note, Section, Table, page

_SHOWN = 10
_CHARACTERS = 200


@dataclass(frozen=True)
class Documents:
    """Texts and lengths of documents. The page shows documents without a text by their id."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """Document id -> text, or its beginning, for the documents of `documents_shown`."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Document id -> tokens of its passages, for relevant documents."""


def evaluation_page(
    evaluation: Evaluation, judged: JudgedQueries, documents: Documents | None = None
) -> str:
    """Return the page as HTML that loads nothing, has a light and a dark theme, and escapes texts.

    `judged`: the judged queries of the evaluation.
    """
    documents = documents or Documents()
    look = EvaluationLook(evaluation)
    sections = [
        look.summary(),
        look.gains(),
        _lengths(evaluation, judged, documents.lengths),
        *_queries(evaluation, judged, documents),
    ]
    index, dataset = evaluation.index, evaluation.dataset
    return page(
        f"Evaluation of {index.uri}",
        f"Generation {index.generation}, {index.model}; {dataset.qrels}; {evaluation.started}",
        [section for section in sections if isinstance(section, Section)],
    )


def documents_shown(evaluation: Evaluation, judged: JudgedQueries) -> set[str]:
    """Return the ids of the documents whose texts the page shows."""
    best = _best(evaluation)
    better, worse = _changed(evaluation, best) if best else ([], [])
    shown: set[str] = set()
    for row in (*better, *worse, *_worst(evaluation)):
        shown.update(_relevant(evaluation.query_ids[row], judged)[:1])
        tops = (mode.top[row] for mode in evaluation.modes)
        shown.update(top for top in tops if top is not None)
    return shown


def look_at(uri: str, storage_options: Options | None = None) -> EvaluationLook:
    """Read an evaluation. `storage_options` also apply to its dataset and its index.

    Raises:
        SourceError: the file does not exist, or this version cannot read it.
    """
    return EvaluationLook(read_evaluation(uri, storage_options), storage_options)


@dataclass(frozen=True)
class EvaluationLook:
    """The sections of eval.html. A section without content is a Note."""

    evaluation: Evaluation
    storage_options: Options | None = None

    def summary(self) -> Section:
        """Return the facts of dataset and index, and the measures of every mode."""
        evaluation = self.evaluation
        index, dataset = evaluation.index, evaluation.dataset
        facts = [
            ("judged queries", f"{dataset.judged_queries:,}"),
            ("judgements", f"{dataset.judgements:,}"),
            ("documents", f"{index.documents:,}"),
            ("passages", f"{index.passages:,}"),
            *((f"seconds: {name}", f"{value:,.1f}") for name, value in evaluation.seconds.items()),
        ]
        first, *others = MEASURES
        rows = [
            [
                mode.name,
                f"{mode.measures[first].mean:.3f}",
                interval(mode.measures[first]),
                *(f"{mode.measures[name].mean:.3f}" for name in others),
                p_against_baseline(mode),
                ", ".join(f"{key} {value}" for key, value in mode.settings.items()),
            ]
            for mode in evaluation.modes
        ]
        header = ["mode", first, f"{evaluation.confidence:.0%}", *others, "p", "settings"]
        table = Table(header, rows, explained(evaluation))
        charts = [measure_chart(evaluation, measure) for measure in MEASURES]
        return Section("", unknown_said(dataset), [Facts(facts), table, *charts])

    def gains(self) -> Section | Note:
        """Return a chart per mode that compares it with the baseline query by query."""
        baseline = self.evaluation.baseline
        others = [mode for mode in self.evaluation.modes if mode.against_baseline]
        if not others:
            return Note(f"{baseline} is the only mode, so there is no comparison.")
        return Section(
            f"Gains and losses against {baseline}",
            "Modes with equal means may be good at different queries. A combination of them may "
            "then be better than each one.",
            [gains_chart(self.evaluation, mode) for mode in others],
        )

    def lengths(self) -> Section | Note:
        """Return charts of the lengths of documents that modes find early, late and not at all.

        Reads the judgements and the ledger of the index, if they still exist.
        """
        dataset, facts = self.evaluation.dataset, self.evaluation.index
        try:
            judged = read_judged(dataset.queries, dataset.qrels, self.storage_options)
            index = open_index(facts.uri, self.storage_options, generation=facts.generation)
            tokens = lengths_of(index, judged.relevant())
        except EmbedError as error:
            return Note(f"Lengths of documents are unknown: {error.message}")
        return _lengths(self.evaluation, judged, tokens)

    def against(self, before: str | None) -> Section | Note:
        """Compare this evaluation with an earlier one of the same queries, the eval.json `before`.

        Raises:
            SourceError: it cannot be read. ConfigError: no mode in common, or other queries.
        """
        if before is None:
            return Note("No earlier evaluation is given.")
        other, measure = read_evaluation(before, self.storage_options), MEASURES[0]
        compared = compare_evaluations(other, self.evaluation)
        charts = []
        for name, of in compared.items():
            now, then = (each.per_query(name).values[measure] for each in (self.evaluation, other))
            if (now != then).any():
                charts.append(changes_chart(f"{name}: after minus before", now - then, of[measure]))
        said = [
            f"{when}: generation {each.index.generation} of {each.index.uri}, {each.index.model}, "
            f"{each.started}."
            for when, each in (("Before", other), ("After", self.evaluation))
        ]
        rows = comparison_rows(other, self.evaluation, compared)
        table = Table(COMPARED, rows, f"p: {test_named(len(compared))}.")
        return Section("Before and after", " ".join(said), [table, *charts])


def _lengths(
    evaluation: Evaluation, judged: JudgedQueries, tokens: Mapping[str, int]
) -> Section | Note:
    """Return charts of the lengths of found documents. `tokens`: known lengths by document id."""
    charts = [
        lengths_chart(mode, lengths_of_relevant(mode, evaluation.query_ids, judged.qrels, tokens))
        for mode in evaluation.modes
    ]
    drawn = [chart for chart in charts if chart]
    if not drawn:
        return Note("Lengths of documents are unknown: the index has no relevant documents.")
    return Section(
        "Length of the first relevant document, by its rank",
        "Median and quartiles, in tokens. The number below a rank is the number of queries. If "
        "long documents are found late or not at all, shorter passages may help.",
        drawn,
    )


def _queries(
    evaluation: Evaluation, judged: JudgedQueries, documents: Documents
) -> Iterable[Section]:
    base, best = evaluation.mode(evaluation.baseline), _best(evaluation)
    looks: list[tuple[str, list[int], ModeResult]] = []  # heading, queries, worse mode
    if best:
        better, worse = _changed(evaluation, best)
        looks.append((f"Where {best.name} is better than {base.name} by most", better, base))
        looks.append((f"Where {best.name} is worse than {base.name} by most", worse, best))
    looks.append((f"What {base.name} answers worst", _worst(evaluation), base))
    shown = [base, best] if best else [base]
    for heading, rows, wrong in looks:
        cells = []
        for row in rows:
            query, top = evaluation.query_ids[row], wrong.top[row]
            relevant = _relevant(query, judged)
            cells.append(
                [
                    _clipped(judged.queries.get(query, query)),
                    *(f"{mode.per_query[MEASURES[0]][row]:.2f}" for mode in shown),
                    _described(relevant[0], documents) if relevant else "none",
                    _described(top, documents) if top is not None else "nothing found",
                ]
            )
        header = ["query", *(mode.name for mode in shown), "relevant", f"first of {wrong.name}"]
        if cells:
            yield Section(heading, "", [Table(header, cells, f"Numbers: {MEASURES[0]}.")])


def _best(evaluation: Evaluation) -> ModeResult | None:
    """Return the mode, other than the baseline, with the highest mean."""
    others = [mode for mode in evaluation.modes if mode.name != evaluation.baseline]
    return max(others, key=lambda mode: mode.measures[MEASURES[0]].mean, default=None)


def _changed(evaluation: Evaluation, mode: ModeResult) -> tuple[list[int], list[int]]:
    """Return the queries with the largest gains over the baseline, and with the largest losses."""
    change = differences(evaluation, mode)
    order = np.argsort(change, kind="stable")
    worse = [int(row) for row in order if change[row] < 0][:_SHOWN]
    return [int(row) for row in order[::-1] if change[row] > 0][:_SHOWN], worse


def _worst(evaluation: Evaluation) -> list[int]:
    values = np.array(evaluation.mode(evaluation.baseline).per_query[MEASURES[0]])
    return [int(row) for row in np.argsort(values, kind="stable") if values[row] < 1][:_SHOWN]


def _relevant(query: str, judged: JudgedQueries) -> list[str]:
    """Return the relevant documents of a query, most relevant first."""
    found = [(-rel, doc) for doc, rel in judged.qrels.get(query, {}).items() if rel > 0]
    return [doc for _, doc in sorted(found)]


def _described(document: str, documents: Documents) -> str:
    text = documents.texts.get(document)
    return document if text is None else f"{document}: {_clipped(text)}"


def _clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
