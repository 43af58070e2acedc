"""Run a job of this project on SLURM: bring a Ray cluster up on an allocation, and tell what goes on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import getpass
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable

from clusters.drive import job_settings
from clusters.profile import Profile, read_profile
from jobs.submission import ALONE, ROOT, Submission, ask_slurm, next_folder, private_folder
from jobs.watch import Job, all_jobs, find_job, follow_logs, list_table, print_logs, print_status
from pirl.config import ConfigError

JOBS = ("jobs/pretrain.py", "tune/sweep.py", ALONE)

CHECK_S = 300
"""How long a job file may take to check its arguments: it looks at the data too."""

USAGE = """python jobs/slurm.py [submit] --cluster FILE [--name N] [--array FILE] [--dry-run] -- JOB_FILE ARGUMENTS
       python jobs/slurm.py status [JOB] | logs JOB [-f] | cancel JOB | list | tunnel JOB"""

EPILOG = """
commands:
  submit   checks the profile and the job's own arguments, asks SLURM, and submits (the default)
  status   state, nodes, reason, times, restarts and the run's last numbers; of the newest job, or of JOB
  logs     what all nodes printed, each line with the node before it; -f goes on until the job ends
  cancel   ends a job, or takes it out of the queue
  list     all jobs in the job folder
  tunnel   the ssh command that brings the job's Ray dashboard to this machine

JOB is an id as SLURM gives it (123, 123_4), or the name of the job's folder. After submit's -- comes a job file:
jobs/pretrain.py, tune/sweep.py or jobs/prepare.py, with its own arguments.

examples:
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --dry-run -- jobs/pretrain.py cifar10 --data.uri /shared/c10
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml -- jobs/pretrain.py cifar10 --data.uri /shared/c10
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --array seeds.txt -- jobs/pretrain.py digits
      with a line of further arguments for each run in seeds.txt: --seed 1 --run digits-1
  python jobs/slurm.py status
  python jobs/slurm.py logs 123 -f
"""


def main() -> int:
    """Runs the command.

    Returns:
        The exit code: 0 done, 1 failed, 2 the request is wrong and nothing was submitted.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return command(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def command(argv: list[str]) -> int:
    """Reads the command line and does what it asks for.

    Raises:
        ConfigError: Something in it is not allowed.
    """
    own, job = argv, list[str]()
    if "--" in argv:
        at = argv.index("--")
        own, job = argv[:at], argv[at + 1 :]
    name = own.pop(0) if own and not own[0].startswith("-") else "submit"
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": lambda known: print_status(asked(known, newest=True)),
        "logs": lambda known: (follow_logs if known.follow else print_logs)(asked(known)),
        "cancel": lambda known: cancel(asked(known)),
        "list": lambda known: list_table(all_jobs(job_folder(known))),
        "tunnel": lambda known: tunnel(asked(known)),
    }
    if name == "submit":
        known = submit_parser().parse_args(own)
        return submit(known, job)
    if name not in commands:
        raise ConfigError(f"unknown command {name!r}: use submit, {', '.join(commands)}")
    if job:
        raise ConfigError(f"{name} takes no job file: write it without --")
    return commands[name](watch_parser(name).parse_args(own))


def submit_parser() -> argparse.ArgumentParser:
    """The options of `submit`."""
    parser = argparse.ArgumentParser(
        prog="python jobs/slurm.py",
        usage=USAGE,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", metavar="FILE", help="the cluster's profile; clusters/*.toml are examples")
    parser.add_argument("--name", help="of the job (default: that of its first run)")
    parser.add_argument("--array", metavar="FILE", help="several runs: further arguments of each on its own line")
    parser.add_argument("--dry-run", action="store_true", help="print the script that would be sent, send nothing")
    return parser


def watch_parser(name: str) -> argparse.ArgumentParser:
    """The options of the other commands."""
    parser = argparse.ArgumentParser(prog=f"python jobs/slurm.py {name}", allow_abbrev=False)
    if name != "list":
        parser.add_argument("job", nargs="?" if name == "status" else None, metavar="JOB", help="its id or folder name")
    if name == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("--cluster", metavar="FILE", help="the profile that names the job folder")
    parser.add_argument("--job-folder", metavar="FOLDER", help="where jobs lie (default: ~/pirl-jobs)")
    return parser


def submit(known: argparse.Namespace, words: list[str]) -> int:
    """Checks everything, then hands the job over, or shows its script; returns the exit code."""
    if not known.cluster:
        examples = ", ".join(f"clusters/{path.name}" for path in sorted((ROOT / "clusters").glob("*.toml")))
        raise ConfigError(f"--cluster FILE is missing: the examples are {examples}")
    profile = read_profile(known.cluster)
    if profile.cluster == "kuberay":
        raise ConfigError(f"{known.cluster} describes a cluster on Kubernetes: use kubectl apply, or ray job submit")
    if not words:
        raise ConfigError("no job file: write it behind --, e.g. -- jobs/pretrain.py digits")
    job, arguments = job_file(words[0]), words[1:]
    lines = array_lines(known.array) if known.array else [[]]
    runs = [[*arguments, *line] for line in lines]
    folders = [check(profile, job, run) for run in runs]
    if twice := {folder for folder in folders if folders.count(folder) > 1 and folder}:
        raise ConfigError(f"two runs of {known.array} have the folder {twice.pop()}: give each a name with --run")

    parent = Path(profile.job_folder).expanduser().resolve()
    name = known.name or (folders[0].rstrip("/").rpartition("/")[2] if folders[0] else Path(job).stem)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits, - and _")
    for other in all_jobs(parent):
        if other.is_active() and (clash := set(folders) & set(other.run_folders)):
            raise ConfigError(
                f"job {other.job_id} is working on {clash.pop()}: wait for it, cancel it, or give the run another name"
            )
    runs_as_tuples = tuple(map(tuple, runs))
    submission = Submission(profile, name, next_folder(parent, name), job, runs_as_tuples, tuple(folders))
    if known.dry_run:
        print(submission.script(), flush=True)
    estimate = ""
    if profile.cluster == "slurm" and shutil.which("sbatch"):
        estimate = ask_slurm(submission.script())
    if known.dry_run:
        print(f"SLURM says: {estimate}" if estimate else "there is no sbatch here to ask", file=sys.stderr)
        return 0
    if profile.cluster == "slurm" and not estimate:
        raise ConfigError("there is no sbatch here: type this on a login node of the cluster, or add --dry-run")
    private_folder(parent)
    job_ids = submission.submit()
    tell(known, submission, job_ids, estimate)
    return 0


def tell(known: argparse.Namespace, submission: Submission, job_ids: list[str], estimate: str) -> None:
    """Prints what was submitted and what to type next."""
    for job_id, folder in zip(job_ids, submission.run_folders, strict=True):
        print(f"job {job_id}   run {folder}" if folder else f"job {job_id}")
    if estimate:
        print(f"SLURM says: {estimate}")
    options = f" --cluster {known.cluster}" if submission.profile.job_folder != "~/pirl-jobs" else ""
    print(f"script, code and logs in {submission.folder}\n")
    for line in (f"status {job_ids[0]}", f"logs {job_ids[0]} -f", f"cancel {job_ids[0]}"):
        print(f"  python jobs/slurm.py {line}{options}")


def job_file(word: str) -> str:
    """The path of a job file in the project; raises ConfigError for anything else."""
    for job in JOBS:
        if (ROOT / job).exists() and word in (job, str(ROOT / job), Path(job).name):
            return job
    known = ", ".join(job for job in JOBS if (ROOT / job).exists())
    raise ConfigError(f"{word!r} is no job file: behind -- comes one of {known}")


def array_lines(path: str) -> list[list[str]]:
    """The arguments of each run, from a file with a line for each; raises ConfigError."""
    try:
        text = Path(path).read_text()
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--array {path}: {error}") from None
    runs = [line for line in lines if line]
    if not runs:
        raise ConfigError(f"--array {path} has no line with arguments")
    return runs


def check(profile: Profile, job: str, arguments: list[str]) -> str:
    """Has the job file check its arguments as it would before it starts; returns the run's folder.

    Raises:
        ConfigError: What the job file says.
    """
    settings = [] if job == ALONE else job_settings(profile, profile.nodes.max)
    command = [sys.executable, str(ROOT / job), *settings, *arguments, "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S)
    if answer.returncode:
        said = answer.stderr.strip() or answer.stdout.strip()
        raise ConfigError(f"{shlex.join([job, *arguments])}:\n{said.removeprefix('error: ')}")
    return (answer.stdout.strip().splitlines() or [""])[-1]


def job_folder(known: argparse.Namespace) -> Path:
    """Where the jobs lie that a command is about."""
    given = known.job_folder or (read_profile(known.cluster).job_folder if known.cluster else "~/pirl-jobs")
    return Path(given).expanduser().resolve()


def asked(known: argparse.Namespace, newest: bool = False) -> Job:
    """The job that a command is about; raises ConfigError if there is none of that id."""
    return find_job(job_folder(known), None if newest and not known.job else known.job)


def cancel(job: Job) -> int:
    """Ends a job; returns the exit code."""
    problem = job.cancel()
    if problem:
        print(f"failed: {problem}", file=sys.stderr)
        return 1
    print(f"job {job.job_id} is being cancelled")
    return 0


def tunnel(job: Job) -> int:
    """Prints how to reach the dashboard, which listens on the head node's loopback only; returns the exit code."""
    head = job.state().get("head")
    if not head or not job.is_active():
        raise ConfigError(f"job {job.job_id} has no Ray cluster now: python jobs/slurm.py status {job.job_id}")
    port = head["dashboard_port"]
    print(f"ssh -N -L 8265:127.0.0.1:{port} {getpass.getuser()}@{head['host']}")
    print(f"then http://localhost:8265, with the token in {job.folder / (job.job_id + '_token')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
