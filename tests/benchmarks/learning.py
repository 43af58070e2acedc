"""What each method learns, beside random weights: three seeds, at equal epochs and at equal time.

    python tests/benchmarks/learning.py cifar10 --data.uri data/cifar10
    python tests/benchmarks/learning.py digits

Each run is `jobs/pretrain.py RECIPE --no-ray` on one core, as many at once as there are cores; runs that are done
are not run again. Minutes are those of the steps alone, at their median rate. Arguments that this script does not
know go to jobs/pretrain.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
METHODS = {
    "PIRL jigsaw": ["--pretext.name=jigsaw"],
    "PIRL rotation": ["--pretext.name=rotation"],
    "NPID (λ = 0)": ["--pretext.name=none", "--loss.pretext-weight=0"],
}
ROWS = {
    "cifar10": [("PIRL jigsaw", 8), ("PIRL rotation", 8), ("NPID (λ = 0)", 8), ("NPID (λ = 0)", 19)],
    "digits": [("PIRL jigsaw", 40), ("PIRL rotation", 40), ("NPID (λ = 0)", 40), ("NPID (λ = 0)", 80)],
}
"""Method and epochs. The last row takes about as long as the dearest of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=ROWS)
    parser.add_argument("--storage", type=Path, default=Path("runs/learning"), metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="runs at once (default: all cores)")
    args, rest = parser.parse_known_args()
    jobs = [(method, epochs, seed) for seed in range(args.seeds) for method, epochs in ROWS[args.recipe]]
    with ThreadPoolExecutor(args.cores) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(args.recipe, args.storage, rest, *job), jobs), strict=True))
    print("\n| method | epochs | minutes | linear probe of res5 | kNN |\n| --- | ---: | ---: | ---: | ---: |")
    untrained = [r["evaluation"]["random"] for r in results.values()][: len(results) : len(ROWS[args.recipe])]
    print(f"| random weights | 0 | 0 | {accuracies(untrained)} |")
    for method, epochs in ROWS[args.recipe]:
        of_seeds = [results[method, epochs, seed] for seed in range(args.seeds)]
        minutes = statistics.mean(r["train_s"] for r in of_seeds) / 60
        print(f"| {method} | {epochs} | {minutes:.0f} | {accuracies([r['evaluation'] for r in of_seeds])} |")


def run(recipe: str, storage: Path, rest: list[str], method: str, epochs: int, seed: int) -> dict[str, Any]:
    """Trains on one core, unless that was done before; returns its result.json."""
    name = f"{recipe}-{method.split()[-1] if 'PIRL' in method else 'npid'}-{epochs}-seed{seed}"
    command = [
        sys.executable,
        "jobs/pretrain.py",
        recipe,
        "--no-ray",
        f"--storage={storage.resolve()}",
        f"--run={name}",
    ]
    command += [*METHODS[method], f"--optim.epochs={epochs}", f"--seed={seed}", *rest]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    print(f"{name}: started", flush=True)
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{name}: {answer.stderr}")
    result: dict[str, Any] = json.loads((storage / name / "result.json").read_text())
    reports = [json.loads(line) for line in (storage / name / "metrics.jsonl").read_text().splitlines()]
    # The median, because other work on the machine may have slowed a part of the run.
    samples = epochs * result["evaluation"]["train_images"]
    result["train_s"] = samples / statistics.median(report["samples_per_s"] for report in reports)
    print(f"{name}: linear {result['evaluation']['linear']['res5']:.3f}, {result['train_s']:.0f} s", flush=True)
    return result


def accuracies(evaluations: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in percent, of the linear probe of res5 and of kNN."""
    columns = ([e["linear"]["res5"] for e in evaluations], [e["knn"]["accuracy"] for e in evaluations])
    spreads = [statistics.stdev(column) if len(column) > 1 else 0 for column in columns]
    pairs = zip(columns, spreads, strict=True)
    return " | ".join(f"{100 * statistics.mean(column):.1f} ± {100 * spread:.1f}" for column, spread in pairs)


if __name__ == "__main__":
    main()
