"""What a run learns in place of labels: clusters, or the scores of a teacher; always the same as when it began."""

import json
from dataclasses import dataclass

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.data.pseudo_labels import read_pseudo_labels
from pirl.errors import ConfigError
from pirl.methods.distill import Teacher
from pirl.runs.run import folder_at
from pirl.runs.run_files import RunFile
from pirl.runs.teacher import read_teacher
from pirl.storage.folder import Folder


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
