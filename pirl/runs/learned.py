"""What a run learns in place of labels: clusters, or the scores of a teacher; always the same as when it began."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.data.described import described, description, write_described
from pirl.data.pseudo_labels import read_pseudo_labels
from pirl.errors import ConfigError
from pirl.methods.distill import LinearClassifier, Teacher
from pirl.methods.models import Trunk
from pirl.runs.run import folder_at
from pirl.runs.run_files import RunFile
from pirl.runs.weights import Weights
from pirl.storage.folder import Folder

TEACHER = "teacher"
"""Of the two files of a teacher: its trunk, and a classifier of one of its taps."""

MAKE = "python jobs/clusterfit.py RUN --distill makes one, and trains"


@dataclass(frozen=True)
class Learned:
    """What the loop is given.

    Attributes:
        dataset: Whose labels are those to learn.
        teacher: Where there is one.
        uri: Of the clusters or the teacher, and `sha256` of their file; None for what needs neither.
    """

    dataset: Dataset
    teacher: Teacher | None = None
    uri: str | None = None
    sha256: str | None = None

    def write(self, folder: Folder) -> None:
        """Writes down which these are, in the folder of a run that begins."""
        if self.uri is not None:
            folder.write(RunFile.LEARNED, json.dumps({"uri": self.uri, "sha256": self.sha256}, indent=2) + "\n")

    def check_same(self, folder: Folder) -> None:
        """Refuses others than those with which a run has begun; raises ConfigError."""
        if self.uri is None:
            return
        known = json.loads(folder.find(RunFile.LEARNED) or "{}")
        if known.get("sha256") != self.sha256:
            raise ConfigError(
                f"{self.uri} has changed since the run {folder} began with it: put back the file with the sha256 "
                f"{known.get('sha256')}, or choose another --run {folder.name}-2"
            )


def learned(config: Config, dataset: Dataset) -> Learned:
    """What the method of a config learns of these images; raises as `read_pseudo_labels` and `read_teacher` do."""
    if config.data.pseudo_labels is not None:
        place = folder_at(config.data.pseudo_labels, config)
        clusters = read_pseudo_labels(place, dataset)
        return Learned(clusters.applied_to(dataset), None, place.uri, clusters.about["sha256"])
    if config.method.teacher is not None:
        place = folder_at(config.method.teacher, config)
        teacher, about = read_teacher(place)
        return Learned(dataset, teacher, place.uri, about["sha256"])
    return Learned(dataset)


def write_teacher(folder: Folder, weights: Weights, classifier: LinearClassifier, about: Mapping[str, Any]) -> None:
    """Writes it; what was half written before is replaced."""
    tensors = {f"trunk.{name}": value for name, value in weights.tensors.items()}
    tensors |= {"classifier.weight": classifier.weight, "classifier.bias": classifier.bias}
    network = {"arch": weights.arch, "width": weights.width, "stem": weights.stem}
    known = {**about, "network": network, "tap": classifier.tap, "unit": classifier.unit}
    data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    write_described(folder, TEACHER, data, {**known, "classes": len(classifier.bias)})


def read_teacher(folder: Folder) -> tuple[Teacher, dict[str, Any]]:
    """The teacher of a folder, on the CPU, and what is said of it.

    Raises:
        ConfigError: There is none, or it is damaged.
        StorageError: The store did not give it.
    """
    about = description(folder, TEACHER)
    if about is None:
        raise ConfigError(f"method.teacher {folder} holds no teacher: {MAKE}")
    tensors = safetensors.torch.load(described(folder, TEACHER, about["sha256"]))
    trunk = Trunk(**about["network"])
    own = {name.removeprefix("trunk."): value for name, value in tensors.items() if name.startswith("trunk.")}
    trunk.load_state_dict(own, strict=False)  # a file of weights may not count batches
    classifier = LinearClassifier(tensors["classifier.weight"], tensors["classifier.bias"], about["tap"], about["unit"])
    return Teacher(trunk, classifier), about
