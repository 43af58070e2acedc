"""What Ray costs in the training loop: the same run under Ray Train and under torchrun, in turn.

python tests/benchmarks/ray_overhead.py --rounds 3
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ["jobs/pretrain.py", "digits", "--evaluation.enabled=false", "--memory.init=random"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    starts = {
        "Ray Train": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"],
    }
    rates: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(arguments.rounds):
        for name in sorted(starts, reverse=bool(number % 2)):  # neither always goes first
            rates[name].append(samples_per_s([*starts[name], *RUN, f"--optim.epochs={arguments.epochs}"]))
            print(f"{name:<10} {rates[name][-1]:7.0f} samples/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"Ray Train / torchrun, medians of {arguments.rounds}: {medians['Ray Train'] / medians['torchrun']:.3f}")


def samples_per_s(command: list[str]) -> float:
    """Runs a training; samples/s over all reports but those of the first epoch, which start things up."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, f"--storage={folder}"], cwd=ROOT, env=env, check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(folder) / "digits" / "metrics.jsonl").read_text().splitlines()]
    steps = seconds = 0.0
    for before, line in itertools.pairwise(lines):
        if before["epoch"] >= 1:
            done = line["step"] - before["step"]
            steps += done
            seconds += done / line["samples_per_s"]
    return steps / seconds


if __name__ == "__main__":
    main()
