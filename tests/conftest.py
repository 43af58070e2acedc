"""A pool of spawned gloo processes, started once a session, that runs a function of any test on some ranks.

Spawned, because gloo hangs in a forked child once the parent has run a backward. File rendezvous over the
loopback, so that tests need neither a port nor a host name.
"""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.ray_cluster", "tests.s3", "tests.slurm_cluster"]

# A shell's background job ignores SIGINT, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread in each process, in those that tests start too: two that share a core wait for each other by turning, which
# takes ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Runs of seconds with many checkpoints: Ray's controller takes one each time that it asks.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")

ON_CLUSTERS = ("on_slurm", "on_ray")
"""The folders whose files share a cluster."""

MAX_RANKS = 4
LIMIT_S = 60.0
_GRACE_S = 5.0
"""For the other ranks to answer too once one has failed: their collectives break when its sockets close."""


class RankError(AssertionError):
    """A rank raised, and the message is its traceback; or it gave no answer."""


class GlooPool:
    """MAX_RANKS processes that run functions under a default process group of any size up to that.

    A group is made anew for each call and lives until all ranks have answered, so that none closes its
    sockets while another still reads. A process that dies or gives no answer is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = 0
        self._ranks: list[_Rank] = []

    def __call__(self, world: int, fn: Callable[..., Any], *args: Any, limit_s: float = LIMIT_S) -> list[Any]:
        """Runs `fn(*args)` on `world` ranks; returns their results in rank order.

        Args:
            world: Size of the default group, 1 to MAX_RANKS.
            fn: A function at the top level of a module; arguments and results are pickled.
            limit_s: After this the call has failed.
        """
        self._ranks += [_Rank() for _ in range(MAX_RANKS - len(self._ranks))]
        self._calls += 1
        store = f"file://{self._folder}/{self._calls}"
        ranks = self._ranks[:world]
        for number, rank in enumerate(ranks):
            rank.connection.send_bytes(pickle.dumps((store, number, world, limit_s, fn, args)))
        try:
            results, failures = _collect([rank.connection for rank in ranks], limit_s)
        except BaseException:  # Ctrl-C: what the ranks do now is unknown
            self.stop()
            raise
        lost = [number for number in range(world) if number not in results and number not in failures]
        for number in lost:
            ranks[number].stop()
            self._ranks.remove(ranks[number])
        if failures:
            texts = (f"rank {number} of {world}:\n{trace}" for number, trace in failures.items())
            raise RankError("\n".join(texts))  # the first to fail comes first; others may follow from it
        if lost:
            raise RankError(f"ranks {lost} of {world} died or gave no answer within {limit_s} s")
        return [results[number] for number in range(world)]

    def stop(self) -> None:
        """Ends the processes; the next call starts new ones."""
        for rank in self._ranks:
            rank.stop()
        self._ranks = []


@pytest.fixture(autouse=True)
def _a_closed_pipe_ends_no_later_test() -> Iterator[None]:
    """`--help` of a job that is called here has SIGPIPE end the process, and a later test closes a socket."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlooPool]:
    """`run_ranks(world, fn, *args)` -> the ranks' results; see GlooPool."""
    pool = GlooPool(tmp_path_factory.mktemp("gloo"))
    yield pool
    pool.stop()


class _Rank:
    """One process of the pool and the connection to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _collect(connections: list[Connection], limit_s: float) -> tuple[dict[int, Any], dict[int, str]]:
    """Results and tracebacks by rank, in the order in which they came; a lost rank is in neither."""
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    pending = list(connections)
    deadline = time.monotonic() + limit_s
    while pending and (ready := wait(pending, timeout=max(0.0, deadline - time.monotonic()))):
        for connection in ready:
            pending.remove(connection)  # type: ignore[arg-type]
            number = connections.index(connection)  # type: ignore[arg-type]
            try:
                ok, answer = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
            except EOFError:  # the process died
                ok, answer = None, None
            if ok:
                results[number] = answer
            elif ok is not None:
                failures[number] = answer
            if not ok:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    return results, failures


def _serve(connection: Connection) -> None:
    """What a process of the pool does: one call after another."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:  # the session is over
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        try:
            store, number, world, limit_s, fn, args = pickle.loads(request)
            dist.init_process_group(
                "gloo",
                init_method=store,
                rank=number,
                world_size=world,
                timeout=timedelta(seconds=limit_s),
            )
            answer = pickle.dumps((True, fn(*args)))
        except BaseException:
            connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
            if dist.is_initialized():  # after the answer, or those that wait for this rank might fail first
                dist.destroy_process_group()
        else:
            connection.send_bytes(answer)


class ByCluster(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of a file in one process, and all those on one cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return file.parent.name if file.parent.name in ON_CLUSTERS else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByCluster:
    """How `pytest -n 3` shares the tests out."""
    return ByCluster(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones come first, so that no process waits for the other at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ON_CLUSTERS)
