"""What earlier code has written is read: a data set, a run that had begun, and one that was done, with their streams.

tests/written_before holds them: 32 and 8 images of 16 pixels in two classes, and a ResNet-18 of width 1.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pirl.data.dataset import open_dataset

ROOT = Path(__file__).parents[2]
BEFORE = ROOT / "tests/written_before"
SETTINGS = "--model.width=1 --pretext.name=rotation --data.batch-size=8 --loss.num-negatives=8"
SETTINGS += " --optim.bf16=false --checkpoint.log-every-steps=1 --checkpoint.every-steps=2"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy, as if it had been written where it lies."""
    shutil.copytree(BEFORE, tmp_path / "before")
    for name in ("begun", "done"):
        config = tmp_path / "before/runs" / name / "config.json"
        config.write_text(config.read_text().replace("/tmp/before", str(tmp_path / "before")))
    return tmp_path / "before"


def pretrain(before: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/pretrain.py", "digits", "--no-ray", *SETTINGS.split(), *arguments]
    command += [f"--data.uri={before}/data", f"--storage={before}/runs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def test_a_data_set_is_read(before: Path) -> None:
    dataset = open_dataset(str(before / "data"))
    assert (dataset.rows, dataset.labels, dataset.class_rows) == (32, ["a", "b"], [16, 16])
    assert len(dataset.read_group(0).images) == 32
    test = dataset.held_out()
    assert test is not None
    assert test.rows == 8


def test_a_run_that_had_begun_goes_on(before: Path) -> None:
    answer = pretrain(before, "--run=begun", "--optim.epochs=40", "--evaluation.enabled=false")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "going on from checkpoint_000000009" in answer.stdout
    reports = [json.loads(line) for line in (before / "runs/begun/metrics.jsonl").read_text().splitlines()]
    assert [report["step"] for report in reports] == list(range(1, 161))
    # Those of the undisturbed run, by the code before; other processors round otherwise.
    assert [report["loss"] for report in reports[9:12]] == pytest.approx([2.02931, 2.02142, 2.05461], rel=1e-3)


def test_a_run_that_was_done_is_done(before: Path) -> None:
    answer = pretrain(before, "--run=done", "--optim.epochs=2")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "was done before" in answer.stdout
    assert "res5 kNN, k 20, τ 0.07" in answer.stdout
