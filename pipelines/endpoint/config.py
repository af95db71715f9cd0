"""The configuration of a query endpoint: the `args` of its application in a Serve config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from actors.config import OUTPUTS, ModelConfig, Output, RerankerConfig
from pipelines.config.loading import parse_as
from pipelines.config.sections import ChunkConfig, Count, SearchConfig, Section, ServedIndex

Kind = Literal["query", "passage"]


class Limits(Section):
    """Limits for requests and queues. Parentheses give the status of a request above the limit."""

    max_body_bytes: Count = 8 << 20
    """Largest request body in bytes (413); checked before the body is parsed."""
    max_texts: Count = 2_048
    """Largest number of texts in a request (413). The default is the limit of OpenAI's API."""
    max_tokens: Count | None = None
    """Longest text in tokens, at most the length of the model; that length when not given."""
    max_colbert_tokens: Count = 65_536
    """Largest number of tokens, estimated from the characters, in a request for ColBERT (413).
    Each token returns a vector, which is 20 KB of JSON at 1,024 dimensions."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """Treatment of a longer text. "truncate": it is cut, and the answer reports it; "refuse": 413.
    A request may override this with `truncate`."""
    max_queued_texts: Count = 4_096
    """Largest number of texts that wait for the encoder of a replica, and of pairs that wait for
    its reranker (429)."""
    max_queued_characters: Count = 16 << 20
    """Largest number of characters of the waiting texts (429), which bounds their memory."""
    max_hits: Count = 2_000
    """Largest number of hits of a request, which is `top` times its queries (413)."""
    max_searches: Count = 64
    """Largest number of search requests that a replica runs or queues (429)."""
    search_timeout_s: Annotated[float, Field(gt=0)] = 30
    """Longest time in seconds for a call to a shard, and for a search to wait for others (503). A
    shard that died is restarted meanwhile."""


class CacheConfig(Section):
    """The cache of query vectors in each replica."""

    max_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """Largest size of the cache; the least recently used entries are removed first. 0: no cache."""


class AuthConfig(Section):
    """API keys. Without keys, everyone who can reach the port may send requests; by default it is
    open on 127.0.0.1 only.
    """

    keys_env: str | None = None
    """Name of the replicas' environment variable that holds the keys, separated by commas."""
    keys_file: str | None = None
    """File with one key per line; `#` begins a comment."""


class Autoscaling(Section):
    """Automatic choice of the number of replicas, by load."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Smallest number of replicas. With 0, the first request waits until a replica is warm."""
    max_replicas: Count = 4
    """Largest number of replicas."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 64
    """Number of requests per replica that Serve aims for; one forward pass serves many."""


class DeploymentConfig(Section):
    """The number of replicas, their resources and their life cycle."""

    replicas: Count = 1
    """Fixed number of replicas; ignored with `autoscaling`."""
    autoscaling: Autoscaling | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a replica, also a fraction. When not given: 1 if the cluster has GPUs, else 0."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """CPUs of a replica; without a GPU also its number of compute threads."""
    max_ongoing_requests: Count = 4_096
    """Number of requests that Serve sends to a replica at once; above `limits`, the replica itself
    refuses them."""
    max_queued_requests: Count = 512
    """Requests that a proxy holds while no replica is warm or all are full; others get 503."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Percentage of replicas that an update starts before it stops old ones; the cluster needs room
    for both. 0: old replicas stop first, and with a single replica requests wait meanwhile."""
    health_check_period_s: Annotated[float, Field(gt=0)] = 10
    """Seconds between health checks, in which a replica must encode a text."""
    health_check_timeout_s: Annotated[float, Field(gt=0)] = 30
    """Seconds after which a health check fails and the replica counts as dead."""
    graceful_shutdown_timeout_s: Annotated[float, Field(gt=0)] = 30
    """Seconds that a replica has to answer accepted requests before it is stopped."""


class EndpointConfig(Section):
    """The configuration of one endpoint."""

    model: ModelConfig | None = None
    """As in a run's configuration; the model of the index when not given."""
    outputs: tuple[Output, ...] | None = None
    """Kinds of vectors to serve; those of the index when not given, dense without an index."""
    index: ServedIndex | None = None
    """The endpoint does not start if the space fingerprints differ."""
    search: SearchConfig | None = None
    """Serves search of the index at `POST /search` and on a page at `/`; `{}` turns it on."""
    reranker: RerankerConfig | None = None
    """Each replica loads a reranker and answers `POST /rerank`, `/v1/rerank` and `/v2/rerank`."""
    chunk: ChunkConfig | None = None
    """Use of titles for passages; that of the index when not given, else `title_prefix: true`."""
    default_kind: Kind = "query"
    """Kind of a text whose request does not name one; other APIs have no such field."""
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

These keys are the `args` of the application in a Serve config file. `conf/serve.yaml` is an
example, and [endpoint.md](endpoint.md) describes the endpoint. `model.name` or `index.uri` is
required. The other keys of the file (`http_options`, `logging_config`) are those of Ray Serve.

An unknown key or a value of the wrong type is an error that names the key; nothing is deployed."""


def parse_endpoint_config(raw: Mapping[str, Any]) -> EndpointConfig:
    """Validate the `args` of the application.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    return parse_as(EndpointConfig, raw, "args")


if __name__ == "__main__":
    from pipelines.config.docs import markdown

    print(markdown(EndpointConfig, _INTRO), end="")  # noqa: T201
