"""An evaluation to look at, for notebooks: eval.json, and where it can be read, what it names.

seen = look_at("out/evaluation/eval.json")
seen.summary()
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.errors import EmbedError
from pipelines.evaluation.dataset import read_judged
from pipelines.evaluation.evaluate import lengths_of
from pipelines.evaluation.judged_files import Options
from pipelines.evaluation.report_html import comparison, gains, lengths, summary
from pipelines.evaluation.results import Evaluation, read_evaluation
from pipelines.html_report import Note, Section
from pipelines.index import open_index


def look_at(uri: str, storage_options: Options | None = None) -> EvaluationLook:
    """An evaluation; `storage_options` also of its dataset and its index.

    Raises:
        SourceError: not there, or not an evaluation that this version can read.
    """
    return EvaluationLook(read_evaluation(uri, storage_options), storage_options)


@dataclass(frozen=True)
class EvaluationLook:
    """Pieces of eval.html; a Note where there is nothing to show."""

    evaluation: Evaluation
    storage_options: Options | None = None

    def summary(self) -> Section:
        """What was asked and searched, and every mode's measures."""
        return summary(self.evaluation)

    def gains(self) -> Section | Note:
        """Every other mode against the baseline, query by query."""
        only = Note(f"{self.evaluation.baseline} is the only mode: it is compared with nothing.")
        return gains(self.evaluation) or only

    def lengths(self) -> Section | Note:
        """How long documents are that modes find early, late and not at all.

        Reads the judgements and the ledger of the index, where they still are.
        """
        dataset, facts = self.evaluation.dataset, self.evaluation.index
        try:
            judged = read_judged(dataset.queries, dataset.qrels, self.storage_options)
            index = open_index(facts.uri, self.storage_options, generation=facts.generation)
            tokens = lengths_of(index, judged.relevant())
        except EmbedError as error:
            return Note(f"Lengths of documents are not known: {error.message}")
        nothing = Note("Lengths of documents are not known: the index has no relevant one.")
        return lengths(self.evaluation, judged, tokens) or nothing

    def against(self, before: str | None) -> Section | Note:
        """This evaluation against one of the same queries before it: its eval.json.

        Raises:
            SourceError: it cannot be read. ConfigError: no mode in common, or other queries.
        """
        if before is None:
            return Note("No evaluation before this one is named.")
        return comparison(read_evaluation(before, self.storage_options), self.evaluation)
