"""Start a training and tell how it ended: on Ray Train's workers, in this process, or in those of torchrun.

What takes long to import is imported where it is needed, so that a wrong request is answered at once.
"""

import codecs
import importlib
import json
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pirl.config import ConfigError
from pirl.folder import Folder
from pirl.retry import StorageError
from pirl.runs import (
    EVALUATION,
    Run,
    last_failure,
    newest_checkpoint,
    prune_checkpoints,
    remove_checkpoint,
    reports_in,
    steps_done,
)
from pirl.storage import arrow_filesystem
from pirl.temporary import temporary_folder

STORE_ENVIRONMENT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Says where a store is, and goes from the driver to all workers. Secrets do not: each node has its own."""

_told_to_end = threading.Event()


def run_on_ray(run: Run) -> int:
    """Trains on the cluster of RAY_ADDRESS, or on a Ray of its own; returns the exit code."""
    try:
        connect()
    except (ConnectionError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        print(f"error: no Ray at {address}: {error}. Check RAY_ADDRESS and RAY_AUTH_TOKEN_PATH", file=sys.stderr)
        return 2
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from clusters.preflight import check_cluster

    try:
        check_cluster(run.config, run.folder.parent)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    began = time.time()
    run.write_config()
    # Ray's own memory of checkpoints knows nothing of those that were written or removed without it.
    run.folder.remove("checkpoint_manager_snapshot.json")
    prune_checkpoints(run.folder, run.config.checkpoint.keep)
    filesystem, storage = arrow_filesystem(run.folder.parent.uri, run.folder.options)
    cluster = run.config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    trainer = TorchTrainer(
        in_worker,
        train_loop_config={"config": run.config.model_dump_json(), "folder": run.folder},
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
    with following(run.folder, "train.log"):
        failure = interruption(trainer.fit)
    if not failure:
        prune_checkpoints(run.folder, run.config.checkpoint.keep)
    return conclude(run, began, failure)


def connect() -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts a Ray on this machine that only this process can reach."""
    # "local" and not None: Ray must not pick up a cluster that somebody else left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that would tell us nothing
    # What follows needs this, and importing it takes as long as starting Ray, which is mostly waiting.
    threading.Thread(target=importlib.import_module, args=["ray.train.torch"], daemon=True).start()
    import ray  # only now: it reads the environment when it is imported

    dashboard = None if address != "local" else False
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON", "{}")).get("runtime_env", {}).get("env_vars", {})
    here = {name: os.environ[name] for name in STORE_ENVIRONMENT if name in os.environ and name not in given}
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.WARNING,
        include_dashboard=dashboard,
        runtime_env={"env_vars": here} if here else None,
    )


def in_worker(arguments: dict[str, Any]) -> None:
    """Runs in each worker of Ray Train; the driver needs nothing of what it imports."""
    from jobs.worker import ray_worker

    ray_worker(arguments)


def run_here(run: Run) -> int:
    """Trains in this process, or as one of torchrun's; returns the exit code."""
    import torch
    import torch.distributed as td

    from jobs.ranks import check_ranks
    from jobs.worker import work
    from pirl import dist

    began = time.time()
    rank = int(os.environ.get("RANK", "0"))
    use_gpu = run.config.cluster.gpus_per_worker > 0
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        td.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
    try:
        check_ranks(run.folder.parent)
    except ConfigError as error:
        if rank == 0:  # it speaks for all
            print(f"error: {error}", file=sys.stderr)
        if td.is_initialized():
            td.destroy_process_group()
        return 2
    # On the disk of the run, where there is one: it has room for checkpoints.
    scratch = (run.folder.path or temporary_folder()) / ".scratch" / str(rank)
    if rank == 0:
        run.write_config()
        prune_checkpoints(run.folder, run.config.checkpoint.keep)
        shutil.rmtree(scratch.parent, ignore_errors=True)  # what a killed run left

    def publish(_: dict[str, float], checkpoint: Path, send: Callable[[Path], None]) -> None:
        send(checkpoint)
        shutil.rmtree(checkpoint)
        dist.barrier()
        if rank == 0:
            prune_checkpoints(run.folder, run.config.checkpoint.keep)

    def start() -> None:
        work(run.config, run.folder, scratch, publish, device, show=print)

    failure = interruption(start)
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # the others may have something in it
        scratch.parent.rmdir()
    if td.is_initialized() and not failure:  # after a failure the others may never come to it
        td.destroy_process_group()
    if rank == 0:
        return conclude(run, began, failure)
    if failure:
        print(f"rank {rank}: {failure}", file=sys.stderr)
    return 1 if failure else 0


def conclude(run: Run, began: float, failure: str | None) -> int:
    """Writes `result.json` and shows what was reached, or says what went wrong; returns the exit code."""
    try:
        return _conclude(replace(run, folder=run.folder.hurried()) if failure else run, began, failure)
    except OSError as error:
        first = failure or f"error: {error}"
        print(f"{first}\nto go on from the last checkpoint, type the same command again", file=sys.stderr)
        return 1


def _conclude(run: Run, began: float, failure: str | None) -> int:
    if lasting := last_failure(run.folder):
        failure = f"error: {lasting['error']}"
        if lasting["step"] is not None:  # the weights of this step gave the loss that is no number
            remove_checkpoint(run.folder / f"checkpoint_{lasting['step']:09d}")
            print(failure, file=sys.stderr)
            return 1
    checkpoint = newest_checkpoint(run.folder)
    if not failure:
        reports = reports_in(run.folder.read("metrics.jsonl"))
        if not reports or steps_done(checkpoint) < reports[-1]["step"]:
            failure = f"error: the last checkpoint did not reach {run.folder}"
    if failure:
        what = f"go on from {checkpoint.name}" if checkpoint else "start again, as there is no checkpoint yet"
        print(f"{failure}\nto {what}, type the same command again", file=sys.stderr)
        return 1
    result = {
        "metrics": reports[-1],
        "retries": sum(report["retries"] for report in reports),
        "skipped": sum(report["skipped"] for report in reports),
        "evaluation": json.loads(run.folder.find(EVALUATION) or "null"),
        "checkpoint": str(checkpoint),
        "wall_s": round(time.time() - began, 1),
    }
    run.folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return show_result(run.folder, result, f"done in {result['wall_s']:.0f} s")


def show_result(folder: Folder, result: dict[str, Any], state: str) -> int:
    """Prints the table of a finished run and where everything lies; returns the exit code."""
    if result["evaluation"]:
        from pirl.evaluate import table

        print("\n" + table(result["evaluation"]))
    print(
        f"\n{folder.name}: {state}\n"
        f"  numbers     {folder / 'result.json'}, metrics.jsonl, train.log\n"
        f"  trunk       {result['checkpoint']}/trunk.safetensors (names as in torchvision)\n"
        f"  checkpoint  {result['checkpoint']}\n"
        f"  curves      tensorboard --logdir {folder}"
    )
    return 0


def end(*_: object) -> None:
    """Takes SIGTERM: an exception, so that what is temporary is removed."""
    _told_to_end.set()
    sys.exit(1)


def interruption(start: Callable[[], object]) -> str | None:
    """Calls `start`; returns None when it ended well, else what ended it, for a person to read."""
    try:
        start()
    except (KeyboardInterrupt, SystemExit):  # Ray's own SIGINT handler exits
        return "interrupted"
    except Exception as error:
        if _told_to_end.is_set():  # torch makes another error of what ends it while it writes
            return "interrupted"
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        return f"error: {str(causes[0]).strip()}"
    return None


@contextmanager
def following(folder: Folder, name: str) -> Iterator[None]:
    """Prints the lines that others append to a file while the block runs."""
    every_s = 0.5 if folder.path else 5.0
    hurried = replace(folder, deadline_s=every_s)  # what did not come is asked for again
    position = folder.sizes().get(name, 0)
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a span may end within a character
    stop = threading.Event()

    def follow() -> None:
        nonlocal position
        while True:
            last = stop.is_set()
            with suppress(StorageError, FileNotFoundError):
                new = hurried.read_bytes(name, position, 2**20)
                print(decode(new), end="", flush=True)
                position += len(new)
            if last:
                return
            stop.wait(every_s)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
