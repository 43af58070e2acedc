"""Run a job of this project on SLURM: bring a Ray cluster up on an allocation, and tell what goes on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence

from clusters.profile import Profile, job_settings, read_profile
from clusters.slurm import bad_nodes
from clusters.slurm.users_variables import notes
from jobs.batch.doctor import doctor
from jobs.batch.job import Job, all_jobs, cancel_array, statuses, tasks_in
from jobs.batch.logs import follow_logs, print_logs, wait_for_end
from jobs.batch.options import doctor_parser, refuse_words, retry_parser, submit_parser, watch_parser
from jobs.batch.places import DEFAULT, absolute, asked, job_folders, one_of, other_folders, remember
from jobs.batch.script import ROOT, next_folder, private_folder
from jobs.batch.several import after, array_lines, to_retry, waits_for
from jobs.batch.status import list_table, print_status, tunnel
from jobs.batch.submission import ALONE, Submission, ask_slurm, without_bad_nodes
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
        "list": lambda known: list_table(all_jobs(*job_folders(known))),
        "tunnel": lambda known: tunnel(one_of(asked(known), "tunnel")),
        "doctor": doctor,
    }
    if name == "submit":
        return submit(submit_parser(__doc__).parse_args(own), job)
    if name == "retry":
        return retry(retry_parser().parse_args(own), job)
    if name.endswith(".py"):
        raise ConfigError(f"write the job file behind --: {SUBMIT} --cluster FILE -- {shlex.join([name, *own, *job])}")
    if name not in commands:
        raise ConfigError(f"unknown command {name!r}: use submit, {', '.join([*commands, 'retry'])}")
    if job:
        raise ConfigError(f"{name} takes no job file: write it without --")
    parser = doctor_parser() if name == "doctor" else watch_parser(name)
    return commands[name](parser.parse_args(own))


def submit(known: argparse.Namespace, words: list[str]) -> int:
    """Checks everything, then hands the job over, or shows its script; returns the exit code."""
    if not known.cluster:
        examples = ", ".join(f"clusters/{path.name}" for path in sorted((ROOT / "clusters").glob("*.toml")))
        raise ConfigError(f"--cluster FILE is missing: the examples are {examples}")
    profile = usable_profile(known.cluster)
    if known.forget_nodes and not words:
        return forget_nodes(absolute(profile.job_folder))
    if not words:
        raise ConfigError("no job file: write it behind --, e.g. -- jobs/pretrain.py digits")
    job, arguments = job_file(words[0]), words[1:]
    lines, at_once = array_lines(known.array) if known.array else ([[]], None)
    if at_once and profile.cluster != "slurm":
        raise ConfigError(f'--array %{at_once}: cluster = "{profile.cluster}" begins all runs at once: leave it out')
    return send(known, profile, job, [[*arguments, *line] for line in lines], at_once)


def retry(known: argparse.Namespace, words: list[str]) -> int:
    """Submits what has failed of a job once more, with the profile as it is now; returns the exit code."""
    tasks = to_retry(asked(known))
    known.cluster = known.cluster or tasks[0].profile_file
    if not known.cluster:
        raise ConfigError(f"job {tasks[0].job_id} does not tell its profile: add --cluster FILE")
    if words and not words[0].startswith("--"):
        raise ConfigError(f"{words[0]!r}: behind -- come further arguments for {tasks[0].file}, as --optim.lr 0.01")
    known.name = known.name or tasks[0].name
    return send(known, usable_profile(known.cluster), tasks[0].file, [[*task.arguments, *words] for task in tasks])


def usable_profile(path: str) -> Profile:
    """Reads a profile; raises ConfigError for one that jobs are not handed to from here."""
    profile = read_profile(path)
    if profile.cluster == "kuberay":
        raise ConfigError(f"{path} describes a cluster on Kubernetes: use kubectl apply, or ray job submit")
    return profile


def send(
    known: argparse.Namespace, profile: Profile, job: str, runs: list[list[str]], at_once: int | None = None
) -> int:
    """Checks runs of a job file, then hands them over, or shows the script; returns the exit code."""
    for run in runs:
        refuse_words(profile, job, run)
    parent = absolute(profile.job_folder)
    if known.after and profile.cluster != "slurm":
        raise ConfigError(f'--after: cluster = "{profile.cluster}" has no queue that jobs could wait in: leave it out')
    dependency, before = after(known.after, [parent, *other_folders(parent)]) if known.after else ("", [])
    folders = check_all(profile, job, runs, before)
    if twice := {folder for folder in folders if folders.count(folder) > 1 and folder}:
        file = known.array or "the job"
        raise ConfigError(f"two runs of {file} have the folder {twice.pop()}: give each a name with --run")
    name = known.name or (folders[0].rstrip("/").rpartition("/")[2] if folders[0] else Path(job).stem)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits, - and _")
    refuse_clashes(parent, folders, before)
    submission = Submission(
        profile,
        name,
        next_folder(parent, name),
        job,
        tuple(map(tuple, runs)),
        tuple(folders),
        profile_file=str(absolute(known.cluster)),
        after=dependency,
        at_once=at_once,
    )
    return hand_over(known, submission)


def hand_over(known: argparse.Namespace, submission: Submission) -> int:
    """Asks SLURM and hands a job over that was checked, or shows its script; returns the exit code."""
    profile, parent = submission.profile, submission.folder.parent
    on_slurm = profile.cluster == "slurm"
    if known.forget_nodes:
        forget_nodes(parent)
    submission, told = without_bad_nodes(submission)
    if known.dry_run and not on_slurm:
        words = (["python", submission.job, *job_settings(profile, 1), *run] for run in submission.arguments)
        print("\n".join(map(shlex.join, words)), flush=True)
        print(f'no script is sent: cluster = "{profile.cluster}" runs this on Ray on this machine', file=sys.stderr)
        return 0
    if known.dry_run:
        print(submission.script(), flush=True)
    for note in [*notes(os.environ, submission.script()), *told] if on_slurm else ():
        print(note, file=sys.stderr)
    estimate = ""
    if on_slurm and shutil.which("sbatch"):
        try:
            with LiveLine(sys.stderr).passing("asking SLURM when it can begin"):
                estimate = ask_slurm(submission)
        except SlurmSilent as silence:
            if not known.dry_run:
                raise
            print(f"SLURM did not answer: {silence}", file=sys.stderr)
            return 0
    if known.dry_run:
        print(f"SLURM says: {estimate}" if estimate else "there is no sbatch here to ask", file=sys.stderr)
        return 0
    if on_slurm and not estimate:
        raise ConfigError("there is no sbatch here: type this on a login node of the cluster, or add --dry-run")
    if not on_slurm and not os.access(profile.temp_dir, os.W_OK | os.X_OK):
        raise ConfigError(f"temp_dir {profile.temp_dir}: there is no such folder, or you may not write in it")
    try:
        private_folder(parent)
    except OSError as error:
        raise ConfigError(f"job_folder {parent}: {error.strerror}") from None
    with LiveLine(sys.stderr).passing("handing the job over"):
        job_ids = submission.submit()
    remember(parent)
    tell(known, submission, job_ids, estimate)
    return wait_for_end(tasks_in(submission.folder)) if known.wait else 0


def forget_nodes(parent: Path) -> int:
    """Has nodes be used again that were left out; says which, and returns the exit code."""
    known = bad_nodes.forget(parent)
    for node in known:
        print(f"forgotten: {node}", file=sys.stderr)
    if not known:
        print("there is no node to forget", file=sys.stderr)
    return 0


def refuse_clashes(parent: Path, folders: list[str], before: Sequence[Job] = ()) -> None:
    """Raises ConfigError if a job works on one of these run folders, or nobody can say that it does not.

    Those that are waited for have ended by then.
    """
    others = [job for job in all_jobs(parent) if set(folders) & set(job.run_folders) - {""} and job not in before]
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
    options = f" --cluster {shlex.quote(known.cluster)}" if submission.profile.job_folder != DEFAULT else ""
    print(f"script, code and logs in {submission.folder}\n")
    for line in (f"status {job_ids[0]}", f"logs {job_ids[0]} -f", f"cancel {job_ids[0]}"):
        print(f"  {SUBMIT} {line}{options}")


def job_file(word: str) -> str:
    """The path of a job file in the project; raises ConfigError for anything else."""
    for job in JOBS:
        if word in (job, str(ROOT / job), Path(job).name):
            return job
    raise ConfigError(f"{word!r} is no job file: behind -- comes one of {', '.join(JOBS)}")


def check_all(profile: Profile, job: str, runs: list[list[str]], before: Sequence[Job] = ()) -> list[str]:
    """Checks each run, as `check` does, and shows in a terminal which is being checked; returns their folders.

    Where a run lacks nothing but what a job before it is to write, that is said, and its folder is not known.
    """
    live, folders = LiveLine(sys.stderr), list[str]()
    with live.passing("checking the arguments"):
        for number, run in enumerate(runs, 1):
            live.now(f"checking run {number:,} of {len(runs):,}")
            try:
                folders.append(check(profile, job, run))
            except ConfigError as error:
                if not (place := waits_for(before, run, str(error))):
                    raise
                live.log(f"{place} is yet to be written: the job checks its arguments when it begins")
                folders.append("")
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


if __name__ == "__main__":
    sys.exit(main())
