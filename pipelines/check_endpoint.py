"""Checks a Serve config file before it is deployed: keys, model, API keys, space fingerprint.

    python -m pipelines.check_endpoint conf/serve.yaml

On a cluster, Ray Serve reports an error of a replica minutes later, as a stack trace in a log; this
command reports it in one line. It hashes the weights, so it needs them locally. It needs no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from actors.config import Output
from actors.errors import ConfigError
from actors.models.files import resolve_model
from actors.models.reranker_files import resolve_reranker
from pipelines.endpoint.config import EndpointConfig, parse_endpoint_config
from pipelines.endpoint.guard import read_keys
from pipelines.search.shards import needed
from pipelines.search.space import check_same_space, model_to_load, searched_index, space_of
from pipelines.terminal.cli import StackTraces, exit_with_one_line, log_to_stderr, new_app

IMPORT_PATH = "pipelines.endpoint.deployment:build"


def read_serve_file(path: Path) -> dict[str, EndpointConfig]:
    """Read the endpoints of a Serve config file or RayService manifest, by application name.

    Raises:
        ConfigError: the file does not exist, is not YAML, or has no endpoint or one with bad args.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("kind") == "RayService":
            raw = yaml.safe_load(raw["spec"]["serveConfigV2"])
        applications: list[dict[str, Any]] = [
            each for each in raw["applications"] if each["import_path"] == IMPORT_PATH
        ]
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}.", "See conf/serve.yaml.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected a Serve config file (applications, each with import_path), "
            f"found: {' '.join(str(error).split()):.200}."
        ) from None
    if not applications:
        raise ConfigError(f"{path}: expected an application with import_path {IMPORT_PATH}.")
    return {
        str(each.get("name", "default")): parse_endpoint_config(each.get("args") or {})
        for each in applications
    }


def check_endpoint(config: EndpointConfig) -> str:
    """Return a description of what the endpoint would serve.

    Raises:
        ConfigError: API keys are configured, but none is found. ModelError: as `load_encoder`.
        IndexStateError: the space fingerprints of model and index differ.
    """
    keys = read_keys(config.auth)
    model, _ = model_to_load(config.model, config.outputs, config.chunk, config.index)
    resolve_model(model)
    if config.reranker:
        resolve_reranker(config.reranker)
    if config.index:
        check_same_space(space_of(config.index), model)
    who = f"{len(keys)} keys" if keys else "no keys: open to everyone who reaches the port"
    index = f"index {config.index.uri}" if config.index else "no index"
    reranker = f", reranker {config.reranker.name}" if config.reranker else ""
    outputs = ", ".join(model.outputs)
    return f"{model.name} ({outputs}), {index}{_searched(config, model.outputs)}{reranker}, {who}"


def _searched(config: EndpointConfig, given: Sequence[Output]) -> str:
    """Return what a search would load; only the cluster's machines know whether it fits."""
    if config.search is None or config.index is None:
        return ""
    index, outputs = searched_index(config.index, given)
    return (
        f", search of generation {index.info.generation}: {index.passages:,} passages, "
        f"{needed(index, outputs)}"
    )


app = new_app()


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="A Serve config file, or a RayService manifest.")],
    verbose: StackTraces = False,
) -> None:
    """Check a Serve config file before it is deployed. Exit codes: 0 valid; 2 invalid."""
    with log_to_stderr() as log, exit_with_one_line(log, verbose=verbose):
        for name, config in read_serve_file(file).items():
            log.say("done", f"{name}: {check_endpoint(config)}")


if __name__ == "__main__":
    app()
