"""Reranking over HTTP, in text-embeddings-inference's shape and in Cohere's, without Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from endpoint import RERANKER, Client, endpoint, tiny_encoder, tiny_reranker

from actors.reranker import logistic
from pipelines.endpoint.route_parts import TRUNCATED_HEADER

QUERY = "what is ray"
TEXTS = ["a flat fish", "an engine for many machines", "", "Ray is a distributed engine.", "你好"]
LONG = "word " * 300
PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with endpoint(rerank=tiny_reranker()) as client:
        yield client


def body_of(path: str, texts: list[Any], **more: Any) -> dict[str, Any]:
    return {"query": QUERY, "texts" if path == "/rerank" else "documents": texts} | more


def message_of(path: str, answer: httpx.Response) -> str:
    """The refusal's message; fails where it has not its API's shape."""
    body = answer.json()
    if path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return str(body["error"])
    assert set(body) == {"message", "code", "detail"}
    assert body["detail"] == body["message"]  # Jina's clients look there
    return str(body["message"])


@pytest.mark.parametrize("raw", [True, False])
def test_rerank_gives_the_rerankers_scores_best_first(client: Client, raw: bool) -> None:
    answer = client.post("/rerank", body_of("/rerank", TEXTS, raw_scores=raw, unknown=1))
    assert answer.status_code == 200
    expected = tiny_reranker().score([(QUERY, text) for text in TEXTS], normalize=not raw)
    found = answer.json()
    assert [set(rank) for rank in found] == [{"index", "score"}] * len(TEXTS)
    assert [rank["index"] for rank in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose(
        [rank["score"] for rank in found], np.sort(expected)[::-1], rtol=1e-5, atol=1e-5
    )
    assert TRUNCATED_HEADER not in answer.headers


def test_rerank_returns_texts_where_asked_to(client: Client) -> None:
    found = client.post("/rerank", body_of("/rerank", TEXTS, return_text=True)).json()
    assert [rank["text"] for rank in found] == [TEXTS[rank["index"]] for rank in found]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_of_documents_gives_the_best_first(client: Client, path: str) -> None:
    documents = [{"text": text, "id": 3} if i % 2 else text for i, text in enumerate(TEXTS)]
    body = body_of(path, documents, model="any", top_n=3, return_documents=True, rank_fields=["a"])
    answer = client.post(path, body)
    assert answer.status_code == 200
    pairs = [(QUERY, text) for text in TEXTS]
    expected = tiny_reranker().score(pairs, normalize=True)
    found = answer.json()
    assert set(found) == {"id", "model", "results", "usage", "meta"}
    assert client.post(path, body).json()["id"] != found["id"]
    meta = {"api_version": {"version": path[2]}, "billed_units": {"search_units": 1}}
    assert found["meta"] == meta
    assert found["model"] == tiny_reranker().info.name
    assert found["usage"] == {"total_tokens": len(tiny_reranker().tokenize(pairs).values)}
    best = np.argsort(-expected)[:3]
    assert [result["index"] for result in found["results"]] == best.tolist()
    scores = [result["relevance_score"] for result in found["results"]]
    np.testing.assert_allclose(scores, expected[best], rtol=1e-5, atol=1e-5)
    assert [r["document"]["text"] for r in found["results"]] == [TEXTS[i] for i in best]


def test_rerank_of_documents_gives_all_without_their_texts_by_default(client: Client) -> None:
    for more in ({}, {"top_n": 100}):
        results = client.post("/v1/rerank", body_of("/v1", TEXTS, **more)).json()["results"]
        assert [set(each) for each in results] == [{"index", "relevance_score"}] * len(TEXTS)


@pytest.mark.parametrize("path", PATHS)
def test_rerank_scores_a_query_without_words(client: Client, path: str) -> None:
    assert client.post(path, body_of(path, ["", "a"]) | {"query": ""}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_rerank_cuts_and_says_so_or_refuses_and_says_which(client: Client, path: str) -> None:
    answer = client.post(path, body_of(path, ["short", LONG, LONG]))
    assert answer.status_code == 200
    assert answer.headers[TRUNCATED_HEADER] == "2"
    answer = client.post(path, body_of(path, ["short", LONG], truncate=False))
    assert answer.status_code == 413
    field = "texts[1]" if path == "/rerank" else "documents[1]"
    assert message_of(path, answer).startswith(f"{field}: expected at most 96 tokens")


@pytest.mark.parametrize("side", ["left", "Left", "right", "Right"])
def test_rerank_cuts_at_the_side_that_was_asked_for(client: Client, side: str) -> None:
    """Both a text and the query that are too long keep what is at the other side."""
    words = [f"{word} " for word in "abcdefgh" for _ in range(60)]
    for query, text in ((QUERY, "".join(words)), ("".join(words), "a")):
        body = {"query": query, "texts": [text], "raw_scores": True, "truncation_direction": side}
        answer = client.post("/rerank", body)
        assert answer.headers[TRUNCATED_HEADER] == "1"
        half = "".join(words[240:] if side.lower() == "left" else words[:240])
        pair = (query, half) if query == QUERY else (half, text)
        tokens = tiny_reranker().tokenize([pair], keep_end=side.lower() == "left")
        assert tokens.truncated.all()
        expected = tiny_reranker().score_tokens(tokens)[0][0, 0]
        assert answer.json()[0]["score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "section",
    [
        {"limits": {"too_long": "refuse"}},
        {"reranker": {"name": str(RERANKER), "too_long": "refuse"}},
    ],
)
def test_rerank_refuses_what_is_too_long_as_configured(section: dict[str, Any]) -> None:
    with endpoint(rerank=tiny_reranker(), **section) as client:
        assert client.post("/rerank", body_of("/rerank", [LONG])).status_code == 413
        body = body_of("/rerank", [LONG], truncate=True)
        assert client.post("/rerank", body).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"texts": []}, 400, "texts: expected texts"),
        ({"texts": ["a"] * 2_049}, 413, "texts: expected at most 2,048 texts, got 2,049"),
        ({"texts": "a"}, 422, "texts: "),
        ({"texts": ["a", 1]}, 422, "texts.1: "),
        ({"texts": ["a", {"title": "b"}]}, 422, "texts.1: "),
        ({"texts": None}, 422, "texts: "),
        ({"query": None}, 422, "query: "),
        ({"texts": ["a", "\ud800"]}, 422, ""),
        ({"query": "\ud800"}, 422, ""),
    ],
    ids=[
        *("none", "many", "string", "number", "no text", "null", "query"),
        *("surrogate", "surrogate query"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_rerank_refusal_has_the_shape_of_its_api(
    client: Client, path: str, change: dict[str, Any], status: int, said: str
) -> None:
    body = {"query": QUERY, "texts": ["a"]} | change
    if path != "/rerank":
        body["documents"], said = body.pop("texts"), said.replace("texts", "documents", 1)
    headers = {"Content-Type": "application/json"}
    answer = client.request("POST", path, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code == status, answer.text
    assert message_of(path, answer).startswith(said)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"top_n": 0}, "top_n: "),
        ({"top_n": -1}, "top_n: "),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc: "),
        ({"model": tiny_encoder().info.name}, "model: expected a reranker ("),
        ({"documents": [{"title": "a"}]}, "documents.0: expected a string or an object with text"),
    ],
)
def test_rerank_of_documents_refuses_what_cannot_be(
    client: Client, more: dict[str, Any], said: str
) -> None:
    answer = client.post("/v1/rerank", body_of("/v1", ["a"], **more))
    assert answer.status_code == 422
    assert message_of("/v1/rerank", answer).startswith(said)


def test_rerank_of_documents_takes_nulls_for_what_is_not_given(client: Client) -> None:
    names = ("model", "top_n", "return_documents", "max_tokens_per_doc", "rank_fields")
    body = body_of("/v1", ["a"], **dict.fromkeys(names))
    assert client.post("/v1/rerank", body).status_code == 200


def test_rerank_cuts_documents_where_the_request_says_so() -> None:
    """Not a pair that is too long, which may be refused; a document below the limit is not cut."""
    documents = ["Ray is a distributed engine for many machines", "a", LONG]
    tokens = tiny_reranker().tokenize([("", text) for text in documents])
    n_passage = np.diff(tokens.offsets) - tokens.passage_starts - tokens.tail
    with endpoint(rerank=tiny_reranker(), limits={"too_long": "refuse"}) as client:
        assert client.post("/v2/rerank", body_of("/v2", documents)).status_code == 413
        body = body_of("/v2", documents, max_tokens_per_doc=4)
        answer = client.post("/v2/rerank", body)
        assert answer.status_code == 200, answer.text
        assert answer.headers[TRUNCATED_HEADER] == "2"
        [warning] = answer.json()["meta"]["warnings"]
        assert warning == "2 documents or the query were cut: 0, 2"
        assert client.post("/v2/rerank", body | {"query": LONG}).status_code == 413
    pairs = tiny_reranker().tokenize([(QUERY, text) for text in documents])
    rows = [
        [*row[: start + min(n, 4)], *row[-pairs.tail :]]
        for row, start, n in zip(pairs.rows(), pairs.passage_starts, n_passage, strict=True)
    ]
    assert answer.json()["usage"]["total_tokens"] == sum(map(len, rows))
    offsets = np.cumsum([0, *map(len, rows)])
    values = np.concatenate(rows).astype(np.int32)
    by_hand = dataclasses.replace(
        pairs, values=values, offsets=offsets, types=np.zeros_like(values)
    )
    expected = logistic(tiny_reranker().score_tokens(by_hand)[0][:, 0])
    found = {each["index"]: each["relevance_score"] for each in answer.json()["results"]}
    np.testing.assert_allclose([found[row] for row in range(3)], expected, atol=1e-5)


def test_models_are_the_encoder_and_the_reranker_and_neither_does_the_others_work(
    client: Client,
) -> None:
    embedder, reranker = client.get("/v1/models").json()["data"]
    assert embedder["id"] == tiny_encoder().info.name
    assert (reranker["id"], reranker["capabilities"]) == (str(RERANKER), ["rerank"])
    body = body_of("/v1", ["a"], model=reranker["id"])
    assert client.post("/v1/rerank", body).json()["model"] == reranker["id"]
    for name in (reranker["id"], f"{reranker['id']}:passage"):
        answer = client.post("/v1/embeddings", {"input": "a", "model": name})
        assert answer.status_code == 422
        assert "expected an embedder (" in answer.json()["error"]["message"]
    body = {"input": "a", "model": embedder["id"]}
    assert client.post("/v1/embeddings", body).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_rerank_without_a_reranker_says_how_to_get_one(path: str) -> None:
    with endpoint() as client:
        answer = client.post(path, body_of(path, ["a"]))
        assert answer.status_code == 404
        assert "set reranker: {name: ...}" in message_of(path, answer)
        assert client.get("/info").json()["reranker"] is None


@pytest.mark.parametrize("path", PATHS)
def test_rerank_wants_a_key_in_the_shape_of_its_api(path: str) -> None:
    with endpoint(keys=("one",), rerank=tiny_reranker()) as client:
        answer = client.post(path, body_of(path, ["a"]))
        assert answer.status_code == 401
        message_of(path, answer)


@pytest.mark.parametrize("path", PATHS)
def test_rerank_of_a_pair_without_a_finite_score_fails(
    client: Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny_reranker().score_tokens

    def score_tokens(tokens: Any) -> Any:
        scores, failures = real(tokens)
        return scores, failures | {1: "NaN or Inf in its score"}

    monkeypatch.setattr(tiny_reranker(), "score_tokens", score_tokens)
    answer = client.post(path, body_of(path, ["a", "b"]))
    assert answer.status_code == 424
    assert "[1]: the pair cannot be scored (NaN or Inf" in message_of(path, answer)


def test_rerank_when_the_queue_is_full_says_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, real = threading.Event(), tiny_reranker().score_tokens

    def score_tokens(tokens: Any) -> Any:
        assert gate.wait(20)
        return real(tokens)

    monkeypatch.setattr(tiny_reranker(), "score_tokens", score_tokens)
    with endpoint(rerank=tiny_reranker(), limits={"max_queued_texts": 8}) as client:

        async def flood() -> list[httpx.Response]:
            async with client.open() as http:
                body = body_of("/rerank", ["a", "b"])
                tasks = [asyncio.create_task(http.post("/rerank", json=body)) for _ in range(20)]
                while sum(task.done() for task in tasks) < 16:
                    await asyncio.sleep(0.01)
                encoded = await http.post("/embed", json={"inputs": "a"})
                assert encoded.status_code == 200  # the encoder's queue is another
                gate.set()
                return [await task for task in tasks]

        answers = client.run(flood())
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) == 16
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in full)
    assert "8 pairs are waiting, at most 8 may wait" in message_of("/rerank", full[0])
    assert sum(answer.status_code == 200 for answer in answers) == 4


def test_rerank_is_counted_and_shown(client: Client) -> None:
    def metric(name: str) -> float:
        start = f'{name}{{replica="r1"'
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    names = ("reranks_total", "rerank_pairs_total", "rerank_seconds_count")
    before = [metric(f"packvec_{name}") for name in names]
    client.post("/rerank", body_of("/rerank", TEXTS))
    after = [metric(f"packvec_{name}") for name in names]
    assert np.subtract(after, before).tolist() == [1, len(TEXTS), 1]
    assert metric("packvec_queued_pairs") == 0
    shown = client.get("/info").json()["reranker"]
    assert (shown["name"], shown["kind"]) == (str(RERANKER), "encoder")
    assert shown["max_length"] == 96


def test_rerank_warm_up_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(rerank=tiny_reranker()) as client:
        rerank = client.rerank
        assert rerank is not None
        client.run(rerank.warm_up())
        monkeypatch.setattr(
            tiny_reranker(), "score_tokens", lambda tokens: (np.full((3, 1), np.nan), {0: "NaN"})
        )
        with pytest.raises(Exception, match="cannot score: NaN"):
            client.run(rerank.warm_up())
