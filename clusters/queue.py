"""What SLURM knows of a job, on clusters with accounting and without.

scontrol has everything in one answer, of ended jobs too for some minutes (MinJobAge); squeue is there for users who
may not ask it, and for lists; sacct has jobs that ended long ago, where there is accounting. Only flags that old
versions know are used, and what a version leaves out is None or "".
"""

import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime

LIMIT_S = 20.0
"""For each command: a controller that is away must not keep `status` for ever."""
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED", "REVOKED"),
}
"""States that a job does not leave by itself. PREEMPTED is not among them: such a job is requeued."""
SQUEUE_FORMAT = "%i|%T|%M|%l|%S|%N|%r|%j"
"""The name comes last: nothing else may hold the separator."""
SACCT_FORMAT = "JobID,State,Elapsed,Timelimit,Start,NodeList,ExitCode,JobName"
NOTHING = {"", "(null)", "None", "N/A", "None assigned", "Unknown"}


@dataclass(frozen=True)
class JobState:
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


def job_state(job_id: str) -> JobState | None:
    """Asks until one knows the job; of an array without a task the first task that has not ended, else the first.

    Returns:
        None where nobody knows it: it never was, it ended long ago and there is no accounting, or nobody answers.
    """
    detailed = parse_scontrol(_ask("scontrol", "-o", "show", "job", job_id))
    known = detailed or parse_squeue(_ask("squeue", "-h", "-t", "all", "-o", SQUEUE_FORMAT, "-j", job_id))
    known = known or parse_sacct(_ask("sacct", "-n", "-P", "-X", "-o", SACCT_FORMAT, "-j", job_id))
    return next((job for job in known if job.id == job_id), None) or min(known, key=lambda job: job.ended, default=None)


def jobs_of_user() -> list[JobState]:
    """This user's jobs that wait, run, or ended some minutes ago, as squeue orders them."""
    user = pwd.getpwuid(os.getuid()).pw_name
    return parse_squeue(_ask("squeue", "-h", "-t", "all", "-o", SQUEUE_FORMAT, "-u", user))


def parse_squeue(text: str) -> list[JobState]:
    """Lines in SQUEUE_FORMAT."""
    return [
        _state(job, state, name, reason=reason, nodes=nodes, used=used, limit=limit, start=start)
        for job, state, used, limit, start, nodes, reason, name in _rows(text, 8)
    ]


def parse_sacct(text: str) -> list[JobState]:
    """Lines in SACCT_FORMAT."""
    return [
        _state(job, state, name, nodes=nodes, used=used, limit=limit, start=start, exit_code=exit_code)
        for job, state, used, limit, start, nodes, exit_code, name in _rows(text, 8)
    ]


def parse_scontrol(text: str) -> list[JobState]:
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
        job = job if array is None else f"{array}_{task if task.isdigit() else f'[{task}]'}"
        jobs.append(
            _state(
                job,
                fields.get("JobState", ""),
                name,
                reason=reason[1] if reason else fields.get("Reason", ""),
                nodes=fields.get("NodeList", ""),
                used=fields.get("RunTime", ""),
                limit=fields.get("TimeLimit", ""),
                start=fields.get("StartTime", ""),
                exit_code=fields.get("ExitCode", ""),
                restarts=fields.get("Restarts", ""),
            )
        )
    return jobs


def seconds(text: str) -> int | None:
    """`1-02:00:00`, `2:00:00`, `5:04` -> seconds; None for UNLIMITED, INVALID, NOT_SET and the like."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, rest = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _state(
    job: str,
    state: str,
    name: str,
    *,
    reason: str = "",
    nodes: str = "",
    used: str = "",
    limit: str = "",
    start: str = "",
    exit_code: str = "",
    restarts: str = "",
) -> JobState:
    """From the words of any of the three commands."""
    state = state.split()[0]  # "CANCELLED by 0" in sacct
    used_s, limit_s = seconds(used), seconds(limit)
    running = state == "RUNNING" and used_s is not None and limit_s is not None
    return JobState(
        id=job,
        state=state,
        name=name,
        reason="" if reason in NOTHING else reason,
        nodes="" if nodes in NOTHING else nodes,
        time_used_s=used_s,
        time_left_s=max(0, limit_s - used_s) if running else None,  # type: ignore[operator]
        time_limit_s=limit_s,
        restarts=int(restarts) if restarts.isdigit() else None,
        exit_code=_exit_code(exit_code) if state in ENDED else None,
        expected_start=_time(start) if state == "PENDING" else None,
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


def _rows(text: str, columns: int) -> list[list[str]]:
    rows = (line.split("|", columns - 1) for line in text.splitlines())
    return [[field.strip() for field in row] for row in rows if len(row) == columns and row[1].strip()]


def _ask(*command: str) -> str:
    """What it prints; "" where it is not there, fails or takes too long."""
    # A user's own filters and formats (SQUEUE_PARTITION, SLURM_TIME_FORMAT) would change the answer.
    own = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    try:
        answer = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
