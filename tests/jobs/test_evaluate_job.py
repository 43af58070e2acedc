"""jobs/evaluate.py as it is typed: on a run and on a file of torchvision's, alone, under torchrun, and typed wrong."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

ROOT = Path(__file__).parents[2]
SETTINGS = "--no-ray --model.width=4 --optim.epochs=1 --data.batch-size=96 --loss.num-negatives=99 --memory.init=random"


def run(*words: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, *start, *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; its own evaluation is off."""
    storage = tmp_path_factory.mktemp("runs")
    words = [*SETTINGS.split(), "--evaluation.enabled=false", f"--storage={storage}"]
    answer = run("jobs/pretrain.py", "digits", *words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return storage / "digits"


def evaluate(trained: Path, *words: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    features = f"--features={trained.parent}/features"
    return run("jobs/evaluate.py", str(trained), features, *words, start=start)


def measured(folder: Path, protocol: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{protocol}.json").read_text())["measurements"]
    return found


def test_each_protocol_leaves_its_report_and_all_of_them_a_table(trained: Path) -> None:
    answer = evaluate(trained, "--protocol", "knn", "linear", "few", "--knn.k", "5", "7", "--linear.taps=res5")
    assert answer.returncode == 0, answer.stderr
    folder = trained / "evaluation"
    report = json.loads((folder / "knn.json").read_text())
    assert [each["name"] for each in report["measurements"]] == ["res5, k 5", "res5, k 7"]
    assert report["settings"] == {"k": [5, 7], "temperature": 0.1}
    assert report["weights"]["uri"].endswith("/trunk.safetensors")
    assert report["data"]["test"]["images"] == 359
    assert report["command"][0] == str(trained)
    for each in report["measurements"]:
        low, high = each["interval"]
        assert low <= each["value"] <= high
        # Of 359 images: two standard errors are 0.053 at most, and the interval is about two of these wide.
        assert high - low < 0.11
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["protocol"], row["measured"]) for row in rows] == [
        ("few", "res5, 10 a class"),
        *(("knn", f"res5, k {k}") for k in (5, 7)),
        ("linear", "res5"),
    ]
    assert float(rows[1]["trained"]) == report["measurements"][0]["value"]
    for row in rows:  # what is printed are the same numbers
        assert f"{100 * float(row['random']):.1f}" in answer.stdout
        assert f"{100 * float(row['trained']):.1f}" in answer.stdout


def test_every_protocol_that_needs_no_boxes_measures_a_run_in_one_command(trained: Path, tmp_path: Path) -> None:
    names = ["health", "invariance", "retrieval", "auc", "svm", "linear_sgd", "semi", "finetune"]
    words = ["--protocol", *names, f"--out={tmp_path}/out", "--max-images=256", "--auc.positive=3", "--svm.taps=res5"]
    words += ["--health.images=64", "--invariance.images=64", "--semi.shares=0.1"]
    words += [f"--{name}.epochs=1" for name in ("linear_sgd", "semi", "finetune")]
    answer = evaluate(trained, *words)
    assert answer.returncode == 0, answer.stderr
    for name in names:
        for each in measured(tmp_path / "out", name):
            assert math.isfinite(each["value"])
            assert f"{name:<12}{each['name']}" in answer.stdout
    pictures = {"invariance.png", "retrieval.png"}
    reports = {f"{name}.json" for name in names} | {"table.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == pictures | reports


def test_two_processes_and_kept_features_give_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    words = ["--protocol", "knn", "linear", "--no-random"]
    assert evaluate(trained, *words, f"--out={tmp_path}/a").returncode == 0
    kept = {file: file.stat().st_mtime_ns for file in (trained.parent / "features").rglob("*") if file.is_file()}
    assert kept
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")
    answer = evaluate(trained, *words, f"--out={tmp_path}/b", f"--features={tmp_path}/features", start=torchrun)
    assert answer.returncode == 0, answer.stderr
    assert evaluate(trained, *words, f"--out={tmp_path}/c").returncode == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}, "what is there is not made again"
    for protocol in ("knn", "linear"):
        assert measured(tmp_path / "a", protocol) == measured(tmp_path / "b", protocol)
        assert measured(tmp_path / "a", protocol) == measured(tmp_path / "c", protocol)


def test_a_file_of_torchvisions_is_measured_on_other_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    words = [f"--out={tmp_path}/out", f"--features={tmp_path}/features", "--no-random", "--max-images=200"]
    answer = run(
        *("jobs/evaluate.py", f"{tmp_path}/resnet18.pth", "--data=digits", "--protocol=knn", "--knn.k=3"),
        *("--image-size=32", *words),
    )
    assert answer.returncode == 0, answer.stderr
    assert "not used: fc.weight, fc.bias" in answer.stdout
    (found,) = measured(tmp_path / "out", "knn")
    assert found["random"] is None
    assert found["value"] > 0.3, "ten digits are told apart by untrained features, too"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no network: python jobs/evaluate.py TARGET"),
        (["nothing"], "is not there: name a run, a checkpoint, or a file with weights"),
        (["{run}", "--protocol", "kn"], "unknown protocol 'kn': use "),
        (["{run}", "--knn.k", "2000"], "--knn.k 2000 is more than the 1438 images"),
        (["{run}", "--knn.k", "0"], "greater than or equal to 1"),
        (["{run}", "--knn.kk", "3"], "unknown setting 'kk'"),
        (
            ["{run}", "--protocol", "knn", "--linear.taps", "res5"],
            "--linear.taps is no setting of knn, data or cluster",
        ),
        (["{run}", "--linear.taps", "res6"], "--linear.taps"),
        (["{run}", "again"], "unexpected 'again': TARGET is one"),
        (["{run}", "--data", "pirl"], "is not a data set"),
        (["{run}", "--out", ""], "--out is empty"),
        (["{run}", "--image-size", "0"], "--image-size 0 is too small: use 16 or more"),
        (["{run}", "--max-images", "0"], "--max-images 0 is too small: use 1 or more"),
        (["{run}", "--image-size", "two"], "invalid int value: 'two'"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_written(trained: Path, words: list[str], message: str) -> None:
    before = sorted(trained.rglob("*"))
    answer = run("jobs/evaluate.py", *(word.format(run=trained) for word in words))
    assert (answer.returncode, answer.stdout) == (2, ""), answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert sorted(trained.rglob("*")) == before
