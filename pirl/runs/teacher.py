"""A teacher as a file: the trunk and a classifier of one of its taps."""

from collections.abc import Mapping
from typing import Any

import safetensors.torch

from pirl.data.described import described, description, write_described
from pirl.errors import ConfigError
from pirl.methods.distill import LinearClassifier, Teacher
from pirl.methods.models import Trunk
from pirl.runs.weights import Weights
from pirl.storage.folder import Folder

NAME = "teacher"
"""Of its two files."""

MAKE = "python jobs/clusterfit.py RUN --distill makes one, and trains"


def write_teacher(folder: Folder, weights: Weights, classifier: LinearClassifier, about: Mapping[str, Any]) -> None:
    """Writes it; what was half written before is replaced."""
    tensors = {f"trunk.{name}": value for name, value in weights.tensors.items()}
    tensors |= {"classifier.weight": classifier.weight, "classifier.bias": classifier.bias}
    network = {"arch": weights.arch, "width": weights.width, "stem": weights.stem}
    known = {**about, "network": network, "tap": classifier.tap, "unit": classifier.unit}
    data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    write_described(folder, NAME, data, {**known, "classes": len(classifier.bias)})


def read_teacher(folder: Folder) -> tuple[Teacher, dict[str, Any]]:
    """The teacher of a folder, on the CPU, and what is said of it.

    Raises:
        ConfigError: There is none, or it is damaged.
        StorageError: The store did not give it.
    """
    about = description(folder, NAME)
    if about is None:
        raise ConfigError(f"method.teacher {folder} holds no teacher: {MAKE}")
    tensors = safetensors.torch.load(described(folder, NAME, about["sha256"]))
    trunk = Trunk(**about["network"])
    own = {name.removeprefix("trunk."): value for name, value in tensors.items() if name.startswith("trunk.")}
    trunk.load_state_dict(own, strict=False)  # a file of weights may not count batches
    classifier = LinearClassifier(tensors["classifier.weight"], tensors["classifier.bias"], about["tap"], about["unit"])
    return Teacher(trunk, classifier), about
