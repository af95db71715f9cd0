"""The Ray cluster a run uses: an existing one, or a local one for as long as the run lasts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass

import ray
import ray.data

from actors.errors import ConfigError, StorageError
from pipelines.config.sections import RayConfig
from pipelines.store.store import Store

# A local cluster counts more CPUs than a small machine has: a reading task, an actor and Ray's own
# tasks must fit at once, or the pipeline waits for ever.
_MIN_LOCAL_CPUS = 4


@dataclass(frozen=True)
class Pool:
    """The shape of the encoder pool on this cluster."""

    actors: int
    """To begin with."""
    gpus: float
    cpus: int
    least: int
    most: int
    """The pool grows and shrinks between the two, as the cluster does."""


@contextmanager
def ray_session(config: RayConfig, *, verbose: bool = False) -> Iterator[None]:
    """Connect to Ray, or start a local cluster and stop it at the end.

    A process that is connected already (a notebook, a test) is left as it is.

    Raises:
        ConfigError: the address cannot be reached.
    """
    _quieten(verbose)
    if ray.is_initialized():
        yield
        return
    if not verbose:
        # Ray reports every restartable actor of its own as an error of its core (ray#53727).
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Without an explicit address Ray would find any cluster that happens to run on this machine.
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    local = {"num_cpus": max(_MIN_LOCAL_CPUS, os.cpu_count() or 1), "include_dashboard": False}
    try:
        with nullcontext() if verbose else _muted_stderr(), _our_sigterm_handler():
            ray.init(
                address=address,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.ERROR,
                **(local if address == "local" else {}),
            )
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"ray.address: expected a Ray cluster at {address}, found none ({error!s:.120})."
        ) from None
    with nullcontext() if verbose else _muted_stdout():
        try:
            yield
        finally:
            ray.shutdown()


def pool_for(config: RayConfig, *, shrunk: bool = False) -> Pool:
    """How many encoder actors, and what each of them holds.

    `shrunk`: the cluster has lost machines since the run began; as many as still fit, then.

    Raises:
        ConfigError: the cluster cannot hold the pool and one reading task beside it.
    """
    resources = ray.cluster_resources()
    gpus, have = float(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    per_actor = config.gpus_per_actor
    if per_actor is None:
        per_actor = 1.0 if gpus else 0.0
    cores = [] if per_actor else _cores()
    if config.cpus_per_actor or per_actor:
        cpus = config.cpus_per_actor or 1
    else:  # one actor a machine, so that the model is in memory once, unless more are asked for
        on_each = -(-(config.actors or config.min_actors or 1) // len(cores))
        cpus = max(min(cores) // on_each, 1)
    by_gpus = int(gpus / per_actor + 1e-6) if per_actor else have
    fit = min(by_gpus, (have - 1) // cpus)
    if config.min_actors or config.max_actors:
        least = config.min_actors or 1
        most = max(config.max_actors or fit, least)
        actors = max(min(fit, most), least)
    else:
        wanted = by_gpus if per_actor else min(len(cores), fit)
        actors = least = most = config.actors or max(wanted, 1)
    if shrunk:
        actors = max(min(actors, fit), 1)
        least, most = min(least, actors), max(most if config.max_actors else actors, actors)
    if actors > fit:
        raise ConfigError(
            f"ray: {actors} actors of {per_actor:g} GPU and {cpus} CPU and a reading task of 1 CPU "
            f"do not fit a cluster of {gpus:g} GPU and {have} CPU.",
            "Lower ray.actors, ray.min_actors or ray.cpus_per_actor, or use a larger cluster.",
        )
    return Pool(actors, per_actor, cpus, least, most)


def _cores() -> list[int]:
    """How many cores of each machine may encode where there are no GPUs: three quarters, the others
    read and tokenise; all of one that Ray was told has more than there are.
    """
    found = []
    for node in ray.nodes():
        cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
        real = os.cpu_count() or 1
        if node["NodeManagerHostname"] == socket.gethostname() and real < cpus <= _MIN_LOCAL_CPUS:
            found.append(real)
        elif cpus:
            found.append(max(cpus * 3 // 4, 1))
    return found


def has_room(pool: Pool, actors: int) -> bool:
    """Whether the cluster as it is now holds so many actors of a pool and a reading task."""
    resources = ray.cluster_resources()
    enough_gpus = resources.get("GPU", 0) >= actors * pool.gpus - 1e-6
    return bool(enough_gpus and resources.get("CPU", 0) >= actors * pool.cpus + 1)


def refuse_local_index(store: Store) -> None:
    """A local path means a different folder on every machine.

    Raises:
        StorageError: the index is local and the cluster has several machines.
    """
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if store.is_local and len(hosts) > 1:
        raise StorageError(
            f"index.uri: expected object storage on a cluster of {len(hosts)} machines, "
            f"got the local path {store.uri}.",
            "Use s3://, gs:// or abfs://.",
        )


@contextmanager
def _our_sigterm_handler() -> Iterator[None]:
    """Ray puts handlers of its own in place, which end the process without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # by one of them
        raise KeyboardInterrupt from None
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _muted_stdout() -> Iterator[None]:
    """Ray prints what its nodes report of dead tasks and actors, also those it ends itself."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):  # noqa: PTH123
        yield


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Ray's C++ core announces its log level on the file descriptor itself; errors still raise."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _quieten(verbose: bool) -> None:
    context = ray.data.DataContext.get_current()
    # One block for each slice a reading task yields: the first is encoded while the rest is read.
    context.target_max_block_size = 1000
    if verbose:
        return
    # A small corpus may have fewer slices than the pool has actors: true, and no news to anyone.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # An error reaches the user as one line; Ray would print it twice before, as stack traces.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
