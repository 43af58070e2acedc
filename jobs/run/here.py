"""A run in this process, or in those of torchrun, and what those are asked before."""

import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as td

from jobs.live_line import LiveLine
from jobs.run.outcome import conclude, interruption
from jobs.run.preemption import preemption_signal
from jobs.run.worker import work
from pirl import dist
from pirl.errors import ConfigError
from pirl.processes import torchrun
from pirl.runs.checkpoint_folder import prune_checkpoints
from pirl.runs.run import Run
from pirl.runs.run_files import RunFile
from pirl.storage.checks import check_shared
from pirl.storage.folder import Folder
from pirl.storage.temporary import temporary_folder

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Until ranks that wait for one that does not come give up: as Ray Train has it. NCCL's own ten minutes are less than
what an upload to a slow store may take, for which the others wait."""


def run_here(run: Run, live: LiveLine) -> int:
    """Trains in this process, or as one of torchrun's; returns the exit code."""
    began = time.time()
    rank = torchrun("RANK") or 0
    device = join_group(use_gpu=run.config.cluster.gpus_per_worker > 0)
    try:
        check_ranks(run.folder.parent)
    except ConfigError as error:
        if rank == 0:  # it speaks for all
            print(f"error: {error}", file=sys.stderr)
        if td.is_initialized():
            td.destroy_process_group()
        return 2
    # On the disk of the run, where there is one: it has room for checkpoints.
    scratch = (run.folder.path or temporary_folder()) / RunFile.SCRATCH / str(rank)
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

    with live, preemption_signal() as preempted, interruption() as ended:
        work(run.config, run.folder, scratch, publish, device, show=live.log, stop=preempted.is_set, tell=live.now)
        live.now("")
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # the others may have something in it
        scratch.parent.rmdir()
    if td.is_initialized() and not ended.why:  # after a failure the others may never come to it
        td.destroy_process_group()
    if rank == 0:
        return conclude(run, began, ended.why)
    if ended.why:
        print(f"rank {rank}: {ended.why}", file=sys.stderr)
    return 1 if ended.why else 0


def join_group(*, use_gpu: bool) -> torch.device:
    """Joins torchrun's other processes, if there are any; returns the device of this one."""
    device = torch.device("cuda", torchrun("LOCAL_RANK") or 0) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if torchrun("WORLD_SIZE") and not td.is_initialized():
        td.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return device


def check_ranks(storage: Folder) -> None:
    """Refuses a storage that some rank cannot write, or that is not the same folder for all; a collective.

    Leaves nothing there but the folder.

    Raises:
        ConfigError: On every rank; names the first that cannot, and why.
    """
    own = f".probe-{uuid.uuid4().hex}"
    first = dist.all_gather_dicts({"name": own} if dist.rank() == 0 else {})["name"]
    problems: list[str] = []
    steps = (lambda: storage.write(own, ""), lambda: check_shared(storage, first), lambda: storage.remove(own))
    for step in steps:  # none is left out, so that all ranks come to the same end
        problems += dist.all_gather_dicts(_problem(step, storage)).values()
    if problems:
        raise ConfigError(problems[0])


def _problem(step: Callable[[], None], storage: Folder) -> dict[str, str]:
    """What went wrong on this rank, by its name."""
    name = f"rank {dist.rank()}: " if dist.world_size() > 1 else ""
    try:
        step()
    except ConfigError as error:
        return {name: f"{name}{error}"}
    except OSError as error:
        return {name: f"{name}--storage {storage} cannot be written: {error}"}
    return {}
