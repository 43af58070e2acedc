import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from clusters.dev.cluster import HOSTS, DevCluster
from tests.slurm_cluster import ROOT, Slurm, devcluster, own_cluster

TRAINING = """
trap '' TERM  # which may come at the same moment
trap 'echo USR2 of run $SLURM_RESTART_COUNT >> $FOLDER/log; eval "$REACTION"' USR2
echo run $SLURM_RESTART_COUNT >> $FOLDER/log
[ $SLURM_RESTART_COUNT = 1 ] && exit
while true; do sleep 0.1; done
"""


def test_three_hosts_have_three_names(slurm: Slurm):
    assert sorted(slurm.ask("srun", "--nodes=3", "hostname").split()) == list(HOSTS)


def test_each_host_has_its_own_tmp_and_shares_the_folders_of_tests(slurm: Slurm, tmp_path: Path):
    write = f"echo of $(hostname) | tee /tmp/one /dev/shm/two > {tmp_path}/$(hostname)"
    slurm.ask("srun", "--nodes=2", "--nodelist=n1,n2", "bash", "-c", write)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"n1": "of n1\n", "n2": "of n2\n"}
    assert [slurm.cluster.files(host) for host in HOSTS] == [["/dev/shm/two", "/tmp/one"]] * 2 + [[]]
    read = slurm.ask(
        "srun", "--nodes=3", "bash", "-c", f"cat /tmp/one || cat {tmp_path}/n2; rm -f /tmp/one /dev/shm/two"
    )
    assert sorted(read.splitlines()) == ["of n1", "of n2", "of n2"]
    slurm.wait_until_nothing_is_left()
    assert not Path("/tmp/one").exists()


def test_what_a_job_leaves_behind_is_found(slurm: Slurm, tmp_path: Path):
    job = slurm.submit("setsid sleep 1000 &> /dev/null & disown", tmp_path, "--nodelist=n2")
    slurm.wait_for(job, "COMPLETED")

    def left() -> list[int]:
        return [process.pid for process in slurm.cluster.processes("n2") if process.command == "sleep 1000"]

    slurm.wait(lambda: bool(left()), lambda: "it is not found")  # the job may end before its child is a sleep
    os.kill(left()[0], signal.SIGKILL)
    slurm.wait_until_nothing_is_left()


def test_a_killed_host_comes_back_as_a_new_one(slurm: Slurm, tmp_path: Path):
    slurm.ask("srun", "--nodelist=n3", "touch", "/tmp/one")
    slurm.cluster.kill("n3", silent=True)
    assert slurm.cluster.init("n3") is None
    slurm.boot("n3")
    assert slurm.cluster.files("n3") == []


@pytest.mark.parametrize(
    ("partition", "reaction", "log"),
    [
        # The job requeues itself, long before SLURM ends it.
        ("low", "scontrol requeue $SLURM_JOB_ID; exit", ["run 0", "USR2 of run 0", "run 1"]),
        # It does nothing, and SLURM ends it: SIGTERM comes with USR2, SIGKILL 5 s later.
        ("rude", "true", ["run 0", "USR2 of run 0", "run 1"]),
    ],
)
def test_a_job_on_the_higher_partition_preempts_with_a_signal(slurm: Slurm, tmp_path: Path, partition, reaction, log):
    step = f"export FOLDER={tmp_path} REACTION='{reaction}' SLURM_RESTART_COUNT=${{SLURM_RESTART_COUNT:-0}}"
    (tmp_path / "training").write_text(TRAINING)
    script = f"{step}; srun bash {tmp_path}/training"
    job = slurm.submit(script, tmp_path, f"--partition={partition}", "--signal=USR2@5", "--requeue")
    slurm.wait((tmp_path / "log").exists, lambda: "the job does not start")
    slurm.preempt()
    slurm.start_now(job)
    slurm.wait_for(job, "COMPLETED")
    assert (tmp_path / "log").read_text().splitlines() == log


def test_down_leaves_nothing(tmp_path: Path):
    with own_cluster() as cluster:
        assert f"SLURM_CONF={cluster.conf}" in devcluster(cluster, "up", f"--share={tmp_path}")
        slurm = Slurm(cluster, {**os.environ, "SLURM_CONF": str(cluster.conf)})
        slurm.submit(f"touch {tmp_path}/runs; setsid sleep 1000 & sleep 1000", tmp_path, "--nodelist=n1")
        slurm.wait((tmp_path / "runs").exists, lambda: "the job does not start")
        namespaces = {namespace(cluster.init(host)) for host in HOSTS}
        assert len(traces(cluster, namespaces)) >= 12, "the links, the daemons, and two processes of the job"
        assert "sleep 1000" in devcluster(cluster, "status")
        cluster.kill("slurmctld")  # half of it is gone, as after a crash
        devcluster(cluster, "down")
        assert traces(cluster, namespaces) == []
        assert not cluster.folder.exists()
        devcluster(cluster, "down")  # also where there is nothing


def traces(cluster: DevCluster, namespaces: set[str]) -> list[str]:
    """Links, mounts, and processes that are in these namespaces or name the cluster's folder."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout.splitlines()
    found = [line for line in links if line.startswith(f"pirl{cluster.number}")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(cluster.folder) in line]
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now; and nobody may ask for the namespace of process 1
            line = (entry / "cmdline").read_text()  # "" once it has ended
            if line and (str(cluster.folder) in line or namespace(int(entry.name)) in namespaces):
                found.append(line)
    return found


def namespace(pid: int | None) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def test_missing_packages_are_named_and_nothing_is_started():
    # Debian has these in /usr/bin, which is not in PATH here.
    command = [sys.executable, "-m", "clusters.dev.command", "--number=77", "up"]
    answer = subprocess.run(command, cwd=ROOT, env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: packages are missing: `apt-get install -y --no-install-recommends ")
    assert "slurm-client" in answer.stderr
    assert answer.stdout == ""
