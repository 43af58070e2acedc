"""jobs/evaluate.py as it is typed: on a run and on a file of torchvision's, alone, under torchrun, and typed wrong."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from jobs import evaluate as job
from jobs import pretrain
from pirl.data.digits import ensure_digits
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.methods.models import Trunk, export_state_dict
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.storage.folder import Folder

ROOT = Path(__file__).parents[2]
SETTINGS = "--no-ray --model.width=4 --optim.epochs=1 --data.batch-size=96 --loss.num-negatives=99 --memory.init=random"
SETTINGS += " --cluster.loader-processes=0 --evaluation.enabled=false"

Answer = tuple[int, str, str]
"""Exit code, output and errors."""
Typed = Callable[..., Answer]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; its own evaluation is off."""
    storage = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr(sys, "argv", ["jobs/pretrain.py", "digits", *SETTINGS.split(), f"--storage={storage}"])
        assert pretrain.main() == 0
    return storage / "digits"


@pytest.fixture
def evaluate(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types `jobs/evaluate.py` with words."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def type_in(*words: str, features: bool = True) -> Answer:
        where = [f"--features={trained.parent}/features"] if features else []
        monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", *words, *where])
        capsys.readouterr()
        return job.main(), *capsys.readouterr()

    return type_in


@pytest.fixture(scope="module")
def others(trained: Path) -> dict[str, Path]:
    """A second network, one with another stem, and a run whose images are no longer where they were."""
    folder = trained.parent
    for name, stem in (("other", "small"), ("wide", "imagenet")):
        save_file(export_state_dict(Trunk("resnet18", 4, stem)), folder / f"{name}.safetensors")
    shutil.copytree(trained, folder / "moved")
    checkpoint = newest_checkpoint(Folder(str(folder / "moved")))
    assert checkpoint is not None
    config = checkpoint.read("config.json")
    assert '"uri":"digits"' in config.replace(" ", "")
    checkpoint.write("config.json", config.replace('"digits"', '"nodata"'))  # as long: a checkpoint knows its sizes
    return {"other": folder / "other.safetensors", "wide": folder / "wide.safetensors", "moved": folder / "moved"}


def under_torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", "jobs/evaluate.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    return subprocess.run([sys.executable, *start, *words], cwd=ROOT, env=env, capture_output=True, text=True)


def measured(folder: Path, protocol: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{protocol}.json").read_text())["measurements"]
    return found


def test_each_protocol_leaves_its_report_and_all_of_them_a_table(trained: Path, evaluate: Typed) -> None:
    folder = trained / "evaluation"
    folder.mkdir()
    (folder / "notes.json").write_text("{")  # somebody else's
    words = ["--protocol", "knn", "linear", "few", "--knn.k", "5", "7", "--linear.taps=res5"]
    code, shown, errors = evaluate(str(trained), *words)
    assert code == 0, errors
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
        assert f"{100 * float(row['random']):.1f}" in shown
        assert f"{100 * float(row['trained']):.1f}" in shown


def test_every_protocol_that_needs_no_boxes_measures_a_run_in_one_command(
    trained: Path, evaluate: Typed, tmp_path: Path
) -> None:
    names = ["health", "invariance", "retrieval", "auc", "svm", "linear_sgd", "semi", "finetune"]
    words = ["--protocol", *names, f"--out={tmp_path}/out", "--max-images=256", "--auc.positive=3", "--svm.taps=res5"]
    words += ["--health.images=64", "--invariance.images=64", "--semi.shares=0.1"]
    words += [f"--{name}.epochs=1" for name in ("linear_sgd", "semi", "finetune")]
    code, shown, errors = evaluate(str(trained), *words)
    assert code == 0, errors
    assert "(the first 256 of 1,438 images)" in shown
    assert json.loads((tmp_path / "out/health.json").read_text())["data"]["train"]["used"] == 256
    for name in names:
        for each in measured(tmp_path / "out", name):
            assert math.isfinite(each["value"])
            assert f"{name:<12}{each['name']}" in shown
    pictures = {"invariance.png", "retrieval.png"}
    reports = {f"{name}.json" for name in names} | {"table.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == pictures | reports


def test_two_processes_and_kept_features_give_the_same_numbers(trained: Path, evaluate: Typed, tmp_path: Path) -> None:
    words = [str(trained), "--protocol", "knn", "linear", "--no-random"]
    assert evaluate(*words, f"--out={tmp_path}/a")[0] == 0
    kept = {file: file.stat().st_mtime_ns for file in (trained.parent / "features").rglob("*") if file.is_file()}
    assert kept
    answer = under_torchrun(*words, f"--out={tmp_path}/b", f"--features={tmp_path}/features")
    assert answer.returncode == 0, answer.stderr
    assert evaluate(*words, f"--out={tmp_path}/c")[0] == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}, "what is there is not made again"
    for protocol in ("knn", "linear"):
        assert measured(tmp_path / "a", protocol) == measured(tmp_path / "b", protocol)
        assert measured(tmp_path / "a", protocol) == measured(tmp_path / "c", protocol)


def test_a_file_of_torchvisions_is_measured_on_other_data(evaluate: Typed, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    words = [f"--out={tmp_path}/out", "--no-random", "--max-images=200", "--data=digits", "--protocol=knn"]
    code, shown, errors = evaluate(f"{tmp_path}/resnet18.pth", "--knn.k=3", "--image-size=32", *words)
    assert code == 0, errors
    assert "not used: fc.weight, fc.bias" in shown
    (found,) = measured(tmp_path / "out", "knn")
    assert found["random"] is None
    assert found["value"] > 0.3, "ten digits are told apart by untrained features, too"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no network: python jobs/evaluate.py TARGET"),
        (["nothing"], "is not there: name a run, a checkpoint, or a file with weights"),
        (["{run}", "--protocol", "kn"], "unknown protocol 'kn': use "),
        (["{run}", "--knn.k", "2000"], "--knn.k 2000 is more than the 1,438 labelled images"),
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
        (["{run}", "--data", ""], "--data is empty"),
        (["{run}", "--test", "digits"], "are the images that fit"),
        (["{run}", "--data.uri", "digits"], "type --data digits"),
        (["{run}", "--data.image-size", "64"], "type --image-size 64"),
        (["{run}", "--data.batch-size", "64"], "--data.batch-size changes nothing here"),
        (["{run}", "--features", "s3://bucket/features"], "is a URL: name a folder"),
        (["{run}", "--features", "/proc/features"], "--features /proc/features cannot be written"),
        (["{run}", "--cluster.gpus-per-worker", "64"], "without it use 1 or 0"),
        (["{run}", "--ensemble", "{run}"], "has the weights of"),
        (["{run}", "--ensemble", "{other}", "--protocol", "detection", "--data", "x"], "fine-tunes a single network"),
        (["{run}", "--ensemble", "{wide}"], "has the imagenet stem"),
        (["{run}", "--protocol", "linear-sgd", "--linear_sgd.lr", "0"], "--linear_sgd.lr '0': Input should be greater"),
        (["{run}", "--few.per-class", "1000"], "--few.per-class 1000 is more than the 150 images of the largest class"),
        (["{run}", "--knn.k", "200", "--max-images", "128"], "--knn.k 200 is more than the 128 labelled images"),
        (["{moved}"], "if that lies elsewhere now, add --data URI"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_written(
    trained: Path, others: dict[str, Path], evaluate: Typed, words: list[str], message: str
) -> None:
    before = sorted(trained.rglob("*"))
    code, shown, errors = evaluate(*(word.format(run=trained, **others) for word in words), features=False)
    assert (code, shown) == (2, ""), errors
    assert message in errors
    assert sorted(trained.rglob("*")) == before


def test_reports_do_not_go_among_the_images(trained: Path, evaluate: Typed, tmp_path: Path) -> None:
    assert evaluate(str(trained), "--check")[1].strip() == f"{trained}/evaluation"
    assert evaluate(str(trained), "--check", f"--out={tmp_path}")[0] == 0
    code, _, errors = evaluate(str(trained), "--check", f"--out={ensure_digits()}/evaluation")
    assert code == 2
    assert "lies in the folder of the images" in errors


def test_help_says_what_each_setting_of_each_protocol_is() -> None:
    for name, protocol in PROTOCOLS.items():
        about = job.docstrings(protocol.settings)
        assert set(about) == set(protocol.settings.model_fields), name
        assert all(f"--{name}.{setting.replace('_', '-')} " in job.protocol_help() for setting in about)
    assert (
        "--knn.k 1 20 200                          How many of them, one measurement for each." in job.protocol_help()
    )
