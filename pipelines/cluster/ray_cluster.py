"""The Ray cluster of a run: an existing one, or a local one that lasts as long as the run."""

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

# On a small machine, a local cluster claims more CPUs than exist: a reading task, an actor and
# Ray's own tasks must fit at once, or the pipeline waits forever.
_MIN_LOCAL_CPUS = 4


@dataclass(frozen=True)
class Pool:
    """The shape of the encoder pool on this cluster."""

    actors: int
    """The number of actors at the start."""
    gpus: float
    cpus: int
    least: int
    most: int
    """The pool size stays between `least` and `most` while the cluster grows and shrinks."""


@contextmanager
def ray_session(config: RayConfig, *, verbose: bool = False) -> Iterator[None]:
    """Connect to Ray, or start a local cluster and stop it at the end.

    A process that is already connected (a notebook, a test) keeps its connection.

    Raises:
        ConfigError: the address cannot be reached.
    """
    _quieten(verbose)
    if ray.is_initialized():
        yield
        return
    if not verbose:
        # Ray logs each of its own restartable actors as an error of its core (ray#53727).
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Without an explicit address Ray would connect to any cluster that runs on this machine.
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
    """Return the number of encoder actors and the resources of each.

    `shrunk`: the cluster has lost machines since the run began, so fewer actors are accepted.

    Raises:
        ConfigError: the cluster cannot hold the pool and one reading task.
    """
    resources = ray.cluster_resources()
    gpus, have = float(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    per_actor = config.gpus_per_actor
    if per_actor is None:
        per_actor = 1.0 if gpus else 0.0
    cores = [] if per_actor else _cores()
    if config.cpus_per_actor or per_actor:
        cpus = config.cpus_per_actor or 1
    else:  # by default one actor per machine, so that each holds the model in memory once
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
    """Return the cores of each machine that encode without GPUs: three quarters of them, as the
    others read and tokenise; all cores if Ray was told of more cores than the machine has.
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
    """Return whether the cluster can now hold `actors` actors of a pool and a reading task."""
    resources = ray.cluster_resources()
    enough_gpus = resources.get("GPU", 0) >= actors * pool.gpus - 1e-6
    return bool(enough_gpus and resources.get("CPU", 0) >= actors * pool.cpus + 1)


def refuse_local_index(store: Store) -> None:
    """Refuse a local index on several machines, where its path names different folders.

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
    """Restore the SIGTERM handler; ray.init sets one that ends the process silently."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # raised by Ray's handler
        raise KeyboardInterrupt from None
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _muted_stdout() -> Iterator[None]:
    """Mute stdout, where Ray prints reports of dead tasks and actors, also of those it ended."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):  # noqa: PTH123
        yield


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Mute file descriptor 2, where Ray's C++ core prints its log level; errors still raise."""
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
    # One block per slice of a reading task, so that the first is encoded while others are read.
    context.target_max_block_size = 1000
    if verbose:
        return
    # A small corpus may have fewer slices than the pool has actors, which needs no warning.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The command reports an error in one line; Ray would print it twice, as stack traces.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
