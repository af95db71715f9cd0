"""A run submitted through Ray's Jobs API, as a scheduler does it: the second has nothing to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipelines.config import load_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index

MODULE = "pipelines.reindex"
ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}

# A process of its own: the tests' own cluster has no dashboard. What starts its jobs listens at a
# fixed port by default, which any other cluster on this machine may have.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 4,
    "object_store_memory": 256 << 20,
    "include_dashboard": True,
    "dashboard_port": 0,
    "dashboard_agent_listen_port": int(sys.argv[1]),
})
print("dashboard", cluster.head_node.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def wait_for_agent(client: JobSubmissionClient) -> None:
    """What starts jobs is there a few seconds after the server that takes them."""
    deadline = time.monotonic() + 90
    while True:
        try:
            client.submit_job(entrypoint="true")
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobSubmissionClient]:
    """The job server of a cluster that ends with the process that started it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("dashboard")).split()[1]
            client = JobSubmissionClient(f"http://{url}")
            wait_for_agent(client)
            yield client
        finally:
            process.communicate(timeout=60)  # closes its input, at which it ends


@pytest.fixture
def config(tmp_path: Path, articles: pa.Table) -> Path:
    """Of a committed index of ten articles whose source has two more since."""
    raw = {
        "source": {"uri": str(tmp_path / "docs.parquet")},
        "index": {"uri": str(tmp_path / "index")},
        "model": {"name": "builtin:tiny-m3", "max_length": 64},
        "outputs": ["dense"],
        "ray": {"actors": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    pq.write_table(articles.slice(0, 10), tmp_path / "docs.parquet")
    embed_corpus(load_config(path, ["ray.engine=in_process"]))
    pq.write_table(articles.slice(0, 12), tmp_path / "docs.parquet")
    return path


def run(jobs: JobSubmissionClient, entrypoint: str) -> tuple[JobDetails, str]:
    """What became of a job, and what it said."""
    job = jobs.submit_job(entrypoint=entrypoint)
    deadline = time.monotonic() + 120
    while jobs.get_job_status(job) not in ENDED:
        assert time.monotonic() < deadline, jobs.get_job_logs(job)
        time.sleep(0.1)
    return jobs.get_job_info(job), jobs.get_job_logs(job)


@pytest.mark.slow
def test_reindex_submitted_twice_as_a_job_has_nothing_to_do_the_second_time(
    jobs: JobSubmissionClient, config: Path, tmp_path: Path
) -> None:
    generations = []
    for _ in range(2):
        job, said = run(jobs, f"python -m {MODULE} {config}")
        assert (job.status, job.driver_exit_code) == (JobStatus.SUCCEEDED, 0), said
        index = open_index(str(tmp_path / "index"))
        assert index.documents().num_rows == 12
        generations.append(index.info.generation)
    assert generations == [2, 2]
    assert "nothing to do" in said


def test_reindex_cronjob_ends_with_the_exit_code_of_the_command(
    jobs: JobSubmissionClient, tmp_path: Path
) -> None:
    """The manifest's own script: what it ends with decides whether Kubernetes tries again."""
    manifest = yaml.safe_load((ROOT / "conf/deploy/reindex-cronjob.yaml").read_text())
    (container,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    script = script.replace("pipelines.reindex", MODULE).replace("conf/wiki.yaml", "none.yaml")
    pod = {"HOSTNAME": "packvec-reindex-1-a", "RAY_API_SERVER_ADDRESS": jobs.get_address()}
    ended = subprocess.run(
        [*container["command"], script],
        cwd=tmp_path,
        env=ENVIRONMENT | pod,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "none.yaml" in ended.stdout, ended.stderr  # the run's words
    assert ended.returncode == 2
