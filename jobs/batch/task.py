"""What submitit runs once on each node."""

from dataclasses import dataclass

import submitit
from submitit.core.utils import JobPaths

from clusters.node import main as allocation
from clusters.node.this_node import JobFile, Place
from clusters.profile import Profile


@dataclass(frozen=True)
class Task:
    """A job's part on a node, for submitit to pickle.

    Attributes:
        job: What runs.
        profile: Of the cluster, as JSON: its file may change while the job waits.
    """

    job: JobFile
    profile: str

    def __call__(self) -> None:
        """Runs it; see `clusters.node.main.run`."""
        profile = Profile.model_validate_json(self.profile)
        task = submitit.JobEnvironment()
        log = JobPaths(self.job.folder, task.job_id, task.global_rank).stdout
        place = Place.here(profile, task.job_id, task.global_rank, task.num_nodes, log)
        allocation.run(self.job, profile, place)
