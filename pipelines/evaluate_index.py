"""Evaluates an index: searches judged queries in every mode and measures the results.

python -m pipelines.evaluate_index conf/beir.yaml --set source.uri=DIR
python -m pipelines.evaluate_index conf/wiki.yaml --against out/before/eval.json

index (built if missing) -> judged queries -> search -> measures -> table, eval.json, eval.html
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actors.config import RerankerConfig
from actors.errors import SourceError, StorageError
from pipelines.config.loading import load_config
from pipelines.config.run import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.evaluation.dataset import read_judged
from pipelines.evaluation.evaluate import (
    Evaluated,
    check_ready,
    evaluate,
    judged_files,
    lengths_of,
    modes_of,
    texts_of,
)
from pipelines.evaluation.ranking import SecondStage
from pipelines.evaluation.report import Documents, documents_shown, evaluation_page
from pipelines.evaluation.results import comparison_table, read_evaluation, table, unknown_said
from pipelines.evaluation.runs import read_against, with_runs, write_run
from pipelines.index.generations import live_generation
from pipelines.index.reader import Index, open_index
from pipelines.search.answers import DEFAULT_RERANK_TOP, check_can_rerank
from pipelines.store.files import local_disk
from pipelines.store.store import open_store
from pipelines.terminal import cli
from pipelines.terminal.progress import Progress


def evaluate_index(
    config: RunConfig,
    *,
    generation: int | None = None,
    second: SecondStage | None = None,
    log: cli.Log | None = None,
) -> tuple[Evaluated, Index]:
    """Evaluate the live generation or the given one; embed the corpus first if there is no index.

    `second`: a reranker, which is evaluated as an additional mode.

    Raises:
        EmbedError: a subclass, with a remedy.
    """
    check_ready(config)  # fails now, not after hours of embedding
    store = open_store(config.index.uri, config.index.storage_options)
    if generation is None and live_generation(store) is None:
        if second:
            check_can_rerank(second.config, has_texts=config.index.store_text)
        embed_corpus(config, progress=Progress(log) if log else None)
    index = open_index(config.index.uri, config.index.storage_options, generation=generation)
    modes = modes_of(config, index)
    return evaluate(config, index, modes, bm25=True, second=second), index


def write_evaluation(found: Evaluated, index: Index, folder: Path) -> list[Path]:
    """Write eval.json, eval.html and a TREC run file of each mode; return their paths.

    Raises:
        StorageError: the files cannot be written.
    """
    evaluation, judged = found.evaluation, found.judged
    documents = Documents(
        texts=texts_of(index, documents_shown(evaluation, judged)),
        lengths=lengths_of(index, judged.relevant()),
    )
    try:
        with local_disk(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_runs_of_before(folder)
            files = [folder / "eval.json", folder / "eval.html"]
            files[0].write_bytes(evaluation.to_bytes())
            files[1].write_text(evaluation_page(evaluation, judged, documents), encoding="utf-8")
            for name, rankings in found.rankings.items():
                files.append(folder / f"{name}.run")
                write_run(files[-1], rankings, name)
    except OSError as error:
        raise StorageError(f"evaluate.out: cannot write to {folder} ({error}).") from None
    return files


def _remove_runs_of_before(folder: Path) -> None:
    """Remove the run files that the previous eval.json names; their modes may no longer exist."""
    with suppress(SourceError, OSError):
        for mode in read_evaluation(str(folder / "eval.json")).modes:
            (folder / f"{mode.name}.run").unlink(missing_ok=True)


app = cli.new_app()


@app.command()
def main(
    config: cli.ConfigFile,
    overrides: cli.Overrides = None,
    generation: cli.Generation = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Compare with this eval.json of another evaluation with the same queries, or with "
            "this TREC run file (.run, .trec, .txt) of another system. May be repeated.",
            show_default=False,
        ),
    ] = None,
    against_generation: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Evaluate and compare with generation N too.", show_default=False
        ),
    ] = None,
    reranker: cli.Reranker = None,
    rerank_top: cli.RerankTop = DEFAULT_RERANK_TOP,
    verbose: cli.Verbose = False,
) -> None:
    """Search the judged queries of CONFIG in every mode, print measures and write a report.

    Embeds the corpus first if there is no index.
    """
    with cli.log_to_stderr() as log, cli.exit_with_one_line(log, verbose=verbose):
        run = load_config(config, overrides or [])
        judged = read_judged(*judged_files(run), run.source.storage_options)
        others = read_against(against or [], judged)
        before = [*others.evaluations]
        second = None
        if reranker is not None:
            second = SecondStage(RerankerConfig(name=reranker), rerank_top)
        if against_generation is not None:
            earlier, _ = evaluate_index(run, generation=against_generation, second=second)
            before.append(earlier.evaluation)
        found, index = evaluate_index(run, generation=generation, second=second, log=log)
        found = with_runs(found, others.runs)
        files = write_evaluation(found, index, Path(run.evaluate.out))
        console = Console(highlight=False)
        facts = found.evaluation.index
        console.print(
            f"{facts.uri}: generation {facts.generation}, {facts.documents:,} documents, "
            f"{facts.passages:,} passages, {facts.model}",
            markup=False,
        )
        console.print(table(found.evaluation))
        if unknown := unknown_said(found.evaluation.dataset):
            console.print(unknown)
        for other in before:
            console.print(
                f"against generation {other.index.generation} of {other.index.uri}, "
                f"{other.started}",
                markup=False,
            )
            console.print(comparison_table(other, found.evaluation))
        console.print(f"written: {', '.join(map(str, files[:2]))}", markup=False)


if __name__ == "__main__":
    app()
