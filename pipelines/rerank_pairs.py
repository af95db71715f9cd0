"""Scores pairs of queries and passages, and commits the scores as an index.

    python -m pipelines.rerank_pairs conf/rerank.yaml

    plan -> read + tokenise (CPU tasks) -> score + write (actors) -> done records -> commit

Uses the pipeline of embed_corpus, with its slices, rejects, resume and generations. A pair is a
document with one passage, and has a `score` instead of vectors.
"""

from __future__ import annotations

from pipelines.config.loading import parse_as, read_yaml
from pipelines.config.run import PairsConfig
from pipelines.index.records import Manifest
from pipelines.run.context import RunContext
from pipelines.run.runner import run_next
from pipelines.run.tasks import next_embed_task
from pipelines.terminal import cli
from pipelines.terminal.progress import Progress


def rerank_pairs(
    config: PairsConfig,
    *,
    fresh: bool = False,
    replay_rejects: bool = False,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Score all pairs. Return the new manifest, or the live one if all is done.

    `progress`: reports the run; by default nothing does.

    Raises:
        EmbedError: a subclass, with a remedy; finished slices are kept.
    """
    with progress or Progress(cli.silent()) as progress:
        context = RunContext.of(config, progress, verbose=verbose)
        return run_next(
            context,
            lambda: next_embed_task(context, fresh=fresh, replay=replay_rejects),
            progress.already_committed,
        )


app = cli.new_app()

_EPILOG = (
    "Exit codes: 0 done, or already committed; 1 the run failed; 2 the request is invalid, or "
    "another run is writing the index; 130 interrupted (Ctrl-C, SIGTERM).\n\n"
    "Example: python -m pipelines.rerank_pairs conf/rerank.yaml --limit 100 "
    "--set index.uri=out/few"
)


@app.command(epilog=_EPILOG)
def main(
    config: cli.ConfigFile,
    overrides: cli.Overrides = None,
    limit: cli.Limit = None,
    fresh: cli.Fresh = False,
    replay_rejects: cli.ReplayRejects = False,
    log_format: cli.LogFormatOption = "text",
    verbose: cli.Verbose = False,
) -> None:
    """Score the pairs of CONFIG and commit them: one row per pair, with its score.

    The same command continues a run that was interrupted or failed.
    """
    with cli.log_to_stderr(log_format) as log:
        progress = Progress(log)
        with cli.exit_with_one_line(log, verbose=verbose, kept=progress.kept):
            pairs = parse_as(
                PairsConfig, read_yaml(config, cli.with_limit(overrides, limit)), where=str(config)
            )
            rerank_pairs(
                pairs,
                fresh=fresh,
                replay_rejects=replay_rejects,
                verbose=verbose,
                progress=progress,
            )


if __name__ == "__main__":
    app()
