"""What every worker of a training does, whoever started it: train, evaluate, write down the numbers."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from pirl import dist
from pirl.config import Config, from_json
from pirl.evaluate import evaluate, why_not
from pirl.meter import Metrics, TrainingDiverged
from pirl.methods import PIRL
from pirl.retry import StorageError
from pirl.runlog import RunLog
from pirl.runs import EVALUATION, last_failure, newest_checkpoint, steps_done, write_failure
from pirl.shards import CorruptImage, open_data, test_uri
from pirl.storage import write_text
from pirl.train import train

Publish = Callable[[Metrics, Path], None]
"""Takes the files of a checkpoint that this rank wrote; called by every rank."""


def ray_worker(arguments: dict[str, str]) -> None:
    """What each worker of Ray Train runs."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    config, folder = from_json(arguments["config"]), Path(arguments["folder"])
    if last_failure(folder):
        return  # this is Ray's retry of what would end the same way again

    def publish(metrics: Metrics, checkpoint: Path) -> None:
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=checkpoint.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    # In the folder that Ray gave this worker, and not removed here: Ray does that to each checkpoint when it is
    # uploaded, which it may not be when the work is done.
    scratch = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=Path.cwd()))
    try:
        work(config, folder, scratch, publish, get_device(), show=None)
    except TrainingDiverged:
        return  # as all workers do, at the same step: an error would make Ray try again


def work(
    config: Config,
    folder: Path,
    scratch: Path,
    publish: Publish,
    device: torch.device,
    show: Callable[[str], None] | None,
) -> None:
    """What every worker does: go on from the newest checkpoint, train, evaluate, and let rank 0 write the numbers.

    Args:
        config: The run.
        folder: Its folder.
        scratch: Where checkpoints are written before they are published.
        publish: Takes each checkpoint.
        device: Of this worker.
        show: Takes lines of progress, beside the run's `train.log`.

    Raises:
        TrainingDiverged: On all workers; as CorruptImage it is in the run folder's failure.json then.
        CorruptImage: On the worker that read it.
        StorageError: The same, where the data could not be read in time.
    """
    newest = newest_checkpoint(folder)
    # As rank 0 sees it: a shared disk may show the others an older state.
    step = dist.all_gather_dicts({f"rank {dist.rank()}": steps_done(newest)})["rank 0"]
    resume = folder / f"checkpoint_{step:09d}" if step else None
    log = RunLog(folder, step, show) if dist.rank() == 0 else None
    if log and resume:
        log.line(f"going on from {resume.name}, with {dist.world_size()} workers")
    elif log and config.memory.init == "forward":
        log.line("filling the memory bank: one forward pass over the data")

    def report(metrics: Metrics, checkpoint: Path | None) -> None:
        if log:
            log.add(metrics)
        if checkpoint:
            publish(metrics, checkpoint)

    try:
        network = train(config, report=report, scratch=scratch, resume=resume, device=device)
    except TrainingDiverged as error:
        if log:
            write_failure(folder, str(error), error.step)
        raise
    except (CorruptImage, StorageError) as error:
        write_failure(folder, str(error), None)
        raise
    if config.evaluation.enabled:
        measure(config, folder, network, device, log)


def measure(config: Config, folder: Path, network: PIRL, device: torch.device, log: RunLog | None) -> None:
    """Evaluates the trunk beside one with random weights, and writes `evaluation/pretrain.json`."""
    held_out = test_uri(config.data.uri, config.data.storage_options)
    known = open_data(config.data)
    asked = open_data(config.data, held_out) if held_out else None
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
        write_text(str(folder / EVALUATION), json.dumps(report, indent=2) + "\n")
