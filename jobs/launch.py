"""Start a training and tell how it ended: on Ray Train's workers, in this process, or in those of torchrun.

What takes long to import is imported where it is needed, so that a wrong request is answered at once.
"""

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
from contextlib import contextmanager
from pathlib import Path

from pirl.config import ConfigError
from pirl.runs import EVALUATION, Run, last_failure, newest_checkpoint, prune_checkpoints, steps_done
from pirl.storage import write_text


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
    (run.folder / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    prune_checkpoints(run.folder, run.config.checkpoint.keep)
    cluster = run.config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    trainer = TorchTrainer(
        in_worker,
        train_loop_config={"config": run.config.model_dump_json(), "folder": str(run.folder)},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.folder.parent),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.config.checkpoint.keep),
        ),
    )
    with following(run.folder / "train.log"):
        failure = interruption(trainer.fit)
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
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=dashboard)


def in_worker(arguments: dict[str, str]) -> None:
    """Runs in each worker of Ray Train; the driver needs nothing of what it imports."""
    from jobs.worker import ray_worker

    ray_worker(arguments)


def run_here(run: Run) -> int:
    """Trains in this process, or as one of torchrun's; returns the exit code."""
    import torch
    import torch.distributed as td

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
    incoming = run.folder / ".incoming"  # shared by the ranks, and on the run folder's disk: renaming is atomic
    if rank == 0:
        run.write_config()
        shutil.rmtree(incoming, ignore_errors=True)

    def publish(_: dict[str, float], checkpoint: Path) -> None:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(run.folder / checkpoint.name, ignore_errors=True)
            checkpoint.rename(run.folder / checkpoint.name)
            prune_checkpoints(run.folder, run.config.checkpoint.keep)

    def start() -> None:
        work(run.config, run.folder, incoming, publish, device, show=print)

    failure = interruption(start)
    if td.is_initialized() and not failure:  # after a failure the others may never come to it
        td.destroy_process_group()
    if rank == 0:
        shutil.rmtree(incoming, ignore_errors=True)
        return conclude(run, began, failure)
    if failure:
        print(f"rank {rank}: {failure}", file=sys.stderr)
    return 1 if failure else 0


def conclude(run: Run, began: float, failure: str | None) -> int:
    """Writes `result.json` and shows what was reached, or says what went wrong; returns the exit code."""
    if lasting := last_failure(run.folder):
        failure = f"error: {lasting['error']}"
        if lasting["step"] is not None:  # the weights of this step gave the loss that is no number
            shutil.rmtree(run.folder / f"checkpoint_{lasting['step']:09d}", ignore_errors=True)
            print(failure, file=sys.stderr)
            return 1
    checkpoint = newest_checkpoint(run.folder)
    if not failure:
        metrics = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
        if steps_done(checkpoint) < metrics["step"]:
            failure = f"error: the last checkpoint did not reach {run.folder}"
    if failure:
        what = f"go on from {checkpoint.name}" if checkpoint else "start again, as there is no checkpoint yet"
        print(f"{failure}\nto {what}, type the same command again", file=sys.stderr)
        return 1
    evaluation = run.folder / EVALUATION
    result = {
        "metrics": metrics,
        "evaluation": json.loads(evaluation.read_text()) if evaluation.exists() else None,
        "checkpoint": str(checkpoint),
        "wall_s": round(time.time() - began, 1),
    }
    write_text(str(run.folder / "result.json"), json.dumps(result, indent=2) + "\n")
    return show_result(run.folder, f"done in {result['wall_s']:.0f} s")


def show_result(folder: Path, state: str) -> int:
    """Prints the table of a finished run and where everything lies; returns the exit code."""
    result = json.loads((folder / "result.json").read_text())
    if result["evaluation"]:
        from pirl.evaluate import table

        print("\n" + table(result["evaluation"]))
    print(
        f"\n{folder.name}: {state}\n"
        f"  numbers     {folder / 'result.json'}, metrics.jsonl, train.log\n"
        f"  trunk       {Path(result['checkpoint']) / 'trunk.safetensors'} (names as in torchvision)\n"
        f"  checkpoint  {result['checkpoint']}\n"
        f"  curves      tensorboard --logdir {folder}"
    )
    return 0


def interruption(start: Callable[[], object]) -> str | None:
    """Calls `start`; returns None when it ended well, else what ended it, for a person to read."""
    try:
        start()
    except (KeyboardInterrupt, SystemExit):  # Ray's own SIGINT handler exits
        return "interrupted"
    except Exception as error:
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        return f"error: {str(causes[0]).strip()}"
    return None


@contextmanager
def following(path: Path) -> Iterator[None]:
    """Prints the lines that others append to a file while the block runs."""
    start = path.stat().st_size if path.exists() else 0
    stop = threading.Event()

    def follow() -> None:
        position = start
        while True:
            last = stop.is_set()
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    print(file.read(), end="", flush=True)
                    position = file.tell()
            if last:
                return
            stop.wait(0.5)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
