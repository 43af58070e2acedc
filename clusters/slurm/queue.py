"""What SLURM knows of a job, on clusters with accounting and without.

scontrol has everything in one answer, of ended jobs too for some minutes (MinJobAge); squeue is there for users who
may not ask it, and for lists; sacct has jobs that ended long ago, where there is accounting. Only flags that old
versions know are used, and what a version leaves out is None or "".
"""

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from pirl.errors import SlurmSilent

LIMIT_S = 20.0
"""For each command: a controller that is away must not keep `status` for ever."""
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
    *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED", "REVOKED"),
}
"""States that a job does not leave by itself. PREEMPTED is among them: one that is requeued is PENDING."""
SQUEUE_FORMAT = "%i|%T|%M|%l|%S|%N|%r|%j"
"""The name comes last: nothing else may hold the separator."""
SACCT_FORMAT = "JobID,State,Elapsed,Timelimit,Start,NodeList,ExitCode,JobName"
NOTHING = {"", "(null)", "None", "N/A", "None assigned", "Unknown"}
USERS_OWN = (
    *("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_"),
    *("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS"),
)
"""Variables with a user's own filters and formats, and other clusters: they would change what is asked and answered."""
NO_JOB = ("invalid job id", "invalid job array id", "accounting storage is disabled")
"""What a command says that fails because it knows of no such job; any other failure is no answer."""


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one task of an array, as SLURM sees it.

    Attributes:
        id: As a user types it: `12`, `12_3`, or `12_[4-7]` for the tasks of an array that still wait.
        state: One word, as SLURM has it: PENDING, RUNNING, COMPLETED, ...
        name: That it was submitted with.
        reason: Why it waits or has ended, in SLURM's words; "" where there is none.
        nodes: Its nodes in SLURM's short form, `n[1-2]`; "" where it has none.
        time_used_s: Since its latest start.
        time_left_s: Until its time limit, while it runs and has one.
        time_limit_s: None where it is unlimited or not known.
        restarts: How often it was requeued, where the answer tells.
        exit_code: Once it has ended; 128 + the signal that ended it, as shells have it.
        expected_start: While it waits, if SLURM has an estimate; in the time of the cluster.
    """

    id: str
    state: str
    name: str = ""
    reason: str = ""
    nodes: str = ""
    time_used_s: int | None = None
    time_left_s: int | None = None
    time_limit_s: int | None = None
    restarts: int | None = None
    exit_code: int | None = None
    expected_start: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it neither waits nor runs."""
        return self.state in ENDED


def slurm_job(job_id: str) -> SlurmJob | None:
    """Asks until one knows the job; of an array without a task the first task that has not ended, else the first.

    Returns:
        None where nobody knows it: it never was, it ended long ago and there is no accounting, or there is no SLURM.

    Raises:
        SlurmSilent: Who could know it does not answer.
    """
    heard, silence = False, None
    for parse, command in (
        (parse_scontrol, ("scontrol", "-o", "show", "job", job_id)),
        (parse_squeue, ("squeue", "-h", "-t", "all", "-o", SQUEUE_FORMAT, "-j", job_id)),
        (parse_sacct, ("sacct", "-n", "-P", "-X", "-o", SACCT_FORMAT, "-j", job_id)),
    ):
        try:
            text = _ask(*command)
        except SlurmSilent as error:
            silence = silence or error
            continue
        if text is None:
            continue
        known = parse(text)
        if heard and parse is parse_sacct:  # what the controller does not know has ended, even if sacct missed that
            known = [job for job in known if job.ended]
        if known:
            same = next((job for job in known if covers(job.id, job_id)), None)
            return same or min(known, key=lambda job: job.ended)
        # Only the controller knows that a job does not wait or run; accounting may be late.
        heard = heard or parse is not parse_sacct
    if silence and not heard:
        raise silence
    return None


def jobs_of_user() -> list[SlurmJob]:
    """This user's jobs that wait, run, or ended some minutes ago, as squeue orders them; raises SlurmSilent."""
    return parse_squeue(_ask("squeue", "-h", "-t", "all", "-o", SQUEUE_FORMAT, "-u", str(os.getuid())) or "")


def covers(listed: str, job_id: str) -> bool:
    """Whether an id as SLURM lists it means a job: `12_3` is `12_3`, and one of `12_[1,3-7%2]`."""
    if listed == job_id:
        return True
    array, bracket, tasks = listed.partition("_[")
    of, _, task = job_id.partition("_")
    if not bracket or of != array or not task.isdigit():
        return False
    spans = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.rstrip("]").partition("%")[0])
    return any(int(task) in range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in spans)


def parse_squeue(text: str) -> list[SlurmJob]:
    """Lines in SQUEUE_FORMAT."""
    return _parse_rows(text, "JobId JobState RunTime TimeLimit StartTime NodeList Reason JobName")


def parse_sacct(text: str) -> list[SlurmJob]:
    """Lines in SACCT_FORMAT."""
    return _parse_rows(text, "JobId JobState RunTime TimeLimit StartTime NodeList ExitCode JobName")


def parse_scontrol(text: str) -> list[SlurmJob]:
    """Lines of `scontrol -o show job`."""
    jobs = []
    for line in text.splitlines():
        # Names and reasons may hold spaces: they end where the next field begins.
        head = re.match(r"JobId=(\d+) (?:ArrayJobId=(\d+) ArrayTaskId=(\S+) .*?)?JobName=(.*?) UserId=", line)
        if not head:  # "No jobs in the system", or a part of a heterogeneous job
            continue
        rest = line[head.end() :]
        fields = dict(re.findall(r" (\w+)=(\S*)", rest.partition(" Command=")[0]))
        reason = re.search(r" Reason=(.*?)(?: FailedNode=\S*)? Dependency=", rest)
        job, array, task, name = head.groups()
        fields["JobId"] = job if array is None else f"{array}_{task if task.isdigit() else f'[{task}]'}"
        fields["JobName"] = name
        fields["Reason"] = reason[1] if reason else fields.get("Reason", "")
        jobs.append(_job(fields))
    return jobs


def seconds(text: str) -> int | None:
    """`1-02:00:00`, `2:00:00`, `5:04` -> seconds; None for UNLIMITED, INVALID, NOT_SET and the like."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, rest = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _job(fields: Mapping[str, str]) -> SlurmJob:
    """From the words of any of the three commands, by scontrol's names; each leaves some out."""
    told = defaultdict(str, {name: "" if text in NOTHING else text for name, text in fields.items()})
    state = told["JobState"].split()[0]  # "CANCELLED by 0" in sacct
    used_s, limit_s = seconds(told["RunTime"]), seconds(told["TimeLimit"])
    running = state == "RUNNING" and used_s is not None and limit_s is not None
    return SlurmJob(
        id=told["JobId"],
        state=state,
        name=fields["JobName"],
        reason=told["Reason"],
        nodes=told["NodeList"],
        time_used_s=used_s,
        time_left_s=max(0, limit_s - used_s) if running else None,  # type: ignore[operator]
        time_limit_s=limit_s,
        restarts=int(told["Restarts"]) if told["Restarts"].isdigit() else None,
        exit_code=_exit_code(told["ExitCode"]) if state in ENDED else None,
        expected_start=_time(told["StartTime"]) if state == "PENDING" else None,
    )


def _exit_code(text: str) -> int | None:
    """`3:0` -> 3, `0:9` -> 137."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        return None
    code, signal = map(int, match.groups())
    return 128 + signal if signal else code


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # N/A, Unknown
        return None


def _parse_rows(text: str, names: str) -> list[SlurmJob]:
    """From lines whose fields have these names in scontrol."""
    columns = names.split()
    rows = ([field.strip() for field in line.split("|", len(columns) - 1)] for line in text.splitlines())
    return [_job(dict(zip(columns, row, strict=True))) for row in rows if len(row) == len(columns) and row[1]]


def run_command(*command: str, limit_s: float, stdin: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM, without a user's own filters.

    Raises SlurmSilent where it takes too long, and OSError where it cannot be run.
    """
    given = subprocess.DEVNULL if stdin is None else stdin
    plain = {name: value for name, value in os.environ.items() if not name.startswith(USERS_OWN)}
    try:
        return subprocess.run(
            command, env=plain, stdin=given, capture_output=True, text=True, errors="replace", timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise SlurmSilent(f"{command[0]} has said nothing for {limit_s:g} s") from None


def _ask(*command: str) -> str | None:
    """What a command prints, "" where it knows of no such job; None where it is not there. Raises SlurmSilent."""
    try:
        answer = run_command(*command, limit_s=LIMIT_S)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SlurmSilent(f"{command[0]}: {error.strerror}") from None
    if answer.returncode == 0:
        return answer.stdout
    if any(words in answer.stderr.lower() for words in NO_JOB):
        return ""
    said = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    raise SlurmSilent(f"{command[0]}: {said[-1].removeprefix(f'{command[0]}: ').removeprefix('error: ')}")
