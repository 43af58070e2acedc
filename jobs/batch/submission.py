"""A job as it is handed to the scheduler: its folder with the code of that moment, its script, its tasks."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusters.job_folder import JobFolder
from clusters.node.this_node import JobFile
from clusters.profile import Profile
from clusters.slurm import bad_nodes, users_variables
from clusters.slurm.limits import all_nodes, hints, in_partition, too_much
from clusters.slurm.queue import run_command
from jobs.batch.script import freeze, parameters_of, python_of, setup_lines
from pirl.errors import ConfigError, SlurmSilent

ALONE = "jobs/prepare.py"
"""The job file that needs no Ray and no number of workers."""

WITHOUT_LIMIT_MIN = 60 * 24 * 365
"""For jobs without a scheduler: nobody takes this machine away, and nobody would start them again."""

TEST_ONLY_S = 60
"""How long the scheduler may take to say what it thinks of a script."""

AWAY = (
    *("unable to contact slurm controller", "socket timed out", "zero bytes were transmitted", "in standby mode"),
    "could not establish a configuration source",
)
"""What sbatch says that has not reached the controller; anything else is the controller's word."""


@contextmanager
def heard_by_sbatch(script: str) -> Iterator[None]:
    """In the block the environment has of SLURM what sbatch is to hear for a script.

    What an allocation in which this process runs has told it is hidden, too: a new job would believe it.
    """
    from submitit.helpers import clean_env

    kept = users_variables.that_count(os.environ, script)
    with clean_env():
        os.environ |= kept
        yield


@dataclass(frozen=True)
class Submission:
    """One or several runs on one cluster.

    Attributes:
        folder: Of the job: new, and only for this submission.
        job: Path of the job file in the project.
        arguments: For the job file, of each run.
        run_folders: Of each run; empty for a job that makes none.
        profile_file: That of the profile, for who submits again.
        left_out: Nodes that the job is not to get.
        after: What SLURM lets it wait for, as --dependency has it.
        at_once: Tasks of an array that run together, at most; None for SLURM's own limit.
    """

    profile: Profile
    name: str
    folder: Path
    job: str
    arguments: tuple[tuple[str, ...], ...]
    run_folders: tuple[str, ...]
    profile_file: str = ""
    left_out: tuple[str, ...] = ()
    after: str = ""
    at_once: int | None = None

    def script(self) -> str:
        """The batch script, exactly as SLURM gets it."""
        from submitit.slurm.slurm import _make_sbatch_string

        command = f"{self._python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        parameters = self._parameters()
        if len(self.arguments) > 1:
            parameters["map_count"] = len(self.arguments)
        return _make_sbatch_string(command=command, folder=self.folder, **parameters)

    def submit(self) -> list[str]:
        """Makes the folder, freezes the code, hands the job over; returns the id of each run's job.

        Raises ConfigError if the scheduler does not take it.
        """
        with heard_by_sbatch(self.script()):
            return self._submit()

    def _submit(self) -> list[str]:
        import submitit

        freeze(self.folder)
        tasks = self._tasks()
        if self.profile.cluster == "slurm":
            executor: Any = submitit.SlurmExecutor(folder=self.folder, python=self.profile.python)
            executor.update_parameters(**self._parameters())
        else:
            executor = submitit.DebugExecutor(folder=self.folder)
            if self.profile.cluster == "debug":
                os.environ |= self.profile.environment
                os.environ["PYTHONPATH"] = f"{self._code}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
                os.environ["PYTHONSAFEPATH"] = "1"
            else:
                # Not as submitit's own set-up: that is another shell, and the job would have its number.
                lines = "\n".join([*self._setup(), f'exec {self._python} "$@"'])
                executor = submitit.LocalExecutor(folder=self.folder, python=shlex.join(["bash", "-c", lines, "bash"]))
            executor.update_parameters(
                timeout_min=WITHOUT_LIMIT_MIN, gpus_per_node=self.profile.gpus_per_node, stderr_to_stdout=True
            )
        try:
            with quiet() if self.profile.cluster == "local" else nullcontext():
                jobs = executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            shutil.rmtree(self.folder)
            raise ConfigError(f"SLURM did not take the job: {error}") from None
        self._write_description([job.job_id for job in jobs])
        if self.profile.cluster == "debug":
            for job in jobs:
                job.results()
        return [job.job_id for job in jobs]

    def _tasks(self) -> list[Any]:
        from jobs.batch.task import Task

        path, profile = f"{self._code}/{self.job}", self.profile.model_dump_json()
        files = [JobFile((path, *words), self.job != ALONE) for words in self.arguments]
        return [Task(self.folder, file, profile) for file in files]

    def _parameters(self) -> dict[str, Any]:
        requeue = shlex.join([f"{self._code}/clusters/slurm/requeue.py", str(self.folder)])
        # SIGTERM comes with the requeue that this line asks for, and it has a word to say after it.
        last = f"code=$?; trap '' TERM; {self._python} {requeue} {self.profile.max_requeues} $code"
        more: dict[str, str | bool] = {"requeue": True}
        if self.left_out:
            more["exclude"] = ",".join(filter(None, [str(self.profile.sbatch.get("exclude", "")), *self.left_out]))
        if self.after:
            more |= {"dependency": self.after, "kill-on-invalid-dep": "yes"}
        given = parameters_of(self.profile, self.name, self._setup(), [last], more)
        return given | ({"array_parallelism": self.at_once} if self.at_once else {})

    @property
    def _code(self) -> str:
        return str(JobFolder(self.folder).code)

    @property
    def _python(self) -> str:
        return python_of(self.profile)

    def _setup(self) -> list[str]:
        return setup_lines(self.profile, self._code)

    def _write_description(self, job_ids: list[str]) -> None:
        description = {
            "name": self.name,
            "cluster": self.profile.cluster,
            "job": self.job,
            "arguments": dict(zip(job_ids, self.arguments, strict=True)),
            "run_folders": dict(zip(job_ids, self.run_folders, strict=True)),
            "environment": self.profile.environment,
            "profile": self.profile_file,
            "left_out": self.left_out,
            "submitted": time.time(),
        }
        file = JobFolder(self.folder).description
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps(description, indent=1) + "\n")
        partial.replace(file)


def without_bad_nodes(sent: Submission) -> tuple[Submission, list[str]]:
    """A submission that is not to get nodes on which something failed lately, and what to tell of them."""
    bad = bad_nodes.remembered(sent.folder.parent)
    if not bad or sent.profile.cluster != "slurm" or {"nodelist", "nodefile"} & set(sent.profile.sbatch):
        return sent, []
    partition = partition_of(sent.profile, sent.script())
    nodes = [bad_nodes.Candidate(n.name, n.usable, n.features) for n in in_partition(all_nodes(), partition)]
    hosts = bad_nodes.to_leave_out(bad, nodes, sent.profile.nodes.min, sent.profile.constraint)
    notes = [
        f"left out: {node} (--forget-nodes uses it again)"
        if node.host in hosts
        else f"not left out, as the job needs it or too many would be: {node}"
        for node in bad
        if node.host in {candidate.name for candidate in nodes}
    ]
    return replace(sent, left_out=tuple(hosts)), notes


def partition_of(profile: Profile, script: str) -> str | None:
    """Where the job goes: to the profile's partition, to that of a variable, or to SLURM's default, which is None."""
    counts = users_variables.that_count(os.environ, script)
    return profile.partition or counts.get("SBATCH_PARTITION")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what is started in the block from this process's terminal and pipes, which it would hold open."""
    saved = [os.dup(number) for number in (0, 1, 2)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in enumerate(saved):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        signal.signal(signal.SIGHUP, hangup)


def ask_slurm(sent: Submission) -> str:
    """Asks SLURM whether it would take a job, and when it would start it; submits nothing.

    Raises:
        ConfigError: It would not, and why.
        SlurmSilent: There is no answer.
    """
    script = sent.script()
    # A pipe would end this process, too, if sbatch did not read it.
    with heard_by_sbatch(script), tempfile.TemporaryFile("w+") as file:
        file.write(script)
        file.seek(0)
        answer = run_command("sbatch", "--test-only", stdin=file, limit_s=TEST_ONLY_S)
    if answer.returncode:
        raise refusal(answer, sent.profile, script)
    said = (answer.stderr or answer.stdout).strip().removeprefix("sbatch: ")
    estimate = re.sub(r"^Job \d+ ", "", said)  # the number is that of this question
    # SLURM may take what it never starts: where limits of partitions are not enforced at once.
    doubts = too_much(sent.profile, in_partition(all_nodes(), partition_of(sent.profile, script)))
    return "".join([estimate, *(f"\n  but {doubt}" for doubt in doubts)])


def refusal(answer: subprocess.CompletedProcess[str], profile: Profile, script: str) -> Exception:
    """What sbatch said that took no job, with the key of the profile behind it; SlurmSilent where it is no answer."""
    said = (answer.stderr or answer.stdout).strip().removeprefix("sbatch: ")
    if any(words in said.lower() for words in AWAY):
        return SlurmSilent(said.splitlines()[-1].removeprefix("sbatch: ").removeprefix("error: "))
    more = hints(profile, said, partition_of(profile, script))
    return ConfigError(f"SLURM would not take this job: {said}{more}")
