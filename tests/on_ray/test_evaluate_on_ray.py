"""What is done with a run on the workers of a cluster: measured, with the numbers of one process; and learned from."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.ray_cluster import LIMIT_S, ROOT, Cluster, clean_environment, train_workers


def test_two_workers_on_two_nodes_find_what_one_process_finds(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    words = [str(undisturbed), "--protocol", "knn", "linear", "--knn.k", "1", "5", f"--features={tmp_path}/features"]
    found = {}
    for name, env, more in (
        ("here", clean_environment(), []),
        ("there", {**cluster.env, "RAY_ADDRESS": cluster.gcs}, ["--cluster.workers=2", "--cluster.cpus-per-worker=2"]),
    ):
        command = [sys.executable, "jobs/evaluate.py", *words, f"--out={tmp_path}/{name}", *more]
        # As many threads everywhere: another number adds in another order.
        env = {**os.environ, **env, "OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert "res5, k 5" in answer.stdout
        found[name] = {
            protocol: json.loads((tmp_path / name / f"{protocol}.json").read_text())["measurements"]
            for protocol in ("knn", "linear")
        }
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["knn.json", "linear.json", "table.csv"]
    assert found["here"] == found["there"]
    assert train_workers(cluster) == []


def test_two_workers_learn_the_clusters_of_a_run(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "jobs/clusterfit.py", str(undisturbed), "--clusters=10", f"--storage={tmp_path}"]
    command += ["--optim.epochs=1", "--cluster.workers=2", "--cluster.cpus-per-worker=2"]
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = tmp_path / "digits-clusterfit"
    clusters = json.loads((run / "targets/pseudo_labels.json").read_text())
    assert sum(clusters["sizes"]) == 1438
    reached = json.loads((run / "result.json").read_text())["metrics"]
    assert reached["step"] == 30
    assert reached["pretext_accuracy"] > 0.15, "chance is 0.1"
    assert train_workers(cluster) == []
