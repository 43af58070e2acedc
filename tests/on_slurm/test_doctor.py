"""A SLURM of which two hosts are not as they should be: both are marked, and the third is not."""

import subprocess
import sys
from pathlib import Path

from tests.slurm_cluster import LIMIT_S, ROOT, Slurm


def on(slurm: Slurm, host: str, *command: str) -> None:
    subprocess.run(slurm.cluster.enter(host, *command), check=True, capture_output=True)


def test_a_full_dev_shm_and_a_slow_network_are_marked(slurm: Slurm, tmp_path: Path) -> None:
    profile = tmp_path / "my cluster.toml"
    places = f'storage = "{tmp_path}/my runs"\njob_folder = "{tmp_path}/my jobs"\n'
    profile.write_text(f'cluster = "slurm"\nnodes = 1\ncpus_per_node = 1\nmemory_gb_per_node = 2\n{places}')
    shell = {**slurm.env, "SBATCH_EXPORT": "NONE", "SBATCH_TIMELIMIT": "1", "SBATCH_ARRAY_INX": "0-3"}
    command = [sys.executable, str(ROOT / "jobs/slurm.py"), "doctor", f"--cluster={profile}", "--nodes=3"]
    slow = "qdisc add dev eth0 root tbf rate 16mbit burst 64kb latency 400ms"
    try:
        on(slurm, "n2", *["mount", "-o", "remount,size=1M", "/dev/shm"])
        on(slurm, "n3", "tc", *slow.split())
        told = subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, timeout=3 * LIMIT_S)
    finally:
        on(slurm, "n2", *["mount", "-o", "remount,size=50%", "/dev/shm"])
        on(slurm, "n3", "tc", *["qdisc", "del", "dev", "eth0", "root"])
    assert told.returncode == 1, told.stdout + told.stderr
    marks = [line for line in told.stdout.splitlines() if line.startswith("! ")]
    assert any(line.startswith("! n2: /dev/shm has 0.00 GB free, and Ray wants 0.21") for line in marks), marks
    assert any(line.startswith("! n3: its network carries ") for line in marks), marks
    # Not how fast it calculates or reads: that others share this machine may make it look slow.
    assert not [line for line in marks if line.startswith(("! n1: its network", "! n1: /dev/shm", "! n2: its net"))]
    assert "all-reduce of 3 workers by gloo: " in told.stdout
    assert list((tmp_path / "my runs").iterdir()) == [], "nothing of it is left in the storage"
    slurm.wait_until_nothing_is_left()
