"""What is asked of ClusterFit and of distillation: where a network's features go, and what is trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.evaluation_request import EmbeddingRequest
from pirl.clusterfit.kmeans import KMeans
from pirl.config import Config
from pirl.runs.run import Resume
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder


@dataclass(frozen=True)
class ClusterFitRequest:
    """What the command line asks for.

    Attributes:
        embedding: Of the first network, over the images that the new one is trained on.
        clusters: How they are sought; None where the first network's own classifier is the teacher.
        config: Of the new run, which learns what lies in `targets`.
    """

    embedding: EmbeddingRequest
    clusters: KMeans | None
    config: Config
    storage: Folder
    name: str
    resume: Resume
    use_ray: bool
    only_check: bool

    @property
    def targets(self) -> Folder:
        """Where the pseudo-labels or the teacher of the run are."""
        return self.storage / self.name / RunFile.TARGETS

    @property
    def distills(self) -> bool:
        """Whether the new network learns scores, and not clusters."""
        return self.config.method.name == "distillation"

    def decides(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the targets, with what decides the features."""
        names = ("trunk_sha256", "data_fingerprint", "images", "tap", "image_size")
        sought = {**self.clusters.model_dump(), "seed": self.config.seed} if self.clusters else {"clusters": None}
        return {name: features[name] for name in names} | sought
