"""Run a job of this project on SLURM: bring a Ray cluster up on an allocation, and tell what goes on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable

from clusters.profile import Profile, job_settings, read_profile
from jobs.batch.job import Job, all_jobs, cancel_array, find_jobs, statuses
from jobs.batch.logs import follow_logs, print_logs
from jobs.batch.options import refuse_words, submit_parser, watch_parser
from jobs.batch.status import list_table, print_status
from jobs.batch.submission import ALONE, ROOT, Submission, ask_slurm, next_folder, private_folder
from jobs.live_line import LiveLine
from jobs.settings import SUBMIT
from pirl.errors import ConfigError, SlurmSilent

JOBS = ("jobs/pretrain.py", "jobs/clusterfit.py", "tune/sweep.py", "jobs/evaluate.py", "jobs/embed.py", ALONE)

CHECK_S = 300
"""How long a job file may take to check its arguments: it looks at the data too."""


def main() -> int:
    """Returns 0 if done, 1 if it failed, 2 if the request is wrong and nothing was submitted, 130 if interrupted."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return command(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SlurmSilent as silence:
        print(f"failed: SLURM did not answer: {silence}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def command(argv: list[str]) -> int:
    """Reads the command line and does what it asks for; raises ConfigError if it asks for what is not allowed."""
    own, job = argv, list[str]()
    if "--" in argv:
        at = argv.index("--")
        own, job = argv[:at], argv[at + 1 :]
    name = own.pop(0) if own and not own[0].startswith("-") else "submit"
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": lambda known: print_status(asked(known)),
        "logs": lambda known: (follow_logs if known.follow else print_logs)(one_of(asked(known), "logs")),
        "cancel": lambda known: cancel(asked(known)),
        "list": lambda known: list_table(all_jobs(job_folder(known))),
        "tunnel": lambda known: tunnel(one_of(asked(known), "tunnel")),
    }
    if name == "submit":
        known = submit_parser(__doc__).parse_args(own)
        return submit(known, job)
    if name.endswith(".py"):
        raise ConfigError(f"write the job file behind --: {SUBMIT} --cluster FILE -- {shlex.join([name, *own, *job])}")
    if name not in commands:
        raise ConfigError(f"unknown command {name!r}: use submit, {', '.join(commands)}")
    if job:
        raise ConfigError(f"{name} takes no job file: write it without --")
    return commands[name](watch_parser(name).parse_args(own))


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
    for run in runs:
        refuse_words(profile, job, run)
    folders = check_all(profile, job, runs)
    if twice := {folder for folder in folders if folders.count(folder) > 1 and folder}:
        raise ConfigError(f"two runs of {known.array} have the folder {twice.pop()}: give each a name with --run")

    parent = absolute(profile.job_folder)
    name = known.name or (folders[0].rstrip("/").rpartition("/")[2] if folders[0] else Path(job).stem)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits, - and _")
    refuse_clashes(parent, folders)
    runs_as_tuples = tuple(map(tuple, runs))
    submission = Submission(profile, name, next_folder(parent, name), job, runs_as_tuples, tuple(folders))
    if known.dry_run and profile.cluster != "slurm":
        print("\n".join(shlex.join(["python", job, *job_settings(profile, 1), *run]) for run in runs), flush=True)
        print(f'no script is sent: cluster = "{profile.cluster}" runs this on Ray on this machine', file=sys.stderr)
        return 0
    if known.dry_run:
        print(submission.script(), flush=True)
    estimate = ""
    if profile.cluster == "slurm" and shutil.which("sbatch"):
        try:
            with LiveLine(sys.stderr).passing("asking SLURM when it can begin"):
                estimate = ask_slurm(submission.script())
        except SlurmSilent as silence:
            if not known.dry_run:
                raise
            print(f"SLURM did not answer: {silence}", file=sys.stderr)
            return 0
    if known.dry_run:
        print(f"SLURM says: {estimate}" if estimate else "there is no sbatch here to ask", file=sys.stderr)
        return 0
    if profile.cluster == "slurm" and not estimate:
        raise ConfigError("there is no sbatch here: type this on a login node of the cluster, or add --dry-run")
    if profile.cluster != "slurm" and not os.access(profile.temp_dir, os.W_OK | os.X_OK):
        raise ConfigError(f"temp_dir {profile.temp_dir}: there is no such folder, or you may not write in it")
    try:
        private_folder(parent)
    except OSError as error:
        raise ConfigError(f"job_folder {parent}: {error.strerror}") from None
    with LiveLine(sys.stderr).passing("handing the job over"):
        job_ids = submission.submit()
    tell(known, submission, job_ids, estimate)
    return 0


def refuse_clashes(parent: Path, folders: list[str]) -> None:
    """Raises ConfigError if a job works on one of these run folders, or nobody can say that it does not."""
    others = [job for job in all_jobs(parent) if set(folders) & set(job.run_folders) - {""}]
    for other, status in zip(others, statuses(others), strict=True):
        if status.active:
            doubt = f"{status.reason}, and may be: " if status.word == "NO ANSWER" else ""
            raise ConfigError(
                f"{doubt}job {other.job_id} is working on {other.run_folders[0]}: "
                "wait for it, cancel it, or give the run another name"
            )


def tell(known: argparse.Namespace, submission: Submission, job_ids: list[str], estimate: str) -> None:
    """Prints what was submitted and what to type next."""
    for job_id, folder in zip(job_ids, submission.run_folders, strict=True):
        print(f"job {job_id}   run {folder}" if folder else f"job {job_id}")
    if estimate:
        print(f"SLURM says: {estimate}")
    options = f" --cluster {known.cluster}" if submission.profile.job_folder != "~/pirl-jobs" else ""
    print(f"script, code and logs in {submission.folder}\n")
    for line in (f"status {job_ids[0]}", f"logs {job_ids[0]} -f", f"cancel {job_ids[0]}"):
        print(f"  {SUBMIT} {line}{options}")


def job_file(word: str) -> str:
    """The path of a job file in the project; raises ConfigError for anything else."""
    for job in JOBS:
        if word in (job, str(ROOT / job), Path(job).name):
            return job
    raise ConfigError(f"{word!r} is no job file: behind -- comes one of {', '.join(JOBS)}")


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


def check_all(profile: Profile, job: str, runs: list[list[str]]) -> list[str]:
    """Checks each run, as `check` does, and shows in a terminal which is being checked; returns their folders."""
    live, folders = LiveLine(sys.stderr), list[str]()
    with live.passing("checking the arguments"):
        for number, run in enumerate(runs, 1):
            live.now(f"checking run {number:,} of {len(runs):,}")
            folders.append(check(profile, job, run))
    return folders


def check(profile: Profile, job: str, arguments: list[str]) -> str:
    """Has the job file check its arguments, and raises ConfigError with what it says; returns the run's folder."""
    settings = [] if job == ALONE else job_settings(profile, profile.nodes.max)
    command = [sys.executable, str(ROOT / job), *settings, *arguments, "--check"]
    env = {**os.environ, **profile.environment}
    try:
        answer = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=CHECK_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{shlex.join([job, *arguments])} --check takes longer than {CHECK_S} s") from None
    if answer.returncode:
        said = answer.stderr.strip() or answer.stdout.strip()
        raise ConfigError(f"{shlex.join([job, *arguments])}:\n{said.removeprefix('error: ')}")
    return (answer.stdout.strip().splitlines() or [""])[-1]


def absolute(folder: str) -> Path:
    """The path of a folder that a user named; raises ConfigError if it cannot be one."""
    try:
        return Path(folder).expanduser().resolve()
    except (RuntimeError, OSError) as error:  # no such user, a link to itself
        raise ConfigError(f"{folder}: {error}") from None


def job_folder(known: argparse.Namespace) -> Path:
    """Where the jobs lie that a command is about."""
    if known.job_folder or known.cluster is None:
        return absolute(known.job_folder or "~/pirl-jobs")
    return absolute(read_profile(known.cluster).job_folder)


def asked(known: argparse.Namespace) -> list[Job]:
    """The job that a command is about, or the tasks of an array; raises ConfigError if there is none of that id."""
    return find_jobs(job_folder(known), known.job)


def one_of(jobs: list[Job], command: str) -> Job:
    """The only one; raises ConfigError for an array."""
    if len(jobs) > 1:
        tasks = ", ".join(job.job_id for job in jobs)
        raise ConfigError(f"this job has several tasks: {command} needs one of {tasks}")
    return jobs[0]


def cancel(jobs: list[Job]) -> int:
    """Ends a job, or all tasks of an array; returns the exit code."""
    first = jobs[0]
    as_a_whole = len(jobs) > 1 and first.cluster == "slurm"
    problems = [cancel_array(jobs)] if as_a_whole else [job.cancel() for job in jobs]
    for problem in filter(None, problems):
        print(f"failed: {problem}", file=sys.stderr)
    if any(problems):
        return 1
    tasks = f"all {len(jobs)} tasks of job {first.array} are" if len(jobs) > 1 else f"job {first.job_id} is"
    print(f"{tasks} being cancelled")
    return 0


def tunnel(job: Job) -> int:
    """Prints how to reach the dashboard, which listens on the head node's loopback only; returns the exit code."""
    head = job.report().get("head")
    if not head or not job.status().active:
        raise ConfigError(f"job {job.job_id} has no Ray cluster now: {SUBMIT} status {job.job_id}")
    port = head["dashboard_port"]
    print(f"ssh -N -L 8265:127.0.0.1:{port} {getpass.getuser()}@{head['host']}")
    print(f"then http://localhost:8265, with the token in {job.folder.token}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
