"""Searches an index exactly: by default every live passage is scored.

python -m pipelines.search_index out/quickstart "when was the bridge built?"
python -m pipelines.search_index out/quickstart "old bridges" --mode sparse --format json

queries -> encode with the index's model -> score in shards -> ranked passages
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from actors.config import RerankerConfig
from actors.errors import ConfigError
from actors.search.fusion import Level
from pipelines.config.loading import override
from pipelines.config.run import RunConfig
from pipelines.config.sections import Mode
from pipelines.index.reader import Index, describe_index, open_index
from pipelines.search.answers import (
    DEFAULT_RERANK_TOP,
    Hit,
    answers_text,
    check_can_rerank,
    find,
    rerank,
)
from pipelines.search.opening import open_searcher
from pipelines.search.searcher import outputs_for
from pipelines.search.space import check_same_space, read_space
from pipelines.terminal import cli

DEFAULT_TOP = 10


def search_index(
    index: Index,
    config: RunConfig,
    queries: Sequence[str],
    *,
    mode: Mode | None = None,
    top: int = DEFAULT_TOP,
    unit: Level = "passage",
    reranker: RerankerConfig | None = None,
    rerank_top: int = DEFAULT_RERANK_TOP,
) -> tuple[Mode, list[list[Hit]]]:
    """Return the mode (default: hybrid, or the only output) and each query's hits, best first.

    `config`: its model, search and ray sections are used. `reranker`: reorders the best
    `rerank_top` hits; the others follow in their old order.

    Raises:
        ConfigError: a query is blank or not Unicode, or the vectors do not fit into memory.
        IndexStateError: the index lacks the vectors, the model has another space fingerprint, or
            there are no texts for a reranker. ModelError: the model is not found.
    """
    for query in queries:
        if not query.strip():
            raise ConfigError("QUERY: expected words, got nothing but whitespace.")
        try:
            query.encode()
        except UnicodeEncodeError:
            raise ConfigError("QUERY: expected Unicode, got bytes that are not UTF-8.") from None
    only: Any = index.info.outputs[0]
    mode = mode or ("hybrid" if len(index.info.outputs) > 1 else only)
    outputs = outputs_for([mode], index.info.outputs, config.search)
    from actors.encoder import load_encoder  # late: the checks above need no torch
    from actors.reranker import load_reranker

    model = dataclasses.replace(config.model, outputs=outputs)
    space = read_space(index.store.uri, index.store.options, index.info.generation)
    check_same_space(space, model)
    if reranker:
        check_can_rerank(reranker, has_texts="text" in index.schema.names)
    depth = max(top, rerank_top) if reranker else top
    with open_searcher(index, outputs, config.search, config.ray) as searcher:
        encoder = load_encoder(model)
        check_same_space(space, model, encoder.info.dtype)
        second = load_reranker(reranker) if reranker else None
        found = find(searcher, encoder.encode_queries(queries), mode, depth, unit=unit)
    if second:
        prefix = config.chunk.title_prefix
        best = rerank(second, queries, [hits[:rerank_top] for hits in found], title_prefix=prefix)
        both = zip(best, found, strict=True)
        found = [[*read, *hits[rerank_top:]][:top] for read, hits in both]
    return mode, found


app = cli.new_app()


@app.command()
def main(
    uri: cli.IndexUri,
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Text to search.", show_default=False)
    ],
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Rank passages by one output; by hybrid, the weighted mean of the scores "
            "(search.weights); or by rrf, reciprocal rank fusion. Default: hybrid, or the only "
            "output of the index.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Results for each query.", min=1)] = DEFAULT_TOP,
    unit: Annotated[
        Level, typer.Option("--by", help="Rank passages, or documents by their best passage.")
    ] = "passage",
    reranker: cli.Reranker = None,
    rerank_top: cli.RerankTop = DEFAULT_RERANK_TOP,
    whole: Annotated[bool, typer.Option("--whole", help="Print whole passages.")] = False,
    generation: cli.Generation = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the index's configuration, as in search.weights=[0.4,0.2,0.4] "
            "or ray.address=auto. May be repeated.",
        ),
    ] = None,
    output_format: Annotated[
        Literal["text", "json"], typer.Option("--format", help="json: one line per query.")
    ] = "text",
    verbose: cli.StackTraces = False,
) -> None:
    """Print the best passages of an index for each QUERY."""
    with cli.log_to_stderr() as log, cli.exit_with_one_line(log, verbose=verbose):
        index = open_index(uri, generation=generation)
        space = read_space(uri, generation=index.info.generation)
        config = override(space.run, overrides or [])
        second = RerankerConfig(name=reranker) if reranker is not None else None
        used, answers = search_index(
            index,
            config,
            queries,
            mode=mode,
            top=top,
            unit=unit,
            reranker=second,
            rerank_top=rerank_top,
        )
        if output_format == "json":
            for query, hits in zip(queries, answers, strict=True):
                typer.echo(json.dumps(_finite(_plain(query, used, index, hits)), default=str))
            return
        console = Console(highlight=False)
        then = f", then {reranker}" if reranker else ""
        console.print(f"{uri}: {describe_index(index)}; by {used}{then}", markup=False)
        for query, hits in zip(queries, answers, strict=True):
            console.print(answers_text(query, hits, whole=whole))


def _plain(query: str, mode: Mode, index: Index, hits: Sequence[Hit]) -> dict[str, object]:
    found = [{k: v for k, v in hit.to_json().items() if not isinstance(v, bytes)} for hit in hits]
    return {"query": query, "mode": mode, "generation": index.info.generation, "hits": found}


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, as JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    app()
