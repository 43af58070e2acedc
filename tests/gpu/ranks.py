"""Several GPUs by NCCL against one process on a CPU; each rank is a process of its own."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp

from pirl.data.dataset import open_data
from pirl.evaluate.evaluate import evaluate_res5
from pirl.evaluate.subject import Subject
from pirl.runs.run_files import checkpoint_name
from pirl.storage.folder import Folder
from tests.gpu.correct import BOUND, CPU, EXACT, Correct, trained

BACKENDS = ("nccl", "cpu:gloo,cuda:nccl")
"""What Ray starts, and what torchrun does."""
MOST = 4
"""Ranks: more show nothing new."""


def check(correct: Correct) -> None:
    """Losses on several GPUs, in one go and resumed, against one process on a CPU, and an evaluation that ends."""
    alone = correct.run("alone", EXACT, CPU)
    world = min(MOST, torch.cuda.device_count())
    for backend in BACKENDS:
        out = correct.folder / backend.replace(":", "-")
        out.mkdir()
        mp.spawn(started, (world, out, backend, correct), nprocs=world)
        compare(correct, f"{world} GPUs by {backend}", alone.losses, json.loads((out / "result.json").read_text()))


def compare(correct: Correct, what: str, alone: dict[int, float], result: list[list[float]]) -> None:
    """Says how far the losses of some ranks are from those of one process."""
    losses, resumed, (accuracy,) = result
    gap, on = (
        max(abs(a / b - 1) for a, b in zip(*pair, strict=True))
        for pair in ((losses, alone.values()), (resumed, losses[correct.half :]))
    )
    good = max(gap, on) < BOUND
    correct.findings.say(f"{what}: losses within {gap:.1e}, resumed {on:.1e}, kNN {accuracy:.3f}", good)


def started(rank: int, world: int, out: Path, backend: str, correct: Correct) -> None:
    """What each process does."""
    torch.backends.cudnn.allow_tf32 = False
    torch.cuda.set_device(rank)
    td.init_process_group(backend, init_method=f"file://{out}/store", rank=rank, world_size=world)
    result = run(correct, out, torch.device("cuda", rank))
    if rank == 0:
        (out / "result.json").write_text(json.dumps(result))
    td.destroy_process_group()


def run(correct: Correct, out: Path, device: torch.device) -> list[list[float]]:
    """Trains, resumes and evaluates on this rank of a group: losses, those after it was resumed, and kNN accuracy."""
    config = correct.config(EXACT, device)
    whole = trained(config, out / "whole", device)
    half = Folder(str(out / "whole" / checkpoint_name(correct.half)))
    resumed = trained(config, out / "resumed", device, half)
    known: Any = open_data(config.data)
    trunk = whole.network.trunk
    subject = Subject(trunk, None, known, known.held_out(), config.data.image_size, device, limit=64)
    return [list(whole.losses.values()), list(resumed.losses.values()), [evaluate_res5(subject, config)["knn"]]]
