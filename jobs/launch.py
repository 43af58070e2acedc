"""Run a training: on Ray Train's workers, in this process, or in the processes of torchrun.

`work` is what every worker does, whoever started it. This is the only file that knows ray.train.
"""

import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as td

from pirl import dist
from pirl.checkpoint import steps_done
from pirl.config import Config, ConfigError, from_json
from pirl.evaluate import evaluate, table, why_not
from pirl.methods import PIRL
from pirl.runlog import RunLog
from pirl.runs import Run, newest_checkpoint
from pirl.shards import CorruptImage, open_dataset, test_uri
from pirl.storage import write_text
from pirl.train import Metrics, TrainingDiverged, train

FAILURE = "failure.txt"
"""In the run folder: why the run ended where trying again would not help."""

Publish = Callable[[Metrics, Path], None]
"""Takes the files of a checkpoint that this rank wrote; called by every rank."""


def run_on_ray(run: Run) -> int:
    """Trains on the cluster of RAY_ADDRESS, or on a Ray of its own; returns the exit code."""
    connect()
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
    cluster = run.config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    trainer = TorchTrainer(
        ray_worker,
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
    diverged = run.folder / FAILURE
    return conclude(run, began, f"error: {diverged.read_text()}" if diverged.exists() else failure)


def connect() -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts a Ray on this machine that only this process can reach."""
    # "local" and not None: Ray must not pick up a cluster that somebody else left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # only now: it reads the environment when it is imported

    dashboard = None if address != "local" else False
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=dashboard)


def ray_worker(arguments: dict[str, str]) -> None:
    """What each worker of Ray Train runs."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    config, folder = from_json(arguments["config"]), Path(arguments["folder"])
    if (folder / FAILURE).exists():
        return  # this is Ray's retry of what would end the same way again

    def publish(metrics: Metrics, checkpoint: Path) -> None:
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=checkpoint.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    latest = ray.train.get_checkpoint()
    # A run that was started without Ray has checkpoints that Ray does not know.
    resume = Path(latest.path) if latest else newest_checkpoint(folder)
    with tempfile.TemporaryDirectory(prefix="pirl-", ignore_cleanup_errors=True) as scratch:
        try:
            work(config, folder, Path(scratch), publish, get_device(), resume, show=None)
        except TrainingDiverged as error:  # on all ranks at the same step
            if dist.rank() == 0:
                write_text(str(folder / FAILURE), str(error))
        except CorruptImage as error:  # on this rank; the others wait for it, until Ray ends them
            write_text(str(folder / FAILURE), str(error))
            raise


def run_here(run: Run) -> int:
    """Trains in this process, or as one of torchrun's; returns the exit code."""
    began = time.time()
    rank = int(os.environ.get("RANK", "0"))
    use_gpu = run.config.cluster.gpus_per_worker > 0
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    if "WORLD_SIZE" in os.environ:
        td.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
    if rank == 0:
        run.write_config()
    incoming = run.folder / ".incoming"  # shared by the ranks, and on the run folder's disk: renaming is atomic

    def publish(_: Metrics, checkpoint: Path) -> None:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(run.folder / checkpoint.name, ignore_errors=True)
            checkpoint.rename(run.folder / checkpoint.name)
            for old in sorted(run.folder.glob("checkpoint_[0-9]*"))[: -run.config.checkpoint.keep]:
                shutil.rmtree(old)

    def start() -> None:
        work(run.config, run.folder, incoming, publish, device, run.checkpoint, show=print)

    failure = interruption(start)
    if td.is_initialized():
        td.destroy_process_group()
    shutil.rmtree(incoming, ignore_errors=True)
    if rank == 0:
        return conclude(run, began, failure)
    return 1 if failure else 0


def work(
    config: Config,
    folder: Path,
    scratch: Path,
    publish: Publish,
    device: torch.device,
    resume: Path | None,
    show: Callable[[str], None] | None,
) -> None:
    """What every worker does: train, evaluate, and let rank 0 write down the numbers.

    Args:
        config: The run.
        folder: Its folder.
        scratch: Where checkpoints are written before they are published.
        publish: Takes each checkpoint.
        device: Of this worker.
        resume: A checkpoint to go on from.
        show: Takes lines of progress, beside the run's `train.log`.
    """
    log = RunLog(folder, steps_done(resume), show) if dist.rank() == 0 else None
    if log and resume:
        log.line(f"going on from {resume.name}, with {dist.world_size()} workers")
    elif log and config.memory.init == "forward":
        log.line("filling the memory bank: one forward pass over the data")

    def report(metrics: Metrics, checkpoint: Path | None) -> None:
        if log:
            log.add(metrics)
        if checkpoint:
            publish(metrics, checkpoint)

    network = train(config, report=report, scratch=scratch, resume=resume, device=device)
    if config.evaluation.enabled:
        measure(config, folder, network, device, log)


def measure(config: Config, folder: Path, network: PIRL, device: torch.device, log: RunLog | None) -> None:
    """Evaluates the trunk beside one with random weights, and writes `evaluation/pretrain.json`."""
    held_out = test_uri(config.data.uri, config.data.storage_options)
    known = open_dataset(config.data.uri, config.data.storage_options)
    asked = open_dataset(held_out, config.data.storage_options) if held_out else None
    if reason := why_not(known, asked):
        if log:
            log.line(reason)
        return
    assert asked is not None
    if log:
        log.line("evaluating")
    torch.manual_seed(config.seed)  # the weights that training began with
    untrained = PIRL(config).trunk.to(device)
    report = evaluate(network.trunk, untrained, known, asked, config, device)
    if log:
        write_text(str(folder / "evaluation" / "pretrain.json"), json.dumps(report, indent=2) + "\n")


def conclude(run: Run, began: float, failure: str | None) -> int:
    """Writes `result.json` and shows what was reached, or says what went wrong; returns the exit code."""
    if failure:
        print(f"{failure}\nto go on from the last checkpoint, type the same command again", file=sys.stderr)
        return 1
    evaluation = run.folder / "evaluation" / "pretrain.json"
    last_line = (run.folder / "metrics.jsonl").read_text().splitlines()[-1]
    result = {
        "metrics": json.loads(last_line),
        "evaluation": json.loads(evaluation.read_text()) if evaluation.exists() else None,
        "checkpoint": str(newest_checkpoint(run.folder)),
        "wall_s": round(time.time() - began, 1),
    }
    write_text(str(run.folder / "result.json"), json.dumps(result, indent=2) + "\n")
    return show_result(run.folder, f"done in {result['wall_s']:.0f} s")


def show_result(folder: Path, state: str) -> int:
    """Prints the table of a finished run and where everything lies; returns the exit code."""
    result = json.loads((folder / "result.json").read_text())
    if result["evaluation"]:
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
