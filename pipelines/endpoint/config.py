"""The configuration of a query endpoint: `args` of its application in a Serve config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from actors.config import OUTPUTS, ModelConfig, Output, RerankerConfig
from pipelines.config.loading import parse_as
from pipelines.config.sections import ChunkConfig, Count, SearchConfig, Section, ServedIndex

Kind = Literal["query", "passage"]


class Limits(Section):
    """What one request may ask for, and how much may wait."""

    max_body_bytes: Count = 8 << 20
    """A larger body is refused (413) before it is parsed."""
    max_texts: Count = 2_048
    """More texts in a request are refused (413). OpenAI's own limit, which its clients count on."""
    max_tokens: Count | None = None
    """Longest text, in tokens; the model's own length when not given, which it cannot exceed."""
    max_colbert_tokens: Count = 65_536
    """Tokens of a request that asks for ColBERT, as its characters bound them, for each is a vector
    (20 KB of JSON at 1,024 dimensions); more are refused (413)."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """What happens to a longer text: cut, which the answer says, or refused (413). A request may
    say `truncate` itself."""
    max_queued_texts: Count = 4_096
    """Texts that may wait for the encoder of a replica, and pairs that may for its reranker;
    beyond, requests are refused (429)."""
    max_queued_characters: Count = 16 << 20
    """The same in characters, which is what waiting texts take in memory."""
    max_hits: Count = 2_000
    """Hits that one request may ask for, `top` times its queries; more are refused (413)."""
    max_searches: Count = 64
    """Requests that may search in a replica or wait for it; beyond, they are refused (429)."""
    search_timeout_s: Annotated[float, Field(gt=0)] = 30
    """How long a shard may take over a call, and a search wait for others; beyond, it is refused
    (503). A shard that died is started again meanwhile."""


class CacheConfig(Section):
    """Answers to queries that were asked before."""

    max_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """Of vectors and texts a replica keeps; the least recently asked go first. 0: no cache."""


class AuthConfig(Section):
    """Who may ask. Without keys everybody who reaches the port may: it is 127.0.0.1's by
    default.
    """

    keys_env: str | None = None
    """Environment variable of the replicas that holds the keys, separated by commas."""
    keys_file: str | None = None
    """File with a key a line; `#` begins a comment."""


class Autoscaling(Section):
    """Replicas follow the load."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    """0: none without requests; the first then waits until one is warm."""
    max_replicas: Count = 4
    """Serve adds no more."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 64
    """Requests in a replica that Serve aims at; a forward pass takes many at once."""


class DeploymentConfig(Section):
    """How many replicas, and what each of them holds."""

    replicas: Count = 1
    """Fixed number of replicas; ignored with `autoscaling`."""
    autoscaling: Autoscaling | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a replica, also a fraction; when not given: 1 where the cluster has GPUs, else 0."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """CPUs of a replica; without a GPU, the threads it computes with."""
    max_ongoing_requests: Count = 4_096
    """Requests Serve hands to a replica at once; the replica's own queue refuses what is too
    much."""
    max_queued_requests: Count = 512
    """Requests that a proxy holds while no replica is warm, or all are full; beyond: 503."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """New replicas that an update starts before it stops old ones, as a share of all: needs room
    for both. 0: old ones stop first, and requests wait meanwhile where there was only one."""
    health_check_period_s: Annotated[float, Field(gt=0)] = 10
    """How often a replica has to encode a text to prove that it can."""
    health_check_timeout_s: Annotated[float, Field(gt=0)] = 30
    """How long it may take over that, before it counts as dead."""
    graceful_shutdown_timeout_s: Annotated[float, Field(gt=0)] = 30
    """How long a replica that is to go may take to answer what it has accepted."""


class EndpointConfig(Section):
    """Everything about one endpoint."""

    model: ModelConfig | None = None
    """As in a run's configuration; when not given: the index's."""
    outputs: tuple[Output, ...] | None = None
    """Vectors it can give; when not given: the index's, else dense."""
    index: ServedIndex | None = None
    """The endpoint does not start when its space is not this index's."""
    search: SearchConfig | None = None
    """The endpoint searches its index, at `POST /search` and on a page at `/`; `{}` is enough."""
    reranker: RerankerConfig | None = None
    """Each replica loads it too, and answers `POST /rerank`, `/v1/rerank` and `/v2/rerank`."""
    chunk: ChunkConfig | None = None
    """How titles are put before passages; the index's when not given, else `title_prefix: true`."""
    default_kind: Kind = "query"
    """What a text is where a request does not say: other APIs have no word for it."""
    limits: Limits = Limits()
    cache: CacheConfig = CacheConfig()
    auth: AuthConfig = AuthConfig()
    deployment: DeploymentConfig = DeploymentConfig()

    @model_validator(mode="after")
    def _check(self) -> EndpointConfig:
        if self.model is None and self.index is None:
            raise ValueError("model.name or index.uri is required")
        if self.search is not None and self.index is None:
            raise ValueError("search: expected index.uri, the index to search, found none")
        layers = self.reranker.cutoff_layers if self.reranker else None
        if layers and len(layers) > 1:
            raise ValueError(
                "reranker.cutoff_layers: expected one layer (an endpoint ranks by one score), got "
                f"{len(layers)}"
            )
        if self.outputs is not None and (
            not self.outputs or len(set(self.outputs)) != len(self.outputs)
        ):
            raise ValueError(f"outputs: expected some of {', '.join(OUTPUTS)}, each once")
        return self


_INTRO = """\
# Configuration of the query endpoint

<!-- Written by `make docs` from the docstrings in pipelines/endpoint/config.py. -->

The `args` of the application in a Serve config file; `conf/serve.yaml` is an example, and
[endpoint.md](endpoint.md) says what the endpoint does. `model.name` or `index.uri` is required.
The file's other keys (`http_options`, `logging_config`) are Ray Serve's own.

An unknown key, or a value of the wrong type, is an error that names it; nothing is deployed."""


def parse_endpoint_config(raw: Mapping[str, Any]) -> EndpointConfig:
    """Validate the `args` of the application.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    return parse_as(EndpointConfig, raw, "args")


if __name__ == "__main__":
    from pipelines.config.docs import markdown

    print(markdown(EndpointConfig, _INTRO), end="")  # noqa: T201
