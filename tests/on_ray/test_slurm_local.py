"""jobs/slurm.py without SLURM: in the background, and in this process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.ray_cluster import ROOT, SMALL, clean_environment, wait_for

LIMIT_S = 300
SHORT = [*SMALL, "--optim.epochs=1", "--cluster.loader-processes=0"]


def profile(folder: Path, cluster: str) -> str:
    path = folder / f"{cluster}.toml"
    path.write_text(
        f'cluster = "{cluster}"\nnodes = 1\ncpus_per_node = 1\nstorage = "{folder}/runs"\n'
        f'job_folder = "{folder}/jobs"\ntemp_dir = "/tmp"\n'
    )
    return f"--cluster={path}"


def slurm_py(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs/slurm.py"), *words]
    env = {**clean_environment(), "XDG_STATE_HOME": str(folder / "state")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S)


def test_in_the_background_and_in_this_process(tmp_path: Path) -> None:
    local, debug = profile(tmp_path, "local"), profile(tmp_path, "debug")
    sent = slurm_py(tmp_path, local, "--", "jobs/pretrain.py", "digits", *SHORT, "--run=background")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    number = re.match(r"job (\d+) ", sent.stdout)
    assert number
    again = slurm_py(tmp_path, local, "--", "jobs/pretrain.py", "digits", *SHORT, "--run=background")
    assert again.returncode == 2
    assert f"job {number[1]} is working on {tmp_path}/runs/background" in again.stderr

    broken = tmp_path / "photos" / "cats" / "broken.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_text("no image")
    photos = [str(tmp_path / "photos"), str(tmp_path / "prepared")]
    here = slurm_py(tmp_path, debug, "--", "jobs/prepare.py", *photos, "--strict")
    assert here.returncode == 1, here.stdout + here.stderr
    assert "broken.jpg" in here.stdout + here.stderr

    logs = slurm_py(tmp_path, "logs", number[1], "-f", local)
    assert logs.returncode == 0, logs.stdout + logs.stderr
    assert "[0] epoch   1.00/1" in logs.stdout
    status = slurm_py(tmp_path, "status", number[1], local).stdout
    assert "COMPLETED" in status
    assert json.loads((tmp_path / "runs/background/result.json").read_text())["metrics"]["step"] == 30
    assert not list(Path("/tmp").glob(f"pirl-j{number[1]}-*"))


def test_a_background_job_is_cancelled(tmp_path: Path) -> None:
    local = profile(tmp_path, "local")
    sent = slurm_py(tmp_path, local, "--", "jobs/pretrain.py", "digits", *SMALL, "--run=long", "--optim.epochs=500")
    number = re.match(r"job (\d+) ", sent.stdout)
    assert number, sent.stderr
    folder = Path(f"/tmp/pirl-j{number[1]}-0")
    wait_for(folder.exists, "it does not start")
    assert slurm_py(tmp_path, "cancel", number[1], local).returncode == 0
    wait_for(lambda: not folder.exists(), "its folder is left")
    wait_for(lambda: "CANCELLED" in slurm_py(tmp_path, "status", number[1], local).stdout, "no word of it")
    assert slurm_py(tmp_path, "cancel", number[1], local).returncode == 1
    assert os.path.exists(tmp_path / "jobs/long-1/job.json")
