"""Cluster profiles: the examples are valid, and what is wrong is refused with what to write."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.profile import minutes, read_profile
from pirl.config import override
from pirl.errors import ConfigError
from pirl.recipes import RECIPES

EXAMPLES = sorted((Path(__file__).parents[2] / "clusters").glob("*.toml"))
LEAST = {"cluster": '"slurm"', "storage": '"/shared/runs"', "nodes": "2", "cpus_per_node": "4"}


def written(folder: Path, **changes: str) -> str:
    path = folder / "x.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in (LEAST | changes).items() if value))
    return str(path)


def test_there_are_examples_and_all_are_valid():
    assert {path.stem for path in EXAMPLES} == {"local", "slurm-cpu", "slurm-a100", "kuberay"}
    for path in EXAMPLES:
        profile = read_profile(str(path))
        assert override(RECIPES["digits"](), profile.settings()).cluster.workers >= 2


def test_the_manifest_has_what_the_profile_says():
    profile = read_profile(str(EXAMPLES[0].with_name("kuberay.toml")))
    job = yaml.safe_load(EXAMPLES[0].with_name("kuberay.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] == group["maxReplicas"] == profile.nodes.max
    assert (int(limits["cpu"]), int(limits["nvidia.com/gpu"])) == (profile.cpus_per_node, profile.gpus_per_node)


def test_workers_share_a_node(tmp_path: Path):
    assert read_profile(written(tmp_path)).settings() == {
        "cluster.workers": 2,
        "cluster.cpus_per_worker": 4,
        "cluster.gpus_per_worker": 0,
    }
    gpus = read_profile(written(tmp_path, gpus_per_node="2", nodes="{min = 1, max = 3}"))
    assert gpus.settings() == {"cluster.workers": 6, "cluster.cpus_per_worker": 2, "cluster.gpus_per_worker": 1}
    assert gpus.settings(nodes=1)["cluster.workers"] == 2
    for workers, share in (("1", 2), ("4", 0.5)):
        gpus = read_profile(written(tmp_path, gpus_per_node="2", workers_per_node=workers))
        assert gpus.settings()["cluster.gpus_per_worker"] == share


@pytest.mark.parametrize(
    ("given", "expected"),
    [(90, 90), ("90", 90), ("90:01", 91), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190), ("1-00:00:30", 1441)],
)
def test_time_limits_as_slurm_takes_them(given: Any, expected: int):
    assert minutes(given) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": ""}, "storage is missing"),
        ({"partitoin": '"gpu"'}, "unknown setting 'partitoin': did you mean partition?"),
        ({"cluster": '"pbs"'}, "'slurm', 'local', 'debug' or 'kuberay'"),
        ({"nodes": "{min = 3, max = 2}"}, "nodes.min 3 is above nodes.max 2"),
        ({"nodes": "0"}, "greater than or equal to 1"),
        ({"time": '"tomorrow"'}, "time 'tomorrow': use minutes, hours:minutes:seconds or"),
        ({"cluster": '"local"'}, "cluster local is this machine: use nodes = 1"),
        ({"workers_per_node": "8"}, "8 workers on a node need at least as many cpus_per_node"),
        ({"temp_dir": '"relative"'}, "use an absolute path of at most 16 characters"),
        ({"time": "1", "warning_s": "60"}, "warning_s 60 is not before the end: time is 1 minutes"),
        ({"ports": "[20000, 20050]"}, "a job needs 100 on each node"),
        ({"partition": '"a\\n#SBATCH --uid=0"'}, r"holds \n, where a line of the batch script would end: leave it out"),
        ({"environment": r'{PLACE = "C:\r"}'}, r"environment.PLACE 'C:\r': holds \r, where a line of the batch script"),
        ({"srun_args": '["--export=NONE"]'}, "srun_args '--export=NONE': the job would not get its own variables"),
        ({"srun_args": '["--export", "A=1"]'}, "srun_args '--export=A=1': the job would not get its own variables"),
        ({"sbatch": "{wait = true}"}, "sbatch 'wait': jobs/slurm.py sets it itself"),
        ({"environment": '{AWS_SECRET_ACCESS_KEY = "x7q"}'}, "environment holds secrets (AWS_SECRET_ACCESS_KEY)"),
        ({"environment": '{BAD-NAME = "x7q"}'}, "environment 'BAD-NAME': use letters, digits and _, no digit first"),
        ({"environment": '{"A B" = "x7q"}'}, "environment 'A B': use letters, digits and _, no digit first"),
        ({"environment": '{PIRL_NODE = "x7q"}'}, "environment 'PIRL_NODE': the job sets it itself"),
        ({"environment": '{SLURM_NNODES = "x7q"}'}, "environment 'SLURM_NNODES': the job sets it itself"),
        ({"environment": '{SUBMITIT_FOLDER = "x7q"}'}, "environment 'SUBMITIT_FOLDER': the job sets it itself"),
        ({"sbatch": '{nodes = "7"}'}, "sbatch 'nodes': write nodes outside of sbatch"),
        ({"sbatch": '{signal = "TERM@5"}'}, "sbatch 'signal': write warning_s outside of sbatch"),
        ({"sbatch": '{time = "5"}'}, "sbatch 'time': write time outside of sbatch"),
        ({"sbatch": "{no-requeue = true}"}, "sbatch 'no-requeue': write max_requeues outside of sbatch"),
        ({"sbatch": '{array = "0-3"}'}, "sbatch 'array': jobs/slurm.py sets it itself"),
        ({"sbatch": '{wrap = "x"}'}, "sbatch 'wrap': jobs/slurm.py sets it itself"),
        ({"sbatch": "{exclusive = false}"}, "sbatch 'exclusive' is false: leave it out"),
        ({"gpus_per_node": "4", "workers_per_node": "3"}, "3 workers cannot share 4 GPUs evenly"),
        ({"gpus_per_node": "2", "workers_per_node": "3"}, "3 workers cannot share 2 GPUs evenly"),
        ({"memory_gb_per_node": "0.0001"}, "memory_gb_per_node 0.0001: Input should be greater than or equal to 0.1"),
        ({"nodes": "true"}, "nodes True: write a value, not true or false"),
        ({"nodes": "{min = true, max = 2}"}, "nodes.min True: write a value, not true or false"),
        ({"cpus_per_node": "true"}, "cpus_per_node True: write a value, not true or false"),
        ({"gpus_per_node": "true"}, "gpus_per_node True: write a value, not true or false"),
        ({"nodes": "{min = 2, max = 4, foo = 1}"}, "unknown setting 'nodes.foo': valid names: nodes.min, nodes.max"),
        ({"sbatch": '{"--exclude" = "n7"}'}, "sbatch '--exclude': use a long name of sbatch, without dashes before it"),
        ({"storage": '"unfinished'}, "x.toml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, str], message: str):
    with pytest.raises(ConfigError) as refused:
        read_profile(written(tmp_path, **changes))
    assert message in str(refused.value)
    assert "x7q" not in str(refused.value)


def test_a_missing_file_names_the_examples():
    with pytest.raises(ConfigError, match=r"no such file; the examples are .*local\.toml"):
        read_profile("nowhere.toml")


def test_a_folder_is_not_a_profile(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a folder, and a profile is a file; the examples are .*local\.toml"):
        read_profile(str(tmp_path))
