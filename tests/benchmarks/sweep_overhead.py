"""What a sweep costs beside its trials: eight short runs by one sweep, and one by one with jobs/pretrain.py.

python tests/benchmarks/sweep_overhead.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEGATIVES = [64, 96, 128, 192, 256, 384, 512, 768]
RUN = ["digits", "--model.width=4", "--memory.init=random", "--evaluation.enabled=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8, help="of each run; 12 steps each")
    arguments = parser.parse_args()
    negatives = NEGATIVES[: arguments.trials]
    common = [*RUN, f"--optim.epochs={arguments.epochs}"]
    with tempfile.TemporaryDirectory() as folder:
        measured = [*common, "--evaluation.every-epochs=1", f"--storage={folder}"]
        single = [
            seconds(["jobs/pretrain.py", *measured, f"--loss.num-negatives={n}", f"--run={n}"]) for n in negatives
        ]
        swept = seconds(
            ["tune/sweep.py", *common, "--num-negatives", *map(str, negatives), f"--storage={folder}", "--name=sweep"]
        )
        training = [
            trial["train_s"] for trial in json.loads((Path(folder) / "sweep" / "sweep.json").read_text())["trials"]
        ]
    print(f"one by one  {sum(single):6.0f} s, each {min(single):.0f} to {max(single):.0f}")
    print(f"one sweep   {swept:6.0f} s, of which {sum(training):.0f} are training")
    print(f"sweep / one by one: {swept / sum(single):.2f}")


def seconds(command: list[str]) -> float:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=True, capture_output=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
