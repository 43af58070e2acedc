"""A run on Ray Train's workers: on the cluster of RAY_ADDRESS, or on a Ray that is started for it.

What takes long to import is imported where it is needed, so that a wrong request is answered at once.
"""

import codecs
import contextlib
import importlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clusters.node.cleanup import MARK
from clusters.node.ray_node import OWN_RAY
from jobs.live_line import LiveLine
from jobs.run.outcome import conclude, interruption
from jobs.run.preemption import preemption_for_workers
from jobs.run.telling import EVERY_S, telling_driver, told_by_worker
from pirl.errors import ConfigError, StorageError
from pirl.runs.checkpoint_folder import prune_checkpoints
from pirl.runs.run import Run
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder
from pirl.storage.temporary import remove_temporary_folder, temporary_folder

ROOT = Path(__file__).resolve().parents[2]

LOGS = Path(tempfile.gettempdir()) / f"pirl-ray-logs-{os.getuid()}"
"""Of a Ray that did not start."""
RAY_LONGEST = 40
"""Letters of the path of its folder: sockets have paths of 107, and Ray adds 64."""

STORE_ENVIRONMENT = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("FSSPEC_S3_ANON", "FSSPEC_S3_ENDPOINT_URL", "FSSPEC_S3_REQUESTER_PAYS", "FSSPEC_S3_PROFILE"),
)
"""Says where a store is, and goes from the driver to all workers. Secrets do not: each node has its own."""

LOCAL = {
    "RAY_worker_niceness": "0",  # as under torchrun; Ray trains at 15, behind all else that a person does
    "RAY_enable_metrics_collection": "0",  # nobody could read them
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""More settings of a Ray that a command has started on this machine."""

AHEAD = ("torch", "pandas")
"""What Ray Train imports that takes long and is no part of Ray: two threads that import parts of it wait for each
other until Python gives up (_DeadlockError)."""


def run_on_ray(run: Run, live: LiveLine) -> int:
    """Trains on the cluster of RAY_ADDRESS, or on a Ray of its own; returns the exit code.

    Raises ConfigError if there is no such cluster, or it cannot carry the run.
    """
    with live:
        live.now("starting Ray on this machine" if starts_ray() else "connecting to Ray")
        with connected():
            return run_connected(run, live)


def run_connected(run: Run, live: LiveLine) -> int:
    """The same on the cluster that this process is connected to."""
    from clusters.preflight import check_nodes, check_resources, nodes_alive
    from jobs.run.ray_internals import placement_groups, remove_placement_groups

    live.now("looking at the nodes of Ray")
    remove_placement_groups(placement_groups(left=True))
    nodes = nodes_alive()
    check_resources(run.config, nodes)
    check_nodes(run.config, run.folder.parent, nodes)
    began = time.time()
    with following(run.folder, RunFile.LOG, live), preemption_for_workers(), interruption() as ended:
        fit(run, alone=starts_ray() or MARK in os.environ, live=live)
    if not ended.why:
        live.now("")
    return conclude(run, began, ended.why)


def fit(run: Run, *, alone: bool = False, live: LiveLine | None = None) -> None:
    """Trains on the cluster that this process is connected to, on Ray Train's workers.

    Args:
        run: What to train.
        alone: Whether the cluster is there for this run only, and ends with it.
        live: Shows what goes on.

    Raises:
        ray.train.TrainingFailedError: They failed more often than `cluster.max_failures`.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that would tell us nothing
    # How often the controller asks the workers, and takes one checkpoint each time: the end is seen sooner than by
    # Ray's 2 s, which stay for so many workers that asking is work.
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(min(2.0, max(1.0, run.config.cluster.workers / 256)))
    )
    if live:
        live.now("importing Ray Train")
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from jobs.run.ray_internals import LeanTrainer, LoneTrainer

    run.write_config()
    # Ray's own memory of checkpoints knows nothing of those that were written or removed without it.
    run.folder.remove(RunFile.RAYS_MEMORY)
    prune_checkpoints(run.folder, run.config.checkpoint.keep)
    filesystem, storage = run.folder.parent.arrow_filesystem()
    cluster = run.config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    watched = live is not None and live.shown
    trainer_class: Any = LoneTrainer if alone else LeanTrainer
    trainer = trainer_class(
        in_worker,
        train_loop_config={"config": run.config.model_dump_json(), "folder": run.folder, "watched": watched},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.config.checkpoint.keep),
        ),
    )
    if live:
        live.now(f"starting {cluster.workers} workers")
    trainer.fit()
    prune_checkpoints(run.folder, run.config.checkpoint.keep)


def starts_ray() -> bool:
    """Whether this process, which a person has started, starts a Ray on this machine, which ends with it."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


@contextmanager
def connected() -> Iterator[None]:
    """Connects for the time of the block; of a Ray that was started for it nothing is left."""
    try:
        connect(meanwhile=AHEAD)
        yield
    finally:
        if ray := sys.modules.get("ray"):  # else it has not come to that
            ray.shutdown()
        remove_temporary_folder()


def connect(meanwhile: Sequence[str] = ()) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts a Ray on this machine that only this process can reach.

    Args:
        meanwhile: Modules that are imported while Ray starts, which is mostly waiting.

    Raises:
        ConfigError: There is none at that address.
        OSError: Ray did not come up, or did not answer in time.
    """
    # "local" and not None: Ray must not pick up a cluster that somebody else left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        refuse_silent(address)
    if starts_ray():
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ |= OWN_RAY | LOCAL | os.environ  # what the user has set stays
    # No daemon: a process that ends within an import was seen to hang.
    threading.Thread(target=import_quietly, args=[meanwhile]).start()
    import ray  # only now: it reads the environment when it is imported

    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON", "{}")).get("runtime_env", {}).get("env_vars", {})
    here = {name: os.environ[name] for name in STORE_ENVIRONMENT if name in os.environ and name not in given}
    try:
        # The workers look for code where the driver was started: it is to be that of this file, whatever lies there.
        with contextlib.chdir(ROOT):
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                include_dashboard=False if starts_ray() else None,
                _temp_dir=own_folder(),
                runtime_env={"env_vars": here} if here else None,
            )
    except Exception as error:  # a plain one, too, when a machine is so busy that Ray gives up waiting
        what = str(error).strip().rstrip(".")
        if starts_ray():
            why = f"{what}. Is it very busy, or out of memory or disk space?{kept_logs()}"
            raise OSError(f"Ray did not start on this machine: {why}") from None
        if isinstance(error, (ConnectionError, RuntimeError, ValueError)):
            raise ConfigError(f"no Ray at {address}: {what}. Check RAY_ADDRESS and RAY_AUTH_TOKEN_PATH") from None
        raise OSError(f"Ray at {address} did not answer: {what}") from None
    from jobs.run.ray_internals import end_log_monitor, shorten_lost_workers, take_sigterm_back

    take_sigterm_back()
    shorten_lost_workers()
    if starts_ray():
        end_log_monitor()


def own_folder() -> str | None:
    """Where a Ray that this process starts has its session, which goes with this process; None: where Ray is told."""
    if not starts_ray() or "RAY_TMPDIR" in os.environ:
        return None
    shutil.rmtree(LOGS, ignore_errors=True)  # of a start that failed before
    return str(temporary_folder(RAY_LONGEST))


def kept_logs() -> str:
    """Keeps the logs of a Ray that did not start, until the next one does; says where they are."""
    session = Path(own_folder() or os.environ["RAY_TMPDIR"] + "/ray") / "session_latest"
    if not (session / "logs").exists():
        return ""
    if "RAY_TMPDIR" in os.environ:
        return f" Ray's logs are in {session}/logs"
    with suppress(OSError):
        shutil.copytree(session / "logs", LOGS, dirs_exist_ok=True)
    return f" Ray's logs are in {LOGS}"


def refuse_silent(address: str) -> None:
    """Raises ConfigError for no address, or one at which nobody listens, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Ray at RAY_ADDRESS {address}: {error}. Use host:port, as ray start prints it") from None


def import_quietly(modules: Sequence[str]) -> None:
    """Imports modules in a thread; what goes wrong is told to who imports it next, and nobody if this process ends."""
    with suppress(Exception):
        for module in modules:
            importlib.import_module(module)


def in_worker(arguments: dict[str, Any]) -> None:
    """Runs in each worker of Ray Train; the driver needs nothing of what it imports."""
    import ray.train

    with telling_driver(arguments["watched"] and ray.train.get_context().get_world_rank() == 0) as tell:
        tell("importing PyTorch in the workers")
        from jobs.run.worker import ray_worker

        ray_worker(arguments, tell)


@contextmanager
def following(folder: Folder, name: str, live: LiveLine) -> Iterator[None]:
    """Prints the lines that others append to a file while the block runs, and shows what a worker tells meanwhile."""
    every_s = EVERY_S if folder.path else 5.0
    hurried = replace(folder, deadline_s=every_s)  # what did not come is asked for again
    position = folder.sizes().get(name, 0)
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a span may end within a character
    stop = threading.Event()
    begun = ""  # the beginning of a line

    def show(text: str) -> None:
        nonlocal begun
        *whole, begun = (begun + text).split("\n")
        for line in whole:
            live.log(line)

    def follow() -> None:
        nonlocal position
        read_at = 0.0
        while True:
            last = stop.is_set()
            if last or time.monotonic() >= read_at:
                read_at = time.monotonic() + every_s
                with suppress(StorageError, FileNotFoundError):
                    new = hurried.read_bytes(name, position, 2**20)
                    show(decode(new))
                    position += len(new)
            if live.shown and (text := told_by_worker()):
                live.now(text)
            if last:
                return show("\n" if begun else "")
            stop.wait(EVERY_S)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
