"""What submitit runs once on each node."""

from dataclasses import dataclass
from pathlib import Path

import submitit

from clusters.job_folder import JobFolder
from clusters.node import main as allocation
from clusters.node.this_node import JobFile, ThisNode
from clusters.profile import Profile


@dataclass(frozen=True)
class Task:
    """A job's part on a node, for submitit to pickle.

    Attributes:
        profile: Of the cluster, as JSON: its file may change while the job waits.
    """

    folder: Path
    job: JobFile
    profile: str

    def __call__(self) -> None:
        """Runs it; see `clusters.node.main.run`."""
        profile = Profile.model_validate_json(self.profile)
        task = submitit.JobEnvironment()
        folder = JobFolder(self.folder, task.job_id)
        allocation.run(ThisNode.here(self.job, profile, folder, task.global_rank, task.num_nodes))
