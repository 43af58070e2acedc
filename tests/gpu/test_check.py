"""The check for GPUs, on a CPU: it runs, it finds what is wrong, and it needs few packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import GlooPool
from tests.gpu import check, ranks
from tests.gpu.correct import BOUND, CPU, EXACT, Correct
from tests.gpu.findings import Findings

ROOT = Path(__file__).parents[2]

NOT_NEEDED = ("ray", "tyro", "isal", "s3fs", "botocore", "aiohttp", "submitit", "tensorboard", "matplotlib", "optuna")
"""Packages of the project that a machine with a GPU may lack."""

WITHOUT = f"""
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {NOT_NEEDED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from tests.gpu import check
sys.exit(check.main(["--device", "cpu", "--tiny"]))
"""


def test_all_of_it_runs_without_the_packages_that_a_gpu_machine_may_lack() -> None:
    command = [sys.executable, "-c", WITHOUT]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[-1] == "all is as on the CPU"
    assert sum(line.startswith("ok ") for line in lines) == 13
    for part in check.PARTS:
        assert any(line.strip().startswith((f"--- {part}: done", f"{part}: left out")) for line in lines), part
    for figure in ("samples/s, peak", "together", "images/s", "of the ceiling"):
        assert figure in answer.stdout


@pytest.fixture
def correct(tmp_path: Path) -> Correct:
    return Correct(Findings(), CPU, tmp_path, tiny=True)


def test_a_run_that_is_not_as_on_the_cpu_fails(correct: Correct, capsys: pytest.CaptureFixture[str]) -> None:
    here = correct.run("here", EXACT, CPU)
    there = correct.run("there", EXACT, CPU)
    correct.compare("the same", there, here)
    assert correct.findings.failures == []
    with torch.no_grad():
        there.network.trunk.conv1.weight *= 1 + 2 * BOUND
    correct.compare("a layer is off", there, here)
    with torch.no_grad():
        there.network.trunk.conv1.weight /= 1 + 2 * BOUND
    correct.compare("the same again", there, here)
    there.losses[3] *= 1 + 2 * BOUND
    correct.compare("a loss is off", there, here)
    assert [line.partition(",")[0] for line in correct.findings.failures] == ["a layer is off", "a loss is off"]
    assert "FAILED  a layer is off" in capsys.readouterr().out


def test_a_part_that_breaks_is_a_failure_and_the_next_one_runs() -> None:
    findings = Findings()
    seen: list[int] = []
    findings.run("broken", lambda: print(1 // 0))
    findings.run("whole", lambda: seen.append(1))
    assert seen == [1]
    assert "ZeroDivisionError" in findings.failures[0]


def test_ranks_are_compared_with_one_process(run_ranks: GlooPool, correct: Correct) -> None:
    """What NCCL is asked on GPUs, by gloo on two ranks."""
    alone = correct.run("alone", EXACT, CPU)  # also writes the images, which the ranks read
    results = run_ranks(2, ranks.run, correct, correct.folder / "ranks", CPU)
    assert results[0] == results[1]
    ranks.compare(correct, "two ranks", alone.losses, results[0])
    results[0][1][-1] *= 1 + 2 * BOUND
    ranks.compare(correct, "resumed otherwise", alone.losses, results[0])
    assert [line.partition(":")[0] for line in correct.findings.failures] == ["resumed otherwise"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where these tests run beside a GPU
    assert check.main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().out
