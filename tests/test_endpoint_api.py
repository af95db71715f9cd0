"""The endpoint's routes, limits and errors, without Ray."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from endpoint import OUTPUTS, Client, endpoint, tiny_encoder

from actors.scoring import pair_scores
from actors.tokens.tokenizer import encoder_input
from pipelines.endpoint.route_parts import ARROW, TRUNCATED_HEADER
from pipelines.endpoint.texts import Text

TEXTS = ["what is ray", "an engine for many machines"]
LONG = "word " * 100


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with endpoint(cache={"max_bytes": 0}) as client:
        yield client


def close(found: Any, expected: Any) -> None:
    numbers = (np.array(each, np.float32) for each in (found, expected))
    np.testing.assert_allclose(*numbers, atol=2e-3)


# /encode


def test_encode_gives_all_outputs_of_queries_as_the_encoder_does(client: Client) -> None:
    answer = client.post("/encode", {"texts": TEXTS}).json()
    alone = tiny_encoder().encode_queries(TEXTS)
    for row in range(2):
        close(answer["dense"][row], alone["dense"][row].as_py())
        assert answer["sparse"][row]["indices"] == alone["sparse"][row].as_py()["indices"]
        close(answer["sparse"][row]["values"], alone["sparse"][row].as_py()["values"])
        close(answer["colbert"][row], alone["colbert"][row].as_py())
    assert answer["faults"] == []
    assert answer["truncated"] == [False, False]
    assert answer["n_tokens"] == tiny_encoder().tokenize_queries(TEXTS).lengths.tolist()
    assert answer["space_fingerprint"] == tiny_encoder().info.space_fingerprint


def test_encode_gives_only_the_outputs_asked_for(client: Client) -> None:
    answer = client.post("/encode", {"texts": TEXTS, "outputs": ["sparse"]}).json()
    assert "sparse" in answer
    assert not {"dense", "colbert"} & set(answer)


@pytest.mark.parametrize("prefix", [True, False])
def test_encode_puts_titles_before_passages_as_the_chunker_does(prefix: bool) -> None:
    with endpoint(chunk={"title_prefix": prefix}) as client:
        body = {"texts": TEXTS, "titles": ["Ray", None], "kind": "passage", "outputs": ["dense"]}
        answer = client.post("/encode", body).json()
    inputs = [encoder_input("Ray", TEXTS[0]), TEXTS[1]] if prefix else TEXTS
    close(answer["dense"], tiny_encoder().encode_passages(inputs)["dense"].to_pylist())


def test_encode_title_above_half_of_the_budget_is_cut_and_said(client: Client) -> None:
    body = {"texts": ["a text"], "titles": [LONG], "kind": "passage", "outputs": ["dense"]}
    answer = client.post("/encode", body).json()
    assert answer["truncated"] == [True]
    assert 32 <= answer["n_tokens"][0] <= 40


def test_encode_as_arrow_has_the_types_of_an_index(client: Client) -> None:
    answer = client.post("/encode", {"texts": [*TEXTS, " "]}, headers={"Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    alone = tiny_encoder().encode_queries(TEXTS)
    for name in OUTPUTS:
        assert table.schema.field(name).type == alone.schema.field(name).type
        assert table[name][2].as_py() is None
    close(table["dense"].to_pylist()[:2], alone["dense"].to_pylist())
    assert table["fault"].to_pylist()[:2] == [None, None]
    assert "whitespace" in table["fault"][2].as_py()
    fingerprint = tiny_encoder().info.space_fingerprint
    assert table.schema.metadata[b"space_fingerprint"].decode() == fingerprint


def test_encode_truncate_dim_cuts_and_normalises_again(client: Client) -> None:
    answer = client.post("/encode", {"texts": TEXTS, "truncate_dim": 8}).json()
    full = np.array(tiny_encoder().encode_queries(TEXTS)["dense"].to_pylist())[:, :8]
    close(answer["dense"], full / np.linalg.norm(full, axis=1, keepdims=True))
    assert len(answer["colbert"][0][0]) == 8


def test_encode_bad_text_fails_alone(client: Client) -> None:
    answer = client.post("/encode", {"texts": ["", "fine"], "outputs": ["dense"]})
    assert answer.status_code == 200
    assert [fault["code"] for fault in answer.json()["faults"]] == ["empty_text"]
    assert answer.json()["dense"][0] is None
    close(answer.json()["dense"][1], tiny_encoder().encode_queries(["fine"])["dense"][0].as_py())


def test_encode_truncated_text_is_said_so(client: Client) -> None:
    answer = client.post("/encode", {"texts": [LONG, "short"], "outputs": ["dense"]})
    assert answer.json()["truncated"] == [True, False]
    assert answer.json()["n_tokens"][0] == 64
    assert answer.headers[TRUNCATED_HEADER] == "1"


def test_encode_text_above_a_configured_limit_is_cut_there() -> None:
    with endpoint(limits={"max_tokens": 10}) as client:
        for kind in ("query", "passage"):
            answer = client.post("/encode", {"texts": [LONG], "kind": kind}).json()
            assert answer["n_tokens"] == [10]


@pytest.mark.parametrize("path", ["/encode", "/embed", "/v1/embeddings"])
def test_too_long_text_is_refused_where_the_configuration_says_so(path: str) -> None:
    name = {"/encode": "texts", "/embed": "inputs", "/v1/embeddings": "input"}[path]
    with endpoint(limits={"too_long": "refuse"}) as client:
        answer = client.post(path, {name: [LONG], "model": ""} if "v1" in path else {name: [LONG]})
    assert answer.status_code == 413
    assert "at most 64 tokens" in answer.text


def test_too_long_text_is_refused_where_the_request_says_so(client: Client) -> None:
    answer = client.post("/encode", {"texts": [LONG, "a"], "truncate": False}).json()
    assert [(f["row"], f["code"]) for f in answer["faults"]] == [(0, "too_long")]
    assert client.post("/embed", {"inputs": LONG, "truncate": False}).status_code == 413


# Refusals

REFUSALS: list[tuple[str, Any, int, str]] = [
    ("/encode", {"texts": []}, 400, "texts"),
    ("/encode", {"texts": ["  "]}, 400, "texts[0]"),
    ("/encode", {}, 422, "texts"),
    ("/encode", {"texts": "one"}, 422, "texts"),
    ("/encode", {"texts": ["a", 1]}, 422, "texts.1"),
    ("/encode", {"texts": ["a"], "knd": "query"}, 422, "knd"),
    ("/encode", {"texts": ["a"], "kind": "document"}, 422, "kind"),
    ("/encode", {"texts": ["a"], "outputs": ["dens"]}, 422, "outputs.0"),
    ("/encode", {"texts": ["a"], "outputs": []}, 422, "outputs"),
    ("/encode", {"texts": ["a"], "truncate_dim": 10_000}, 422, "truncate_dim"),
    ("/encode", {"texts": ["a"], "truncate_dim": 0}, 422, "truncate_dim"),
    ("/encode", {"texts": ["a"], "titles": ["b"]}, 422, "titles"),
    ("/encode", {"texts": ["a"], "titles": [], "kind": "passage"}, 422, "titles"),
    ("/encode", {"texts": ["a"] * 2049}, 413, ""),
    ("/score", {"pairs": []}, 400, "pairs"),
    ("/score", {"pairs": [["a"]]}, 422, "pairs.0"),
    ("/score", {"pairs": [["a", ""]]}, 400, "pairs[0]"),
    ("/score", {"pairs": [["a", "b"]], "weights": [0, 0, 0]}, 422, "weights"),
    ("/v1/embeddings", {"input": [], "model": "m"}, 400, "input"),
    ("/v1/embeddings", {"input": "", "model": "m"}, 400, "input[0]"),
    ("/v1/embeddings", {"input": [[]], "model": "m"}, 400, "input[0]"),
    ("/v1/embeddings", {"input": [10**6], "model": "m"}, 422, "input[0]"),
    ("/v1/embeddings", {"input": "a", "dimensions": 9999}, 422, "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
    ("/v1/embeddings", {"model": "m"}, 422, "input"),
    ("/embed", {"inputs": []}, 400, "inputs"),
    ("/embed", {"inputs": "\n"}, 400, "inputs[0]"),
    ("/embed", {"inputs": "a", "normalize": False}, 422, "normalize"),
    ("/embed", {}, 422, "inputs"),
    ("/", {"inputs": 1}, 422, "inputs"),
    ("/embed_sparse", {"inputs": ["a"] * 2049}, 413, ""),
    ("/tokenize", {"inputs": []}, 400, "inputs"),
    ("/tokenize", {"inputs": ["a"] * 2049}, 413, ""),
]


def field_of(path: str, body: Any) -> str:
    """Where an error body says the fault is; fails where it has not its API's shape."""
    if path.startswith("/v1"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]["param"] or ""
    if path in ("/encode", "/score"):
        assert {"code", "message"} <= set(body["error"])
        return body["error"].get("field", "")
    assert set(body) == {"error", "error_type"}
    return body["error"].partition(": ")[0] if ": " in body["error"] else ""


@pytest.mark.parametrize(
    ("path", "body", "status", "field"), REFUSALS, ids=[f"{r[0]} {r[1]!r:.50}" for r in REFUSALS]
)
def test_refusal_has_status_and_field_in_the_shape_of_its_api(
    client: Client, path: str, body: Any, status: int, field: str
) -> None:
    answer = client.post(path, body)
    assert answer.status_code == status, answer.text
    assert field_of(path, answer.json()).startswith(field)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/encode", "/v1/embeddings", "/embed"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"texts": ["\xff"]}', b"[]", b"null", b"1e999"])
def test_refusal_of_a_body_that_is_no_object(client: Client, path: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.request("POST", path, content=content, headers=headers)
    assert answer.status_code in (400, 422)
    field_of(path, answer.json())


@pytest.mark.parametrize("path", ["/encode", "/v1/embeddings", "/embed"])
def test_refusal_of_lone_surrogates(client: Client, path: str) -> None:
    name = {"/encode": "texts", "/embed": "inputs", "/v1/embeddings": "input"}[path]
    content = json.dumps({name: ["\ud800"], "model": ""} if "v1" in path else {name: ["\ud800"]})
    headers = {"Content-Type": "application/json"}
    answer = client.request("POST", path, content=content.encode(), headers=headers)
    assert answer.status_code == 422


def test_refusal_of_an_output_the_model_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint() as client:
        dense = dataclasses.replace(tiny_encoder().info, outputs=("dense",))
        monkeypatch.setattr(tiny_encoder(), "info", dense)
        assert client.post("/embed_sparse", {"inputs": "a"}).status_code == 422
        answer = client.post("/encode", {"texts": ["a"], "outputs": ["colbert"]})
    assert answer.status_code == 422
    assert "dense (the outputs of this endpoint)" in answer.text


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/encode", "/v1/embeddings", "/embed"])
def test_refusal_of_a_body_above_the_limit(path: str, declared: bool) -> None:
    content = json.dumps({"texts": ["a" * 2000]}).encode()

    async def parts() -> Any:
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    with endpoint(limits={"max_body_bytes": 1000}) as client:
        answer = client.request("POST", path, content=content if declared else parts())
        assert answer.status_code == 413
        field_of(path, answer.json())
        small = client.post("/encode", {"texts": ["a" * 900]})
        assert small.status_code == 200


def test_refusal_of_more_colbert_than_an_answer_can_hold() -> None:
    with endpoint(limits={"max_colbert_tokens": 100}) as client:
        body = {"texts": [LONG, LONG]}
        answer = client.post("/encode", body)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_many_tokens"
        assert client.post("/encode", body | {"outputs": ["dense"]}).status_code == 200
        assert client.post("/encode", {"texts": [LONG]}).status_code == 200


def test_routes_below_a_prefix_are_open_and_shaped_as_without() -> None:
    with endpoint(keys=("one",)) as client:
        app = client.app

        async def prefixed(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"root_path": "/v", "path": f"/v{scope['path']}"}, receive, send)

        client.app = prefixed
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/embeddings", {"input": "a"})
        assert answer.status_code == 401
        field_of("/v1/embeddings", answer.json())
        key = {"Authorization": "Bearer one"}
        field_of("/embed", client.post("/embed", {"inputs": []}, headers=key).json())


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/encode", 405)]
)
def test_refusal_of_a_route_that_is_none(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] in ("not_found", "method_not_allowed")


def test_refusal_when_the_queue_is_full_says_when_to_come_again() -> None:
    gate = threading.Event()
    with endpoint(limits={"max_queued_texts": 4}) as client:
        service = client.service
        service._batcher._stream, real = (
            lambda ids, outputs: (gate.wait(20), real(ids, outputs))[1],
            service._batcher._stream,
        )

        async def flood() -> list[Any]:
            async with client.open() as http:
                tasks = [
                    asyncio.create_task(http.post("/encode", json={"texts": [f"text {i}"]}))
                    for i in range(20)
                ]
                while sum(task.done() for task in tasks) < 16:
                    await asyncio.sleep(0.01)
                gate.set()
                return [await task for task in tasks]

        answers = client.run(flood())
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) == 16
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in full)
    assert full[0].json()["error"]["code"] == "queue_full"
    assert [answer.status_code for answer in answers].count(200) == 4


def test_request_of_a_client_that_went_is_not_encoded() -> None:
    begun, gate, passes = threading.Event(), threading.Event(), []
    with endpoint() as client:
        batcher = client.service._batcher
        real = batcher._stream

        def stream(ids: Any, outputs: Any) -> Any:
            begun.set()
            assert gate.wait(20)
            passes.append(len(ids))
            return real(ids, outputs)

        batcher._stream = stream

        async def leave() -> None:
            service = client.service
            first = asyncio.create_task(service.encode([Text("passage", "first")], ("dense",)))
            assert await asyncio.to_thread(begun.wait, 20)
            gone = asyncio.create_task(service.encode([Text("passage", "gone")], ("dense",)))
            await asyncio.sleep(0.2)
            gone.cancel()
            gate.set()
            await first
            assert service._backlog.items == 0

        client.run(leave())
        client.run(client.service.check())
    assert passes[0] == 1
    assert sum(passes) == 3  # the first, and the check's query and passage


def test_before_it_is_warm_every_route_says_503() -> None:
    with endpoint(warm=False) as client:
        for path in ("/encode", "/v1/embeddings", "/embed"):
            answer = client.post(path, {"texts": ["a"]})
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
            field_of(path, answer.json())
        assert client.get("/health").status_code == 503
        client.run(client.service.warm_up())
        assert client.get("/health").status_code == 200


def test_encoder_that_fails_is_unhealthy_and_its_texts_are_424(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("device lost, said of 'secret text'")

    with endpoint() as client:
        monkeypatch.setattr(tiny_encoder()._forward, "backbone", broken)
        assert client.post("/encode", {"texts": ["a"]}).status_code == 424
        openai = client.post("/v1/embeddings", {"input": "a", "model": "m"})
        assert openai.status_code == 424
        assert openai.json()["error"]["type"] == "server_error"
        assert client.post("/embed", {"inputs": "a"}).json()["error_type"] == "Backend"
        assert client.get("/health").status_code == 503


def test_error_of_ours_gives_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint() as client:

        def broken(*_: Any) -> Any:
            raise ValueError("internals")

        monkeypatch.setattr(client.service, "_check_outputs", broken)
        answer = client.post("/encode", {"texts": ["a"]})
    assert answer.status_code == 500
    assert "internals" not in answer.text
    assert answer.json()["error"]["code"] == "internal"


# Keys


def test_keys_open_the_routes_and_nothing_else_does() -> None:
    with endpoint(keys=("one", "two")) as client:
        for path in ("/encode", "/embed", "/v1/embeddings"):
            answer = client.post(path, {})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            field_of(path, answer.json())
        for given in ("Bearer three", "Bearer", "Basic one", "one", "Bearer one two", "Bearer "):
            answer = client.post("/encode", {"texts": ["a"]}, headers={"Authorization": given})
            assert answer.status_code == 401, given
        for given in ("Bearer one", "bearer two", "Bearer  one"):
            answer = client.post("/encode", {"texts": ["a"]}, headers={"Authorization": given})
            assert answer.status_code == 200, given
        assert client.get("/metrics").status_code == 401
        assert client.get("/info").status_code == 401
        for path in ("/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


# OpenAI


def test_openai_answers_floats_base64_and_usage(client: Client) -> None:
    alone = tiny_encoder().encode_queries(TEXTS)["dense"].to_pylist()
    answer = client.post("/v1/embeddings", {"input": TEXTS, "model": "any"}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "builtin:tiny-m3"
    assert [d["index"] for d in answer["data"]] == [0, 1]
    close([d["embedding"] for d in answer["data"]], alone)
    tokens = int(tiny_encoder().tokenize_queries(TEXTS).lengths.sum())
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"input": TEXTS[0], "model": "any", "encoding_format": "base64", "dimensions": 8}
    [data] = client.post("/v1/embeddings", body).json()["data"]
    vector = np.frombuffer(base64.b64decode(data["embedding"]), "<f4")
    close(vector, np.array(alone[0][:8]) / np.linalg.norm(alone[0][:8]))


def test_openai_token_ids_are_encoded_as_they_are(client: Client) -> None:
    rows = [ids.tolist() for ids in tiny_encoder().tokenize_queries(TEXTS).rows()]
    alone = tiny_encoder().encode_queries(TEXTS)["dense"].to_pylist()
    answer = client.post("/v1/embeddings", {"input": rows, "model": ""}).json()
    close([d["embedding"] for d in answer["data"]], alone)
    [data] = client.post("/v1/embeddings", {"input": rows[0], "model": ""}).json()["data"]
    close(data["embedding"], alone[0])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"model": "m"}, "query"),
        ({"model": "m:passage"}, "passage"),
        ({"model": "m:passage", "kind": "query"}, "query"),
        ({"model": "package:x/y", "kind": "passage"}, "passage"),
    ],
)
def test_openai_kind_is_the_bodys_or_the_models_or_the_default(
    client: Client, monkeypatch: pytest.MonkeyPatch, body: dict[str, str], kind: str
) -> None:
    seen: list[Text] = []
    tokenize = client.service._batcher._tokenize
    monkeypatch.setattr(
        client.service._batcher, "_tokenize", lambda texts: (seen.extend(texts), tokenize(texts))[1]
    )
    client.post("/v1/embeddings", {"input": "a"} | body)
    assert [text.kind for text in seen] == [kind]


def test_openai_models_lists_the_one(client: Client) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "builtin:tiny-m3"


# text-embeddings-inference


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_tei_embed_gives_dense_vectors(client: Client, path: str) -> None:
    alone = tiny_encoder().encode_queries(TEXTS)["dense"].to_pylist()
    close(client.post(path, {"inputs": TEXTS}).json(), alone)
    close(client.post(path, {"inputs": TEXTS[0], "normalize": True}).json(), alone[:1])


def test_tei_embed_sparse_and_all(client: Client) -> None:
    alone = tiny_encoder().encode_passages(TEXTS)
    body = {"inputs": TEXTS, "prompt_name": "passage"}
    for row, found in enumerate(client.post("/embed_sparse", body).json()):
        expected = alone["sparse"][row].as_py()
        assert [each["index"] for each in found] == expected["indices"]
        close([each["value"] for each in found], expected["values"])
    for row, found in enumerate(client.post("/embed_all", body).json()):
        close(found, alone["colbert"][row].as_py())


def test_tei_tokenize_gives_ids_and_places_of_tokens(client: Client) -> None:
    text = "what is ray"
    [tokens] = client.post("/tokenize", {"inputs": text}).json()
    assert [t["id"] for t in tokens] == tiny_encoder().tokenize_queries([text]).values.tolist()
    own = [t for t in tokens if not t["special"]]
    assert "".join(text[t["start"] : t["stop"]] for t in own).replace(" ", "") == "whatisray"
    assert tokens[0]["special"]
    assert tokens[0]["start"] is None
    [bare] = client.post("/tokenize", {"inputs": [text], "add_special_tokens": False}).json()
    assert bare == own


def test_info_says_what_is_served(client: Client) -> None:
    info = client.get("/info").json()
    facts = tiny_encoder().info
    assert info["space_fingerprint"] == facts.space_fingerprint
    assert info["outputs"] == list(facts.outputs)
    assert info["dim"] == facts.dim
    assert info["model_id"] == "builtin:tiny-m3"
    assert info["max_input_length"] == 64


# /score, cache, metrics


def test_score_gives_every_score_and_their_weighted_mean(client: Client) -> None:
    pairs = [[TEXTS[0], TEXTS[1]], [TEXTS[0], "a city"]]
    answer = client.post("/score", {"pairs": pairs, "weights": [0.4, 0.2, 0.4]}).json()
    queries = tiny_encoder().encode_queries([q for q, _ in pairs])
    passages = tiny_encoder().encode_passages([p for _, p in pairs])
    expected = pair_scores(queries, passages, (0.4, 0.2, 0.4))
    for name in OUTPUTS:
        close(answer[name], expected[name])
    close(answer["weighted"], expected["colbert+sparse+dense"])


def test_cache_answers_queries_it_knows_and_only_with_the_outputs_it_has() -> None:
    with endpoint() as client:
        bodies = [{"texts": ["a"], "outputs": [name]} for name in ("dense", "dense", "sparse")]
        answers = [client.post("/encode", body).json() for body in bodies]
        assert answers[0] == answers[1]
        client.post("/encode", {"texts": ["a"], "kind": "passage", "outputs": ["dense"]})
        assert metric(client, "packvec_cache_hits_total") == 1
        assert metric(client, "packvec_cache_misses_total") == 2
        assert metric(client, "packvec_cache_bytes") > 0


def test_cache_switched_off_keeps_nothing(client: Client) -> None:
    for _ in range(2):
        client.post("/encode", {"texts": ["again"], "outputs": ["dense"]})
    assert metric(client, "packvec_cache_hits_total") == 0


def test_metrics_count_and_name_replicas() -> None:
    with endpoint() as client:
        client.post("/encode", {"texts": TEXTS})
        client.post("/encode", {"texts": []})
        client.get("/some/path")
        client.post("/encode", {"texts": [LONG, " "]})
        page = client.get("/metrics").text
        assert 'packvec_requests_total{replica="r1",route="/encode",status="200"} 2.0' in page
        assert 'packvec_requests_total{replica="r2",route="/encode",status="400"} 1.0' in page
        assert 'packvec_requests_total{replica="r1",route="other",status="404"} 1.0' in page
        assert 'packvec_errors_total{code="empty",replica="r1",route="/encode"} 1.0' in page
        assert 'packvec_text_faults_total{code="empty_text",replica="r1"} 1.0' in page
        assert "some/path" not in page
        assert page.count("# TYPE packvec_tokens_total counter") == 1
        tokens = tiny_encoder().tokenize_queries([*TEXTS, LONG]).lengths.sum()
        warm = metric(client, "packvec_batch_texts_sum") - 3
        assert warm > 0
        assert metric(client, "packvec_tokens_total") > tokens
        assert metric(client, "packvec_truncated_texts_total") == 1
        assert metric(client, "packvec_queued_texts") == 0


def metric(client: Client, name: str) -> float:
    line = next(
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith(name) and 'replica="r1"' in line
    )
    return float(line.rpartition(" ")[2])
