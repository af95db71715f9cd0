"""What an evaluation is compared with: earlier ones, and runs of other systems, read beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import ConfigError
from pipelines.evaluation.dataset import JudgedQueries, Rankings
from pipelines.evaluation.evaluate import Evaluated
from pipelines.evaluation.results import Evaluation, evaluate_modes, read_evaluation
from pipelines.evaluation.trec_runs import read_run

_RUNS = (".run", ".trec", ".txt")


@dataclass(frozen=True)
class Against:
    """Files that --against names."""

    evaluations: list[Evaluation]
    runs: Mapping[str, Rankings]
    """By file name."""


def read_against(uris: Sequence[str], judged: JudgedQueries) -> Against:
    """Read them, and see that they are of these queries.

    Raises:
        ConfigError: another kind of file, or other queries. SourceError: it cannot be read.
    """
    evaluations, runs = [], dict[str, Rankings]()
    for uri in uris:
        if uri.endswith(".json"):
            evaluation = read_evaluation(uri)
            _check(uri, set(evaluation.query_ids) ^ set(judged.queries), "the same judged queries")
            evaluations.append(evaluation)
            continue
        path = Path(uri.removesuffix(".gz"))
        if path.suffix not in _RUNS:
            raise ConfigError(
                "--against: expected an eval.json or a run file (.run, .trec, .txt, also .gz), "
                f"got {uri}."
            )
        run = read_run(uri)
        others = set(judged.queries) - run.keys()
        _check(uri, others if len(others) == len(judged.queries) else set(), "judged queries")
        runs[path.stem] = run
    return Against(evaluations, runs)


def with_runs(found: Evaluated, runs: Mapping[str, Rankings]) -> Evaluated:
    """The evaluation with other systems' runs beside the modes."""
    if not runs:
        return found
    named = {(f"{n} (file)" if n in found.rankings else n): run for n, run in runs.items()}
    rankings = {**found.rankings, **named}
    before = found.evaluation
    modes = evaluate_modes(
        found.judged.qrels,
        rankings,
        baseline=before.baseline,
        ignore_identical_ids=before.ignore_identical_ids,
        settings={mode.name: mode.settings for mode in before.modes},
    )
    return Evaluated(before.model_copy(update={"modes": modes}), found.judged, rankings)


def _check(uri: str, others: set[str], expected: str) -> None:
    if others:
        raise ConfigError(
            f"--against: expected {expected} in {uri}, found others ({min(others)!r}, ...)."
        )
