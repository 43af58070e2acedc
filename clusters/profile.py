"""Cluster profiles: what a team's cluster is like, in one TOML file, checked before anything is submitted."""

import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from pirl.errors import ConfigError
from pirl.sections import Count, Section
from pirl.storage.secrets import refuse_secrets
from pirl.wording import problem_with

Line = Annotated[str, StringConstraints(min_length=1), AfterValidator(lambda text: refuse_breaks(text))]
"""Text without a line break, which would end a line of the batch script."""

PORTS_PER_NODE = 100
"""Of a job on one node: some for Ray's services, the rest for its workers."""


KEY_OF = {name: name for name in ("nodes", "partition", "account", "qos", "constraint", "time")} | {
    "no-kill": "nodes",
    "cpus-per-task": "cpus_per_node",
    "gpus-per-node": "gpus_per_node",
    "signal": "warning_s",
    "requeue": "max_requeues",
    "no-requeue": "max_requeues",
}
"""Options of sbatch that a key of the profile stands for."""

OURS = (
    *("array", "wrap", "job-name", "ntasks", "ntasks-per-node", "output", "error", "open-mode", "input"),
    *("wait", "clusters", "test-only", "parsable", "quiet", "verbose"),
)
"""Those that no profile may set."""


def refuse_truth(given: Any) -> Any:
    """Raises ValueError for true and false, which would pass for 1 and 0."""
    if isinstance(given, bool):
        raise ValueError("write a value, not true or false")
    return given


def refuse_breaks(text: str) -> str:
    """Raises ValueError for text with a line break, such as the one that an editor on Windows leaves at its end."""
    breaks = [name for name, sign in ((r"\r", "\r"), (r"\n", "\n"), (r"\0", "\0")) if sign in text]
    if breaks:
        raise ValueError(f"holds {' and '.join(breaks)}, where a line of the batch script would end: leave it out")
    return text


class Nodes(Section):
    """How many nodes: with fewer than `max` the job starts, and goes on when some are lost, down to `min`."""

    min: Count
    max: Count

    _is_number = field_validator("*", mode="before")(refuse_truth)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"nodes.min {self.min} is above nodes.max {self.max}")
        return self


class Profile(Section):
    """A cluster and the part of it that one job gets."""

    cluster: Literal["slurm", "local", "debug", "kuberay"]
    """`slurm` submits to SLURM, `local` runs on this machine in the background, `debug` in this process; `kuberay`
    describes a Ray cluster on Kubernetes for jobs that are submitted to it, and takes no job from slurm.py."""
    storage: Line
    """Where runs lie: a folder that all nodes share, or a store (s3://bucket/runs)."""

    nodes: Nodes
    cpus_per_node: Count
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    memory_gb_per_node: Annotated[float, Field(ge=0.1)] | None = None
    workers_per_node: Count | None = None
    """By default one for each GPU, or one on nodes without."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Annotated[Count, BeforeValidator(lambda given: minutes(given))] = 60
    """Time limit, in the file as SLURM takes it (`90`, `1:30:00`, `2-12`), here in minutes."""
    sbatch: dict[str, Line | bool] = Field(default_factory=dict)
    """More options of sbatch by their long names, e.g. `exclude = "n7"`."""
    srun_args: tuple[Line, ...] = ()
    """More options of srun, e.g. those that name a container."""

    setup: tuple[Line, ...] = ()
    """Lines of the batch script before the job: modules, a virtual environment."""
    python: Line | None = None
    """The Python of the nodes; by default the path of this one."""
    environment: dict[str, Line] = Field(default_factory=dict)
    """Variables for all processes of the job. Not for secrets: they stay on the nodes."""

    job_folder: Line = "~/pirl-jobs"
    """Scripts, logs and the code of each job; shared by all nodes and readable by its owner only."""
    ports: tuple[Annotated[int, Field(ge=1024, le=65535)], Annotated[int, Field(ge=1024, le=65535)]] = (20000, 32000)
    """First and last port that Ray may listen on; a job takes a hundred of them on each node."""
    temp_dir: Line = "/tmp"
    """On each node's own disk; Ray's logs and sockets lie there while the job runs."""

    warning_s: Count = 120
    """How long before the end SLURM sends the warning upon which a checkpoint is saved."""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """How often the job goes back to the queue before it fails."""
    start_s: Count = 300
    """How long nodes may take to come up before the job goes on without them, requeues or fails."""

    _is_number = field_validator("*", mode="before")(refuse_truth)

    @field_validator("nodes", mode="before")
    @classmethod
    def _one_number(cls, given: Any) -> Any:
        return {"min": given, "max": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @field_validator("temp_dir")
    @classmethod
    def _short_enough(cls, path: str) -> str:
        if not path.startswith("/") or len(path) > 16:  # with Ray's names and a long job id below it, of 107
            raise ValueError("use an absolute path of at most 16 characters: sockets lie below it")
        return path

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment {name!r}: use letters, digits and _, no digit first")
            if name.startswith(("PIRL_NODE", "SLURM_", "SUBMITIT_")):
                raise ValueError(f"environment {name!r}: the job sets it itself")
        for name, value in self.sbatch.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"sbatch {name!r}: use a long name of sbatch, without dashes before it")
            if name in KEY_OF:
                raise ValueError(f"sbatch {name!r}: write {KEY_OF[name]} outside of sbatch")
            if name in OURS:
                raise ValueError(f"sbatch {name!r}: jobs/slurm.py sets it itself")
            if value is False:
                raise ValueError(f"sbatch {name!r} is false: leave it out")
        words = " ".join(self.srun_args).replace("--export ", "--export=").split()
        if kept := [word for word in words if re.fullmatch(r"--export=(?!ALL(,|$)).*", word)]:
            raise ValueError(
                f"srun_args {kept[0]!r}: the job would not get its own variables; --export=ALL,NAME=... adds"
            )
        refuse_secrets(self.environment, "environment")
        if self.cluster in ("local", "debug") and self.nodes.max > 1:
            raise ValueError(f"cluster {self.cluster} is this machine: use nodes = 1")
        if self.cluster == "slurm" and self.warning_s >= 60 * self.time:
            raise ValueError(f"warning_s {self.warning_s} is not before the end: time is {self.time} minutes")
        if self.ports[1] - self.ports[0] + 1 < PORTS_PER_NODE:
            raise ValueError(f"ports {list(self.ports)}: a job needs {PORTS_PER_NODE} on each node")
        if self.workers_on_node > self.cpus_per_node:
            raise ValueError(f"{self.workers_on_node} workers on a node need at least as many cpus_per_node")
        few, many = sorted((self.workers_on_node, self.gpus_per_node))
        if few and many % few:  # Ray gives a worker whole GPUs, or a part of one
            raise ValueError(f"{self.workers_on_node} workers cannot share {self.gpus_per_node} GPUs evenly")
        return self

    @property
    def workers_on_node(self) -> int:
        """Workers of training on each node."""
        return self.workers_per_node or self.gpus_per_node or 1

    def settings(self, nodes: int | None = None) -> dict[str, Any]:
        """The settings of a config, by dotted name, that use `nodes` nodes (by default the most) in full."""
        workers = self.workers_on_node
        return {
            "cluster.workers": workers * (nodes or self.nodes.max),
            "cluster.cpus_per_worker": self.cpus_per_node // workers,
            "cluster.gpus_per_worker": self.gpus_per_node / workers,
        }


def read_profile(path: str) -> Profile:
    """Reads a profile; raises ConfigError if there is no such file, with a line for each key or value not allowed."""
    try:
        given = tomllib.loads(Path(path).expanduser().read_text())
    except (FileNotFoundError, IsADirectoryError) as error:
        there = ", ".join(sorted(str(p) for p in Path(__file__).parent.glob("*.toml")))
        what = "a folder, and a profile is a file" if isinstance(error, IsADirectoryError) else "no such file"
        raise ConfigError(f"--cluster {path or repr('')}: {what}; the examples are {there}") from None
    except (OSError, RuntimeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:  # no such user, say
        raise ConfigError(f"--cluster {path}: {error}") from None
    try:
        return Profile.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_describe(problem)}" for problem in error.errors())) from None


def minutes(time: Any) -> int:
    """Minutes of a time limit as SLURM takes it: `90`, `1:30:00`, `2-12`, `2-12:00:00`; seconds are rounded up."""
    days, dash, rest = str(time).rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if not 1 <= len(parts) <= 3:
            raise ValueError
        begins_with_hours = dash or len(parts) == 3
        hours, mins, seconds = [*([] if begins_with_hours else [0]), *parts, 0, 0][:3]
        return (int(days) if dash else 0) * 1440 + hours * 60 + mins + math.ceil(seconds / 60)
    except ValueError:
        raise ValueError("use minutes, hours:minutes:seconds or days-hours:minutes:seconds") from None


def _describe(problem: Any) -> str:
    if problem["type"] == "missing":
        return f"{'.'.join(map(str, problem['loc']))} is missing"
    of_nodes = [f"nodes.{key}" for key in Nodes.model_fields]
    return problem_with(problem, of_nodes if len(problem["loc"]) > 1 else [*Profile.model_fields])


def job_settings(profile: Profile, nodes: int) -> list[str]:
    """Arguments for a job file that has it use `nodes` nodes; typed ones come after them and count more."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in profile.settings(nodes).items()]
    return [f"--storage={profile.storage}", *settings]
