"""Which nodes are left out, decided by one function; how they are remembered, and given back."""

import time
from pathlib import Path

import pytest

from clusters.job_folder import JobFolder
from clusters.slurm import bad_nodes, requeue
from clusters.slurm.bad_nodes import FADES_S, BadNode, Candidate, hosts_in, remembered, to_leave_out
from tests.slurm_words import words_of


def bad(*hosts: str) -> list[BadNode]:
    return [BadNode(host, 0.0, "lost", "7") for host in hosts]


def partition(count: int, *down: str) -> list[Candidate]:
    return [Candidate(f"n{number}", f"n{number}" not in down, ("a100",)) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("hosts", "nodes", "needed", "expected"),
    [
        (["n2"], partition(3), 2, ["n2"]),
        (["n2"], partition(3), 3, []),  # the job needs all
        (["n2"], partition(3, "n3"), 2, []),  # SLURM has one less to give already
        (["n2"], partition(3, "n2"), 2, ["n2"]),  # it may come back
        (["n2", "n1"], partition(3), 1, ["n2"]),  # one in any case, and no more of so few
        (["n2", "n9"], partition(3), 1, ["n2"]),  # of another partition
        (["n5", "n1", "n3"], partition(8), 2, ["n1", "n5"]),  # a fourth, the latest first
        (["n1", "n2", "n3"], partition(12), 11, ["n1"]),
        ([], partition(3), 1, []),
    ],
)
def test_never_more_than_a_share_nor_what_the_job_needs(hosts, nodes, needed, expected):
    assert to_leave_out(bad(*hosts), nodes, needed) == expected


def test_nodes_without_the_constraint_are_none_that_the_job_could_have():
    nodes = [*partition(2), Candidate("g1", True), Candidate("g2", True)]
    assert to_leave_out(bad("n1"), nodes, 2) == ["n1"]
    assert to_leave_out(bad("n1"), nodes, 2, "a100") == []
    assert to_leave_out(bad("n1"), nodes, 1, "a100") == ["n1"]
    assert to_leave_out(bad("n1"), nodes, 1, "a100&ib") == [], "nobody here knows which have both"


def test_what_is_remembered_fades_is_renewed_and_is_forgotten(tmp_path: Path):
    assert remembered(tmp_path) == []
    for host, why in (("n1", "lost"), ("n2", "slow"), ("n1", "lost again")):
        bad_nodes.remember(tmp_path, host, why, "7_3")
    (tmp_path / "bad_nodes/n3.json").write_text('{"host": ')
    first, second = remembered(tmp_path)
    assert (first.host, first.why, second.host) == ("n1", "lost again", "n2")
    assert str(first) == "n1: lost again, 0 min ago in job 7_3"
    assert remembered(tmp_path, now=time.time() + FADES_S - 60) == [first, second]
    assert remembered(tmp_path, now=time.time() + FADES_S + 60) == []
    assert bad_nodes.forget(tmp_path) == [first, second]
    assert list((tmp_path / "bad_nodes").iterdir()) == []


@pytest.mark.parametrize(
    ("short", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu[07-09,12],x,y[1-2]", ["gpu07", "gpu08", "gpu09", "gpu12", "x", "y1", "y2"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("", []),
    ],
)
def test_slurms_short_form_of_hosts_is_expanded(short: str, hosts: list[str]):
    assert hosts_in(short) == hosts


SHOWN = "JobId=7 JobName=x Partition=low ReqNodeList=(null) ExcNodeList=n7 NumNodes=2 Features=(null)"


def test_a_requeued_job_is_not_given_nodes_that_failed_and_keeps_those_that_its_user_left_out(
    tmp_path: Path, monkeypatch
):
    folder = JobFolder(tmp_path / "jobs/a-1", "7")
    folder.path.mkdir(parents=True)
    folder.enter("requeue", "n1: 1 of 2 nodes came up", restarts=0)
    folder.blame(["n2"], "Ray did not start there")
    sinfo = "".join(f"n{number}|idle|(null)\\n" for number in (1, 2, 3))
    scontrol = f'case $1 in -o) echo "{SHOWN}";; *) echo $* >> {tmp_path}/asked;; esac'
    words_of(tmp_path / "bin", monkeypatch, sinfo=f"printf '{sinfo}'", scontrol=scontrol)
    requeue.remember_bad_nodes(folder, folder.report()["blamed"])
    requeue.leave_out_bad_nodes(folder)
    requeue.leave_out_bad_nodes(folder)
    assert (tmp_path / "asked").read_text() == "update JobId=7 ExcNodeList=n2,n7\n", "once"
    report = folder.report()
    assert (report["phase"], report["left_out"]) == ("requeue", ["n2"])
    bad_nodes.forget(tmp_path / "jobs")
    requeue.leave_out_bad_nodes(folder)
    assert (tmp_path / "asked").read_text().splitlines()[1:] == ["update JobId=7 ExcNodeList=n7"]
