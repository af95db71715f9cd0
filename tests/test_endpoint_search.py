"""POST /search without Ray: the same answers as a search in process, its limits and errors."""

from __future__ import annotations

import asyncio
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint import GENERATION, OUTPUTS, Client, endpoint
from searched import encoder_of, searched_index, searcher_of
from small_index import History

from actors.encoder import Encoder
from actors.scoring import colbert_matrix, dense_matrix, sparse_matrix
from actors.search.fusion import weighted_mean
from pipelines.endpoint.route_parts import TRUNCATED_HEADER
from pipelines.search.answers import find
from pipelines.search.searcher import MODES, Searcher, ShardDownError

SPACE = "▁"  # a token of its own before some words, whose first character it claims
QUERIES = ["the bridge over the river", "volcano 🌋 lava", "東京"]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return searched_index(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def encoder(history: History) -> Encoder:
    return encoder_of(history)


@pytest.fixture(scope="module")
def searcher(history: History, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    searcher = searcher_of(history.index, tmp_path_factory.mktemp("files"), shards=2)
    assert searcher.shards == 2
    return searcher


def sections(history: History) -> dict[str, Any]:
    return {"chunk": history.config.chunk.model_dump()}


@pytest.fixture(scope="module")
def client(history: History, encoder: Encoder, searcher: Searcher) -> Iterator[Client]:
    with endpoint(encoder, searcher=searcher, **sections(history)) as client:
        yield client


def search(client: Client, **body: Any) -> Any:
    answer = client.post("/search", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("by", ["passage", "document"])
@pytest.mark.parametrize("mode", MODES)
def test_search_gives_what_a_search_in_process_finds(
    client: Client, encoder: Encoder, searcher: Searcher, mode: Any, by: Any
) -> None:
    answer = search(client, queries=QUERIES, mode=mode, by=by, top=4)
    assert answer["mode"] == mode
    assert answer["generation"] == GENERATION
    assert [result["query"] for result in answer["results"]] == QUERIES
    found = find(searcher, encoder.encode_queries(QUERIES), mode, 4, unit=by)
    for result, hits in zip(answer["results"], found, strict=True):
        assert [h["passage_id"] for h in result["hits"]] == [h.passage["passage_id"] for h in hits]
        for mine, theirs in zip(result["hits"], hits, strict=True):
            assert mine["rank"] == theirs.rank
            assert mine["score"] == pytest.approx(theirs.score, abs=1e-4)
            assert mine["scores"] == pytest.approx(theirs.scores, abs=1e-4)
            assert {name: mine[name] for name in theirs.passage} == theirs.passage


def test_search_ranks_live_rows_as_a_naive_comparison_of_all_does(
    client: Client, encoder: Encoder, history: History
) -> None:
    rows = history.index.to_table()
    queries = encoder.encode_queries(QUERIES)
    scores = {
        "dense": dense_matrix(queries["dense"], rows["dense"]),
        "sparse": sparse_matrix(queries["sparse"], rows["sparse"]),
        "colbert": colbert_matrix(queries["colbert"], rows["colbert"]),
    }
    weights = (0.5, 0.1, 0.4)
    mean_QN = weighted_mean(scores, weights)
    answer = search(client, queries=QUERIES, weights=weights, top=50)
    ids = rows["passage_id"].to_pylist()
    for q, result in enumerate(answer["results"]):
        order = np.argsort(-mean_QN[q], kind="stable")
        assert [hit["passage_id"] for hit in result["hits"]] == [ids[i] for i in order]
        np.testing.assert_allclose(
            [hit["score"] for hit in result["hits"]], mean_QN[q][order], atol=1e-4
        )


def test_search_finds_nothing_that_is_deleted_and_the_edited_text(client: Client) -> None:
    hits = search(client, query="bridge", top=100)["results"][0]["hits"]
    texts = {hit["doc_id"]: hit["text"] for hit in hits}
    assert len(hits) == 7
    assert "gone" not in texts
    assert texts["edited"] == "After: a bridge of steel."


def test_search_without_a_shared_word_finds_nothing_by_sparse(client: Client) -> None:
    [result] = search(client, query="qqqq", mode="sparse", explain=True)["results"]
    assert result["hits"] == []
    assert [word["token"] for word in result["explain"]["sparse"]]


def test_search_gives_the_columns_asked_for(client: Client) -> None:
    [hit] = search(client, query="bridge", top=1, columns=["title", "url"])["results"][0]["hits"]
    assert set(hit) == {"rank", "score", "scores", "title", "url"}
    [all_of_them] = search(client, query="bridge", top=1)["results"][0]["hits"]
    assert {"doc_id", "text", "title", "url", "n_tokens"} < set(all_of_them)
    bare = search(client, query="bridge", top=3, columns=[])["results"][0]["hits"]
    assert [set(hit) for hit in bare] == [{"rank", "score", "scores"}] * 3
    assert not {"dense", "sparse", "colbert", "passage_hash"} & set(all_of_them)


# Explanations


@pytest.mark.parametrize("query", [*QUERIES, "the bridge", "words " * 200])
def test_explanation_adds_up_to_the_scores_and_its_offsets_are_of_the_text(
    client: Client, query: str
) -> None:
    [result] = search(client, query=query, top=20, explain=True)["results"]
    tokens = result["explain"]["query_tokens"]
    for token in tokens:
        if token["start"] is not None and token["text"] != SPACE:
            assert bare(query[token["start"] : token["stop"]]) == bare(token["text"])
    weights = {word["token"]: word["weight"] for word in result["explain"]["sparse"]}
    assert list(weights.values()) == sorted(weights.values(), reverse=True)
    assert len(result["hits"]) == 7
    for hit in result["hits"]:
        said, text = hit["explain"], hit["text"]
        products = [word["product"] for word in said["sparse"]]
        assert products == sorted(products, reverse=True)
        assert sum(products) == pytest.approx(hit["scores"]["sparse"], abs=2e-3)
        for word in said["sparse"]:
            assert word["query"] == weights[word["token"]]
        assert len(said["alignment"]) == len(tokens)
        assert np.mean([score for _, score in said["alignment"]]) == pytest.approx(
            hit["scores"]["colbert"], abs=1e-3
        )
        assert len(said["passage_tokens"]) == hit["n_tokens"] - 1
        places = [token for token in said["passage_tokens"] if token["start"] is not None]
        for token in places:
            if token["text"] == SPACE:
                continue
            assert bare(text[token["start"] : token["stop"]]) == bare(token["text"])
        assert places[0]["start"] == 0  # the title before it is no part of the text
        assert said["passage_tokens"][-1]["start"] is None  # the end token
        if not hit["truncated"]:
            assert places[-1]["stop"] == len(text)
    assert {hit["truncated"] for hit in result["hits"]} == {True, False}


def bare(token: str) -> str:
    """Letters of the vocabulary's entry or of the text, whichever way each writes them."""
    return unicodedata.normalize("NFKC", token).removeprefix(SPACE).strip()


def test_explanation_aligns_tokens_as_their_vectors_do(
    client: Client, encoder: Encoder, history: History
) -> None:
    query = "the stone bridge"
    rows = history.index.to_table().to_pylist()
    stored = {row["passage_id"]: np.array(row["colbert"], np.float32) for row in rows}
    query_QD = np.array(encoder.encode_queries([query])["colbert"][0].as_py(), np.float32)
    [result] = search(client, query=query, top=20, explain=True)["results"]
    own = [
        q for q, token in enumerate(result["explain"]["query_tokens"]) if token["start"] is not None
    ]
    for hit in result["hits"]:
        scores_QP = query_QD @ stored[hit["passage_id"]].T
        for q, (p, score) in enumerate(hit["explain"]["alignment"]):
            assert score == pytest.approx(scores_QP[q].max(), abs=2e-3)
            assert scores_QP[q, p] == pytest.approx(scores_QP[q].max(), abs=2e-3)
        most = [token["score"] for token in hit["explain"]["passage_tokens"]]
        np.testing.assert_allclose(most, scores_QP[own].max(axis=0), atol=2e-3)


def test_explanation_leaves_out_tokens_where_they_are_not_the_stored_ones(
    history: History, encoder: Encoder, searcher: Searcher
) -> None:
    """An endpoint that puts no titles before passages has other tokens than the index."""
    with endpoint(encoder, searcher=searcher, chunk={"title_prefix": False}) as client:
        [result] = search(client, query="bridge", top=20, explain=True)["results"]
    untouched = [hit for hit in result["hits"] if not hit["truncated"]]
    assert untouched
    for hit in untouched:
        assert "alignment" not in hit["explain"]
        assert "sparse" in hit["explain"]


# Refusals

REFUSALS: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 422, "malformed", ""),
    ({"query": "a", "queries": ["a"]}, 422, "malformed", ""),
    ({"queries": []}, 422, "malformed", "queries"),
    ({"queries": ["a"] * 65}, 422, "malformed", "queries"),
    ({"query": " "}, 400, "empty_text", "query"),
    ({"queries": ["a", ""]}, 400, "empty_text", "queries[1]"),
    ({"query": "a", "top": 0}, 422, "malformed", "top"),
    ({"query": "a", "top": 1001}, 422, "malformed", "top"),
    ({"queries": ["a"] * 64, "top": 1000}, 413, "too_many_hits", "top"),
    ({"query": "a", "mode": "bm25"}, 422, "malformed", "mode"),
    ({"query": "a", "by": "line"}, 422, "malformed", "by"),
    ({"query": "a", "columns": ["txt"]}, 422, "no_such_column", "columns"),
    ({"query": "a", "columns": ["dense"]}, 422, "no_such_column", "columns"),
    ({"query": "a", "weights": [0, 0, 0]}, 422, "no_weight", "weights"),
    ({"query": "a", "weights": [1, 1, 1], "mode": "dense"}, 422, "weights", "weights"),
    ({"query": "a", "explain": True, "top": 21}, 422, "malformed", ""),
    ({"query": "a", "tpo": 3}, 422, "malformed", "tpo"),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), REFUSALS)
def test_search_refusal_names_field_and_code(
    client: Client, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    answer = client.post("/search", body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"].get("field", "").startswith(field)


def test_search_of_a_mode_without_vectors_is_refused_and_the_only_output_is_the_default(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    dense = searcher_of(history.index, tmp_path, outputs=("dense",))
    with endpoint(encoder, searcher=dense) as client:
        refused = client.post("/search", {"query": "a", "mode": "rrf"})
        assert refused.status_code == 422
        assert "expected one of dense" in refused.json()["error"]["message"]
        assert search(client, query="a")["mode"] == "dense"
        assert client.get("/info").json()["search"]["modes"] == ["dense"]


def test_search_where_it_is_off_says_how_to_switch_it_on() -> None:
    with endpoint() as client:
        answer = client.post("/search", {"query": "a"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "no_search"
        assert "search: {}" in answer.json()["error"]["message"]
        assert client.get("/info").json()["search"] is None
        assert client.get("/").status_code == 200


def test_search_of_a_query_that_is_cut_is_said_so(client: Client) -> None:
    answer = client.post("/search", {"queries": ["word " * 500, "short"], "top": 1})
    assert answer.headers[TRUNCATED_HEADER] == "1"


def test_search_when_a_shard_is_down_is_503_until_it_answers_again(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    down = threading.Event()

    def before() -> None:
        if down.is_set():
            raise ShardDownError("expected an answer of shard 1 of 2 within 1 s, got none")

    searcher = searcher_of(history.index, tmp_path, 2, before)
    with endpoint(encoder, searcher=searcher) as client:
        assert client.post("/search", {"query": "a"}).status_code == 200
        down.set()
        answer = client.post("/search", {"query": "a"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shard_down"
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Traceback" not in answer.text
        assert client.post("/encode", {"texts": ["a"]}).status_code == 200
        down.clear()
        assert client.post("/search", {"query": "a"}).status_code == 200


def test_search_beyond_those_that_may_wait_is_429_and_blocks_no_other_route(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    gate = threading.Event()
    gate.set()
    searcher = searcher_of(history.index, tmp_path, before=lambda: gate.wait(20))
    with endpoint(encoder, searcher=searcher, limits={"max_searches": 6}) as client:
        gate.clear()

        async def flood() -> list[Any]:
            async with client.open() as http:
                body = {"query": "a bridge"}
                tasks = [asyncio.create_task(http.post("/search", json=body)) for _ in range(10)]
                while sum(task.done() for task in tasks) < 4:
                    await asyncio.sleep(0.01)
                other = await http.post("/encode", json={"texts": ["meanwhile"]})
                assert other.status_code == 200
                gate.set()
                return [await task for task in tasks]

        answers = client.run(flood())
        full = [answer for answer in answers if answer.status_code == 429]
        assert len(full) == 4
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in full)
        assert full[0].json()["error"]["code"] == "queue_full"
        assert [answer.status_code for answer in answers].count(200) == 6
        assert client.post("/search", {"query": "a"}).status_code == 200


def test_search_kept_waiting_by_others_for_too_long_is_503(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    gate = threading.Event()
    gate.set()
    searcher = searcher_of(history.index, tmp_path, before=lambda: gate.wait(20))
    with endpoint(encoder, searcher=searcher, limits={"search_timeout_s": 0.5}) as client:
        gate.clear()

        async def flood() -> list[Any]:
            async with client.open() as http:
                asked = [http.post("/search", json={"query": "a bridge"}) for _ in range(6)]
                tasks = [asyncio.create_task(each) for each in asked]
                await asyncio.sleep(1)
                gate.set()
                return [await task for task in tasks]

        answers = client.run(flood())
    late = [answer for answer in answers if answer.status_code == 503]
    assert len(late) == 2  # four threads search
    assert late[0].json()["error"]["code"] == "search_timeout"
    assert late[0].headers["Retry-After"]


# Operation


def test_search_is_counted_by_mode_and_info_says_what_is_searched(
    history: History, encoder: Encoder, searcher: Searcher
) -> None:
    with endpoint(encoder, searcher=searcher) as client:
        search(client, queries=["a", "b"], mode="dense")
        search(client, query="a")
        page = client.get("/metrics").text
        assert 'packvec_searches_total{mode="dense",replica="r1"} 2.0' in page
        assert 'packvec_searches_total{mode="hybrid",replica="r1"} 1.0' in page
        assert 'packvec_search_seconds_count{mode="hybrid",replica="r1"} 1.0' in page
        assert 'packvec_queued_searches{replica="r1"} 0.0' in page
        assert 'packvec_cache_hits_total{replica="r1"} 1.0' in page
        assert client.get("/info").json()["search"] == {
            "generation": GENERATION,
            "passages": 7,
            "modes": ["hybrid", "rrf", *OUTPUTS],
            "shards": 2,
        }


def test_page_needs_no_key_and_everything_else_does(encoder: Encoder, searcher: Searcher) -> None:
    with endpoint(encoder, keys=("one",), searcher=searcher, warm=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert client.post("/search", {"query": "a"}).status_code == 401
        assert client.post("/", {"inputs": "a"}).status_code == 401
        assert client.request("PUT", "/").status_code == 401
        key = {"Authorization": "Bearer one"}
        assert client.post("/search", {"query": "a"}, headers=key).status_code == 503
        client.run(client.service.warm_up())
        assert client.post("/search", {"query": "a"}, headers=key).status_code == 200
        assert client.request("HEAD", "/").status_code == 200
