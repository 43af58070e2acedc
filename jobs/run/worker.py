"""What every worker of a training does, whoever started it: train, evaluate, write down the numbers."""

import json
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from jobs.run.measure import measure, probe
from jobs.run.preemption import preempted
from pirl import dist
from pirl.config import Config, from_json
from pirl.data.dataset import open_data
from pirl.errors import CorruptImage, StorageError, TrainingDiverged, TrainingStopped
from pirl.permutations import Permutations
from pirl.runs.checkpoint_folder import newest_checkpoint, remove_incomplete, steps_done, upload
from pirl.runs.learned import learned
from pirl.runs.metrics import Metrics
from pirl.runs.run import last_failure, write_failure
from pirl.runs.run_files import RunFile, checkpoint_name
from pirl.runs.run_log import RunLog
from pirl.runs.stored_permutations import made_permutations, read_permutations, write_permutations
from pirl.runs.weights import weights_of
from pirl.storage.client import trust_stores
from pirl.storage.folder import Folder
from pirl.storage.temporary import remove_temporary_folder
from pirl.train import train

Publish = Callable[[Metrics, Path, Callable[[Path], None]], None]
"""Has a checkpoint's files, as this rank wrote them, sent by the function that it is given, now or in a thread; called
by every rank, and not again before they are sent."""


def ray_worker(arguments: dict[str, Any], tell: Callable[[str], None]) -> None:
    """What each worker of Ray Train runs; `tell` as for `work`."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    from jobs.run.ray_internals import kept_checkpoint

    trust_stores()  # each node was asked before the start
    config, folder = from_json(arguments["config"]), arguments["folder"]
    if last_failure(folder):
        return  # this is Ray's retry of what would end the same way again

    def publish(metrics: Metrics, checkpoint: Path, send: Callable[[Path], None]) -> None:
        def send_for_ray(local: Checkpoint, name: str) -> Checkpoint:
            send(Path(local.path))
            return kept_checkpoint(name)

        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=checkpoint.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=send_for_ray,
        )

    # In the folder that Ray gave this worker, and not removed here: Ray does that to each checkpoint when `send` has
    # returned, which may be after the work.
    scratch = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=Path.cwd()))
    stop = preempted() if ray.train.get_context().get_world_rank() == 0 else lambda: False
    try:
        work(config, folder, scratch, publish, get_device(), show=None, stop=stop, tell=tell)
    except TrainingDiverged:
        return  # as all workers do, at the same step: an error would make Ray try again
    finally:
        remove_temporary_folder()  # Ray ends this process without Python's clean-up


def work(
    config: Config,
    folder: Folder,
    scratch: Path,
    publish: Publish,
    device: torch.device,
    show: Callable[[str], None] | None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """What every worker does: go on from the newest checkpoint, train, evaluate, and let rank 0 write the numbers.

    Args:
        scratch: Where this rank writes checkpoints before they are published.
        publish: Takes each checkpoint.
        show: Takes lines of progress, beside the run's `train.log`.
        stop: Whether to save a checkpoint and stop; enough if one rank says so.
        tell: Takes what goes on at the moment, of which nothing is kept; may be called at each step.

    Raises:
        TrainingDiverged: On all workers; as CorruptImage it is in the run folder's failure.json then.
        CorruptImage: On the worker that read it.
        StorageError: The same, where the data could not be read in time.
        OSError: The run folder cannot be written.
    """
    if dist.rank() == 0:
        remove_incomplete(folder)  # else files of an earlier attempt could complete a checkpoint of this one
    # As rank 0 sees it: a shared disk may show the others an older state.
    step = dist.all_gather_dicts({"step": steps_done(newest_checkpoint(folder))} if dist.rank() == 0 else {})["step"]
    resume = folder / checkpoint_name(step) if step else None
    log = RunLog(folder, step, show) if dist.rank() == 0 else None
    if log and resume:
        log.line(f"going on from {resume.name}, with {dist.world_size()} workers")

    checkpoints = Checkpoints(folder, publish, log)

    def report(metrics: Metrics, checkpoint: Path | None) -> None:
        if log:
            log.add(metrics)
        if checkpoint:
            checkpoints.publish_next(metrics, checkpoint)

    say = log.line if log else lambda line: None
    with log or nullcontext():
        try:
            dataset = open_data(config.data)
            weights = weights_of(config) if config.model.weights and not resume else None
            if weights and log:
                folder.write(RunFile.WEIGHTS, json.dumps(weights.about(), indent=2) + "\n")
                log.line(f"beginning with {weights.in_words()}")
            permutations = permutations_of(folder, config, begins=resume is None)
            targets = learned(config, dataset)
            if resume:
                targets.check_same(folder)
            elif log:
                targets.write(folder)
            network = train(
                config,
                targets.dataset,
                report=report,
                scratch=scratch,
                resume=resume,
                device=device,
                say=say,
                stop=stop,
                tell=tell,
                measure=probe(config, dataset, device, say, tell) if config.evaluation.every_epochs else None,
                weights=weights,
                permutations=permutations,
                teacher=targets.teacher,
            )
            if config.evaluation.enabled:
                measure(config, dataset, folder, network, device, say, tell)
        except TrainingStopped as error:
            say(str(error))
        except TrainingDiverged as error:
            if log:
                write_failure(folder, str(error), error.step)
            raise
        except (CorruptImage, StorageError) as error:
            write_failure(folder, str(error), None)
            raise
        finally:
            checkpoints.wait()  # the end of this process would break it off


def permutations_of(folder: Folder, config: Config, *, begins: bool) -> Permutations | None:
    """The orders that a jigsaw's patches may have: made and written when a run begins, read when it goes on."""
    if not begins:
        return read_permutations(folder, config)
    permutations = made_permutations(config)
    if permutations is not None and dist.rank() == 0:
        write_permutations(folder, config, permutations)
    return permutations


class Checkpoints:
    """What this rank publishes, one at a time: uploads that are slower than training must not pile up on the disk.

    Args:
        publish: Has one sent, now or in a thread.
        log: Whose numbers are sent first, on the rank that has it.
    """

    def __init__(self, folder: Folder, publish: Publish, log: RunLog | None) -> None:
        self.folder, self._publish, self.log = folder, publish, log
        self.has_waited = False
        self.idle = threading.Event()  # none is on its way
        self.idle.set()

    def publish_next(self, metrics: Metrics, checkpoint: Path) -> None:
        """Publishes a checkpoint when the one before has been sent."""
        if self.log and not self.has_waited and not self.idle.is_set():
            self.has_waited = True
            self.log.line("waiting for the checkpoint before: the storage takes them more slowly than they come")
        self.wait()
        self.idle.clear()
        try:
            self._publish(metrics, checkpoint, self.send)
        except BaseException:
            self.idle.set()  # it may not have come to `send`
            raise

    def send(self, checkpoint: Path) -> None:
        """Copies the files of a checkpoint into the run folder; raises OSError if that cannot be written."""
        try:
            if self.log:
                self.log.send()  # first: who goes on from this checkpoint has the numbers of all steps before it
            upload(checkpoint, self.folder)
        except StorageError as error:
            raise OSError(f"the run folder cannot be written: {error}") from error
        finally:
            self.idle.set()

    def wait(self) -> None:
        """Returns when none is on its way."""
        self.idle.wait()
