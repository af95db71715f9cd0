"""What POST /search takes and gives."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.config import Output
from actors.search.fusion import Level
from pipelines.config_sections import Mode
from pipelines.endpoint.native import Body, Weight

MOST_QUERIES = 64
MOST_EXPLAINED = 20


class SearchRequest(Body):
    """A query, or several."""

    query: str | None = Field(None, examples=["when was the bridge built?"])
    queries: list[str] | None = Field(
        None, min_length=1, max_length=MOST_QUERIES, description="Several, instead of `query`."
    )
    top: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="Hits of each query.")
    mode: Mode | None = Field(
        None,
        description="What passages are ranked by: one output; hybrid, their weighted mean; rrf, "
        "reciprocal rank fusion. When not given: hybrid, or the only output there is.",
    )
    by: Level = Field("passage", description="Rank passages, or documents as their best passage.")
    columns: list[str] | None = Field(
        None, description="Columns of the index in each hit; all but binary and nested ones."
    )
    weights: tuple[Weight, Weight, Weight] | None = Field(
        None, description="Of dense, sparse and ColBERT in hybrid, instead of the configured ones."
    )
    explain: bool = Field(
        False,
        description=f"Say which tokens made the scores; with `top` of at most {MOST_EXPLAINED}.",
    )

    @model_validator(mode="after")
    def _check(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("expected either query or queries")
        if self.explain and self.top > MOST_EXPLAINED:
            raise ValueError(f"explain: expected top of at most {MOST_EXPLAINED}, got {self.top}")
        return self

    def texts(self) -> list[str]:
        """The queries."""
        return [self.query] if self.query is not None else list(self.queries or ())


class Place(BaseModel):
    """A token; `start` and `stop` in characters of the query or the passage's `text`, null where
    it is not of it: special, of the instruction or of the title.
    """

    text: str
    start: int | None
    stop: int | None


class PassageToken(Place):
    """A token of a passage."""

    score: float = Field(
        description="Inner product with the query's own token that is most like it."
    )


class TokenWeight(BaseModel):
    """A word of a query's sparse vector."""

    token: str
    weight: float


class SharedToken(BaseModel):
    """What both sparse vectors have; the products add up to the sparse score."""

    token: str
    query: float
    passage: float
    product: float


class HitExplained(BaseModel):
    """Which tokens made a hit's scores; what is null is not known."""

    sparse: list[SharedToken] | None = Field(None, description="The greatest product first.")
    passage_tokens: list[PassageToken] | None = Field(
        None, description="All but the first, which has no ColBERT vector."
    )
    alignment: list[tuple[int, float]] | None = Field(
        None,
        description="For each of query_tokens: its best of passage_tokens, and their inner "
        "product; the mean of these is the ColBERT score.",
    )


class QueryExplained(BaseModel):
    """A query as its vectors see it."""

    sparse: list[TokenWeight] | None = Field(None, description="The heaviest first.")
    query_tokens: list[Place] | None = Field(
        None, description="All but the first, which has no ColBERT vector."
    )


class HitBody(BaseModel):
    """A passage, with the columns of the index beside what is declared here."""

    model_config = ConfigDict(extra="allow")

    rank: int = Field(description="From 1.")
    score: float = Field(description="By the mode.")
    scores: dict[Output, float] = Field(description="By each output.")
    explain: HitExplained | None = None


class ResultBody(BaseModel):
    """What one query finds."""

    query: str
    hits: list[HitBody]
    explain: QueryExplained | None = None


class SearchResponse(BaseModel):
    """A result a query."""

    model: str
    generation: int = Field(description="Of the index; the same until the endpoint is redeployed.")
    mode: Mode
    took_ms: float
    results: list[ResultBody]


def hit_body(columns: dict[str, Any], **own: Any) -> dict[str, Any]:
    """A hit as JSON; what is declared here is never hidden by a column of that name."""
    return own | columns | own
