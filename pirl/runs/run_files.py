"""Every name in a run's folder, `<storage>/<run>/`; beside these lie TensorBoard events. They are promises."""

import re
from enum import StrEnum


class RunFile(StrEnum):
    """What lies in the folder itself."""

    CONFIG = "config.json"
    """The whole config, enough to repeat the run; it says that the name is taken."""
    METRICS = "metrics.jsonl"
    """A line of numbers for each report."""
    LOG = "train.log"
    """Lines for people."""
    RESULT = "result.json"
    """Last numbers, evaluation and checkpoint of a run that is done."""
    EVALUATION = "evaluation/pretrain.json"
    """What was measured after training."""
    FAILURE = "failure.json"
    """Why the run ended where trying again would not help."""
    WEIGHTS = "weights.json"
    """Which weights it began with, and their checksum, where `model.weights` names some."""
    TARGETS = "targets"
    """A folder: clusters or a classifier that it learns, where jobs/clusterfit.py made them for it."""
    LEARNED = "learned.json"
    """Which of them it began with, and their checksum, where `data.pseudo_labels` or `method.teacher` names some."""
    PERMUTATIONS = "permutations.json"
    """The orders that a jigsaw's patches may have, where `pretext.permutations` limits them."""
    STOPPED = "stopped.json"
    """After which epoch the scheduler of a sweep stopped it, by metric."""
    REPORT = "report.html"
    """The page of `jobs/report.py`."""
    SCRATCH = ".scratch"
    """Checkpoints as they are written, without Ray."""
    RAYS_MEMORY = "checkpoint_manager_snapshot.json"
    """What Ray Train remembers of checkpoints."""


class CheckpointFile(StrEnum):
    """What lies in a checkpoint beside the tensors, `__<rank>_<n>.distcp`."""

    STATE = "state.json"
    """How far it is and which files it has. It comes last and goes first: a checkpoint without it is none."""
    METADATA = ".metadata"
    """Where each tensor lies, as torch.distributed.checkpoint has it."""
    TRUNK = "trunk.safetensors"
    """The trunk, named as torchvision names a ResNet."""
    CONFIG = "config.json"


CHECKPOINT = re.compile(r"checkpoint_\d+")


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after so many steps; names are in the order of steps."""
    return f"checkpoint_{step:09d}"
