"""What every batch script of ours has: the profile in sbatch's words, the code that it runs, and its folder."""

import itertools
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clusters.job_folder import JobFolder
from clusters.profile import Profile
from pirl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pirl", "jobs", "clusters", "tune")


def parameters_of(
    profile: Profile, name: str, setup: list[str], teardown: list[str], more: Mapping[str, str | bool]
) -> dict[str, Any]:
    """What a profile asks SLURM for, for submitit, whose names these are.

    Args:
        setup: Lines of bash before the job's steps.
        teardown: Lines of bash behind them.
        more: Options of sbatch that no key of the profile stands for; they come before those of the profile.
    """
    options: dict[str, Any] = {**profile.sbatch, **more}
    if profile.nodes.min < profile.nodes.max:
        options |= {"nodes": f"{profile.nodes.min}-{profile.nodes.max}", "no-kill": True}
    given = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "gpus_per_node": profile.gpus_per_node or None,
        # Not with a range of nodes, of which SLURM would give the fewest.
        "ntasks_per_node": None if "no-kill" in options else 1,
        "mem": f"{round(profile.memory_gb_per_node * 1024)}M" if profile.memory_gb_per_node else None,
    }
    return {key: value for key, value in given.items() if value} | {
        "job_name": name,
        "nodes": profile.nodes.max,
        "cpus_per_task": profile.cpus_per_node,
        "time": profile.time,
        "signal_delay_s": profile.warning_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": options,
        "setup": setup,
        # A task that ends must not end the others, which may go on without it.
        "srun_args": [
            *("--kill-on-bad-exit=0", "--wait=0", "--ntasks-per-node=1"),
            "--export=ALL",  # of the script, also where none of the variables of the user's shell reach that
            f"--cpus-per-task={profile.cpus_per_node}",
            *(["--no-kill"] if "no-kill" in options else []),
            *profile.srun_args,
        ],
        "teardown": teardown,
    }


def python_of(profile: Profile) -> str:
    """The Python of the nodes, for bash."""
    return profile.python or shlex.quote(sys.executable)


def setup_lines(profile: Profile, code: str) -> list[str]:
    """Lines of bash before the job; whatever those of the profile do, the frozen code comes first."""
    return [
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()),
        *profile.setup,
        "set +e",  # what stands behind the job has to run when it fails
        f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        # Else the code in the folder of sbatch, which may have changed, would come before it.
        "export PYTHONSAFEPATH=1",
    ]


def freeze(folder: Path) -> None:
    """Makes a folder of a job, for this user only, with the code of this moment in it."""
    private_folder(folder.parent)
    folder.mkdir(mode=0o700)
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, JobFolder(folder).code / package, ignore=ignore)


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
