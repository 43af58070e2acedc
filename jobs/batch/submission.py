"""A job as it is handed to the scheduler: its folder with the code of that moment, its script, its tasks."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters.job_folder import JobFolder
from clusters.node.this_node import JobFile
from clusters.profile import Profile
from clusters.slurm.queue import run_command
from pirl.errors import ConfigError, SlurmSilent

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pirl", "jobs", "clusters", "tune")
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

USERS_OWN = ("SLURM_CONF", "SLURM_JWT", "SBATCH_")
"""Variables with which a user's shell tells SLURM's commands something; the others tell of an allocation."""


@contextmanager
def outside_of_allocations() -> Iterator[None]:
    """Hides in the block what an allocation in which this process runs has told it: a new job would believe it."""
    from submitit.helpers import clean_env

    kept = {name: value for name, value in os.environ.items() if name.startswith(USERS_OWN)}
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
    """

    profile: Profile
    name: str
    folder: Path
    job: str
    arguments: tuple[tuple[str, ...], ...]
    run_folders: tuple[str, ...]

    def script(self) -> str:
        """The batch script, exactly as SLURM gets it."""
        from submitit.slurm.slurm import _make_sbatch_string

        command = f"{self._python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        parameters = self._parameters()
        if len(self.arguments) > 1:
            parameters["map_count"] = len(self.arguments)
        return _make_sbatch_string(command=command, folder=self.folder, **parameters)

    @outside_of_allocations()
    def submit(self) -> list[str]:
        """Makes the folder, freezes the code, hands the job over; returns the id of each run's job.

        Raises ConfigError if the scheduler does not take it.
        """
        import submitit

        self._make_folder()
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
        """For submitit, whose names they bear."""
        profile = self.profile
        more: dict[str, Any] = {"requeue": True}
        if profile.nodes.min < profile.nodes.max:
            more |= {"nodes": f"{profile.nodes.min}-{profile.nodes.max}", "no-kill": True}
        given = {
            "partition": profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "constraint": profile.constraint,
            "gpus_per_node": profile.gpus_per_node or None,
            # Not with a range of nodes, of which SLURM would give the fewest.
            "ntasks_per_node": None if "no-kill" in more else 1,
            "mem": f"{round(profile.memory_gb_per_node * 1024)}M" if profile.memory_gb_per_node else None,
        }
        requeue = shlex.join([f"{self._code}/clusters/slurm/requeue.py", str(self.folder)])
        return {name: value for name, value in given.items() if value} | {
            "job_name": self.name,
            "nodes": profile.nodes.max,
            "cpus_per_task": profile.cpus_per_node,
            "time": profile.time,
            "signal_delay_s": profile.warning_s,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {**more, **profile.sbatch},
            "setup": self._setup(),
            # A task that ends must not end the others, which may go on without it.
            "srun_args": [
                *("--kill-on-bad-exit=0", "--wait=0", "--ntasks-per-node=1"),
                f"--cpus-per-task={profile.cpus_per_node}",
                *(["--no-kill"] if "no-kill" in more else []),
                *profile.srun_args,
            ],
            "teardown": [f"{self._python} {requeue} {profile.max_requeues} $?"],
        }

    @property
    def _code(self) -> str:
        return str(JobFolder(self.folder).code)

    @property
    def _python(self) -> str:
        return self.profile.python or shlex.quote(sys.executable)

    def _setup(self) -> list[str]:
        """Lines of bash before the job; whatever those of the profile do, the frozen code comes first."""
        return [
            *(f"export {name}={shlex.quote(value)}" for name, value in self.profile.environment.items()),
            *self.profile.setup,
            "set +e",  # what stands behind the job has to run when it fails
            f'export PYTHONPATH={shlex.quote(self._code)}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            # Else the code in the folder of sbatch, which may have changed, would come before it.
            "export PYTHONSAFEPATH=1",
        ]

    def _make_folder(self) -> None:
        private_folder(self.folder.parent)
        self.folder.mkdir(mode=0o700)
        for package in PACKAGES:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, f"{self._code}/{package}", ignore=ignore)

    def _write_description(self, job_ids: list[str]) -> None:
        description = {
            "name": self.name,
            "cluster": self.profile.cluster,
            "job": self.job,
            "arguments": dict(zip(job_ids, self.arguments, strict=True)),
            "run_folders": dict(zip(job_ids, self.run_folders, strict=True)),
            "environment": self.profile.environment,
            "submitted": time.time(),
        }
        file = JobFolder(self.folder).description
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps(description, indent=1) + "\n")
        partial.replace(file)


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


def private_folder(folder: Path) -> None:
    """Makes a folder; what lies in it is run, so raises ConfigError for one in which others can write."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise ConfigError(f"job_folder {folder} belongs to others or can be written by them: chmod go-w {folder}")


def next_folder(parent: Path, name: str) -> Path:
    """The first of `name-1`, `name-2`, … that does not exist."""
    folders = (parent / f"{name}-{number}" for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


@outside_of_allocations()
def ask_slurm(script: str) -> str:
    """Asks SLURM whether it would take a script, and when it would start it; submits nothing.

    Raises:
        ConfigError: It would not, and why.
        SlurmSilent: There is no answer.
    """
    with tempfile.TemporaryFile("w+") as file:  # a pipe would end this process, too, if sbatch did not read it
        file.write(script)
        file.seek(0)
        answer = run_command("sbatch", "--test-only", stdin=file, limit_s=TEST_ONLY_S)
    said = (answer.stderr or answer.stdout).strip().removeprefix("sbatch: ")
    if answer.returncode and any(words in said.lower() for words in AWAY):
        raise SlurmSilent(said.splitlines()[-1].removeprefix("sbatch: ").removeprefix("error: "))
    if answer.returncode:
        raise ConfigError(f"SLURM would not take this job: {said}")
    return re.sub(r"^Job \d+ ", "", said)  # the number is that of this question
