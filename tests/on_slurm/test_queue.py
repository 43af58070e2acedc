"""Texts are as SLURM 22.05.8 printed them on the dev cluster where nothing else is said, shortened at the end."""

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from clusters.slurm import queue
from clusters.slurm.queue import (
    SlurmJob,
    covers,
    jobs_of_user,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    seconds,
    slurm_job,
)
from pirl.errors import SlurmSilent
from tests.slurm_cluster import Slurm
from tests.slurm_words import DOWN, UNKNOWN_JOB, words_of

SQUEUE = """\
24|CANCELLED|0:00|10:00|2026-11-21T15:13:37||Priority|killed
15|FAILED|0:00|10:00|2026-11-21T15:13:36|n1|NonZeroExitCode|fails|or not
16|PENDING|0:00|1-02:00:00|N/A||PartitionTimeLimit|toolong
18_[1-3%1]|PENDING|0:00|10:00|N/A||JobArrayTaskLimit|arr
23|PENDING|0:00|10:00|2026-11-21T15:23:36||Resources|big
17|RUNNING|0:06|5:00|2026-11-21T15:13:36|n[1-2]|None|two
18_0|RUNNING|0:06|10:00|2026-11-21T15:13:36|n1|None|arr
"""
WAITS = {"time_used_s": 0, "time_limit_s": 600}

REQUEUED = (
    "JobId=29 JobName=a name with spaces UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901735 Nice=0 "
    "Account=(null) QOS=(null) JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 Restarts=1 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:10:00 TimeMin=N/A SubmitTime=2026-11-21T15:16:30 "
    "EligibleTime=2026-11-21T15:16:41 AccrueTime=2026-11-21T15:16:41 StartTime=2026-11-21T15:16:41 "
    "EndTime=2026-11-21T15:26:41 Deadline=N/A SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-21T15:16:28 "
    "Scheduler=Main Partition=low AllocNode:Sid=localhost:3885 ReqNodeList=(null) ExcNodeList=(null) NodeList= "
    "NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,mem=1000M,node=1,billing=1 "
    "Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* MinCPUsNode=1 MinMemoryCPU=1000M MinTmpDiskNode=0 "
    "Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) "
    "Command=(null) WorkDir=/w StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power= \n"
)
ARRAY = (
    "JobId=26 ArrayJobId=18 ArrayTaskId=0 ArrayTaskThrottle=1 JobName=arr UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901742 Nice=0 Account=(null) QOS=(null) JobState=RUNNING Reason=None "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:06 TimeLimit=00:10:00 "
    "TimeMin=N/A SubmitTime=2026-11-21T15:13:35 StartTime=2026-11-21T15:13:36 EndTime=2026-11-21T15:23:36 "
    "Partition=low ReqNodeList=(null) ExcNodeList=(null) NodeList=n1 BatchHost=n1 NumNodes=1\n"
    "JobId=18 ArrayJobId=18 ArrayTaskId=1-3%1 ArrayTaskThrottle=1 JobName=arr UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901742 Nice=0 Account=(null) QOS=(null) JobState=PENDING Reason=JobArrayTaskLimit "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:10:00 "
    "TimeMin=N/A SubmitTime=2026-11-21T15:13:35 StartTime=Unknown EndTime=Unknown "
    "Partition=low ReqNodeList=(null) ExcNodeList=(null) NodeList= NumNodes=1\n"
)
KILLED = (
    "JobId=30 JobName=killed UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901734 Nice=0 Account=(null) "
    "QOS=(null) JobState=FAILED Reason=JobLaunchFailure Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 "
    "ExitCode=0:9 RunTime=00:00:01 TimeLimit=00:10:00 TimeMin=N/A StartTime=2026-11-21T15:16:28 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n1 BatchHost=n1\n"
)
# Not recorded: written after the man pages and release notes of these versions. 24.05 has the resources twice and new
# fields, and a node that failed stands between reason and dependency; 17.11 says (null) where there are no nodes.
OF_24_05 = (
    "JobId=7 JobName=pirl UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=1 Nice=0 Account=vision "
    "QOS=normal JobState=RUNNING Reason=launch failed requeued held FailedNode=gpu7 Dependency=(null) Requeue=1 "
    "Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=1-00:00:10 TimeLimit=2-00:00:00 TimeMin=N/A "
    "StartTime=2026-11-20T15:00:00 ReqNodeList=(null) ExcNodeList=(null) NodeList=gpu[01-04,07] BatchHost=gpu01 "
    "NumNodes=5 ReqTRES=cpu=5,mem=5G,node=5,billing=5 AllocTRES=cpu=5,mem=5G,node=5,billing=5 "
    "OOMKillStep=0 Command=/w/JobState=FAILED ExitCode=9:0 WorkDir=/w TresPerNode=gres/gpu:8\n"
)
OF_17_11 = (
    "JobId=7 JobName=pirl UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=1 Nice=0 Account=vision "
    "QOS=normal JobState=PENDING Reason=Resources Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 RunTime=00:00:00 TimeLimit=UNLIMITED TimeMin=N/A StartTime=Unknown "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=(null) NumNodes=2-2\n"
)
# Not recorded either: the dev cluster has no accounting.
SACCT = """\
7|CANCELLED by 1000|1-00:00:10|2-00:00:00|2026-11-20T15:00:00|gpu[01-04]|0:15|a|name
8|PENDING|00:00:00|UNLIMITED|Unknown|None assigned|0:0|waits
9_3|TIMEOUT|00:10:21|00:10:00|2026-11-20T15:00:00|gpu01|0:0|late
10|OUT_OF_MEMORY|00:01:00|Partition_Limit|2026-11-20T15:00:00|gpu01|0:125|big
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("0:00", 0),
            ("5:04", 304),
            ("00:00:06", 6),
            ("2:00:00", 7200),
            ("1-02:00:00", 93600),
            ("30-00:00:01", 2592001),
        ),
        *((word, None) for word in ("", "UNLIMITED", "INVALID", "NOT_SET", "N/A", "Partition_Limit", "(null)")),
    ],
)
def test_times_are_seconds(text: str, expected: int | None):
    assert seconds(text) == expected


def test_squeue_tells_of_waiting_running_and_ended_jobs():
    assert parse_squeue(SQUEUE) == [
        SlurmJob("24", "CANCELLED", "killed", "Priority", **WAITS),
        SlurmJob("15", "FAILED", "fails|or not", "NonZeroExitCode", "n1", **WAITS),
        SlurmJob("16", "PENDING", "toolong", "PartitionTimeLimit", time_used_s=0, time_limit_s=93600),
        SlurmJob("18_[1-3%1]", "PENDING", "arr", "JobArrayTaskLimit", **WAITS),
        SlurmJob("23", "PENDING", "big", "Resources", **WAITS, expected_start=datetime(2026, 11, 21, 15, 23, 36)),
        SlurmJob("17", "RUNNING", "two", "", "n[1-2]", time_used_s=6, time_left_s=294, time_limit_s=300),
        SlurmJob("18_0", "RUNNING", "arr", "", "n1", time_used_s=6, time_left_s=594, time_limit_s=600),
    ]


def test_scontrol_tells_of_restarts_and_exit_codes_too():
    start = datetime(2026, 11, 21, 15, 16, 41)
    waits = SlurmJob("29", "PENDING", "a name with spaces", "BeginTime", **WAITS, restarts=1, expected_start=start)
    killed = SlurmJob("30", "FAILED", "killed", "JobLaunchFailure", "n1", 1, None, 600, 0, exit_code=128 + 9)
    assert parse_scontrol(REQUEUED + KILLED) == [waits, killed]
    assert [job.ended for job in (waits, killed)] == [False, True]
    first = SlurmJob("18_0", "RUNNING", "arr", "", "n1", 6, 594, 600, 0)
    assert parse_scontrol(ARRAY) == [
        first,
        SlurmJob("18_[1-3%1]", "PENDING", "arr", "JobArrayTaskLimit", **WAITS, restarts=0),
    ]


def test_a_job_that_slurm_has_preempted_for_good_has_ended():
    """With PreemptMode=CANCEL; one that is requeued is PENDING."""
    (job,) = parse_scontrol(KILLED.replace("JobState=FAILED Reason=JobLaunchFailure", "JobState=PREEMPTED Reason=None"))
    assert (job.state, job.ended, job.exit_code) == ("PREEMPTED", True, 137)


def test_scontrol_of_other_versions_is_read_too():
    day = 24 * 3600
    reason = "launch failed requeued held"
    new = SlurmJob("7", "RUNNING", "pirl", reason, "gpu[01-04,07]", day + 10, day - 10, 2 * day, 2)
    assert parse_scontrol(OF_24_05) == [new]
    assert parse_scontrol(OF_17_11) == [SlurmJob("7", "PENDING", "pirl", "Resources", time_used_s=0, restarts=0)]


def test_sacct_tells_of_jobs_that_ended_long_ago():
    day = 24 * 3600
    cancelled, waits, late, big = parse_sacct(SACCT)
    assert cancelled == SlurmJob("7", "CANCELLED", "a|name", "", "gpu[01-04]", day + 10, None, 2 * day, exit_code=143)
    assert waits == SlurmJob("8", "PENDING", "waits", time_used_s=0)
    assert late == SlurmJob("9_3", "TIMEOUT", "late", "", "gpu01", 621, None, 600, exit_code=0)
    assert (big.id, big.time_limit_s, big.exit_code) == ("10", None, 128 + 125)


@pytest.mark.parametrize("parse", [parse_squeue, parse_scontrol, parse_sacct])
@pytest.mark.parametrize(
    "text", ["", "\n", "No jobs in the system\n", "slurm_load_jobs error: Invalid job id specified\n"]
)
def test_what_is_no_job_is_left_out(parse, text):
    assert parse(text) == []


def test_nobody_knows_a_job_where_there_is_no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm_job("7") is None
    assert jobs_of_user() == []


def test_a_command_that_hangs_or_fails_is_passed_over(monkeypatch, tmp_path: Path):
    line = SACCT.splitlines()[2]
    for name, script in {"scontrol": "sleep 60", "squeue": "echo garbage; exit 1", "sacct": f"echo '{line}'"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\nexec 2> /dev/null\n{script}\n".replace("sleep", "exec sleep"))
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(queue, "LIMIT_S", 0.5)
    start = time.monotonic()
    assert slurm_job("9_3") == parse_sacct(line)[0]
    assert time.monotonic() - start < 10, "the three limits, and room for a busy machine"


def test_what_accounting_alone_takes_for_running_is_gone(monkeypatch, tmp_path: Path):
    """A record whose end was lost stays as it is for years (`sacctmgr show runawayjobs`)."""
    running, ended = "7|RUNNING|0:06|10:00|Unknown|n1|0:0|pirl", SACCT.splitlines()[0]
    for squeue in (UNKNOWN_JOB, "exit 0"):
        words_of(tmp_path, monkeypatch, scontrol=UNKNOWN_JOB, squeue=squeue, sacct=f"echo '{running}'")
        assert slurm_job("7") is None
        words_of(tmp_path, monkeypatch, scontrol=UNKNOWN_JOB, squeue=squeue, sacct=f"echo '{ended}'")
        assert slurm_job("7") == parse_sacct(ended)[0]
    words_of(tmp_path, monkeypatch, scontrol=DOWN, squeue=DOWN, sacct=f"echo '{running}'")
    assert slurm_job("7") == parse_sacct(running)[0], "the controller, which would know, was not heard"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (DOWN, "squeue: slurm_load_jobs error: Unable to contact slurm controller"),
        ("echo 'squeue: error: Socket timed out on send/recv operation' >&2; exit 1", "squeue: Socket timed out"),
        ("exit 7", "squeue: exit code 7"),
        ("exec sleep 60", "squeue has said nothing for 0.5 s"),
    ],
)
def test_no_answer_is_not_an_unknown_job(monkeypatch, tmp_path: Path, script: str, said: str):
    monkeypatch.setattr(queue, "LIMIT_S", 0.5)
    words_of(tmp_path, monkeypatch, squeue=script)
    for ask in (jobs_of_user, lambda: slurm_job("7")):
        with pytest.raises(SlurmSilent, match=said):
            ask()
    # Accounting may not have it yet: only the controller knows that a job neither waits nor runs.
    words_of(tmp_path, monkeypatch, squeue=script, sacct="exit 0")
    with pytest.raises(SlurmSilent):
        slurm_job("7")
    words_of(tmp_path, monkeypatch, scontrol=script, squeue=UNKNOWN_JOB, sacct=script)
    assert slurm_job("7") is None
    words_of(tmp_path, monkeypatch, scontrol=script, squeue="exit 0")
    assert slurm_job("7") is None
    assert jobs_of_user() == []


def test_a_list_of_an_arrays_tasks_has_those_that_it_names():
    named = [task for task in range(20) if covers("18_[1,3-5,10-16:3%2]", f"18_{task}")]
    assert named == [1, 3, 4, 5, 10, 13, 16]
    assert covers("18_3", "18_3")
    assert covers("18", "18")
    assert not any(covers(*pair) for pair in [("18_[1-3]", "19_1"), ("18_3", "18"), ("18_[1-3]", "18"), ("18", "18_1")])


def test_a_users_own_filters_change_nothing(slurm: Slurm, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.cluster.conf))
    for name, value in {"SQUEUE_PARTITION": "high", "SQUEUE_STATES": "FAILED", "SLURM_TIME_FORMAT": "relative"}.items():
        monkeypatch.setenv(name, value)
    job = slurm.submit("true", tmp_path, "--begin=now+1hour")
    (listed,) = [state for state in jobs_of_user() if state.id == job]
    assert listed.expected_start is not None
    assert slurm_job(job) == replace(listed, restarts=0)
    slurm.ask("scancel", job)


def test_a_job_is_known_from_submission_to_its_end_without_accounting(slurm: Slurm, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.cluster.conf))

    def now() -> SlurmJob:
        state = slurm_job(job)
        assert state is not None
        return state

    options = ("--job-name=three states", "--requeue", "--nodes=2", "--time=5", "--begin=now+1hour")
    job = slurm.submit(f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 3", tmp_path, *options)
    assert (now().state, now().name, now().reason, now().nodes) == ("PENDING", "three states", "BeginTime", "")
    slurm.start_now(job)
    slurm.wait_for(job, "RUNNING")
    assert (now().time_limit_s, now().restarts, now().exit_code) == (300, 0, None)
    assert now().nodes.startswith("n[")
    slurm.ask("scontrol", "requeue", job)
    slurm.start_now(job)
    slurm.wait_for(job, "RUNNING")
    assert now().restarts == 1
    left = now().time_left_s
    assert left is not None
    assert 0 < left <= 300
    (tmp_path / "go").touch()
    slurm.wait_for(job, "FAILED")
    assert (now().reason, now().exit_code, now().time_left_s) == ("NonZeroExitCode", 3, None)
    assert slurm_job("999999") is None, "and sacct says that accounting is disabled"


def test_an_array_is_known_by_task_and_as_a_whole(slurm: Slurm, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.cluster.conf))
    array = slurm.submit("[ $SLURM_ARRAY_TASK_ID = 0 ] || sleep 1000", tmp_path, "--array=0-2%1")
    slurm.wait_for(f"{array}_1", "RUNNING")
    states = {state.id: state.state for state in jobs_of_user() if state.id.startswith(array)}
    # The last task that waits stands alone or as a list of one.
    assert sorted(states.values()) == ["COMPLETED", "PENDING", "RUNNING"]
    first, second, whole = (slurm_job(job) for job in (f"{array}_0", f"{array}_1", array))
    assert first is not None
    assert second is not None
    assert whole is not None
    assert (first.state, first.exit_code, second.state) == ("COMPLETED", 0, "RUNNING")
    assert not whole.ended
    slurm.ask("scancel", array)
