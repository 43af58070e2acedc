"""From `jobs/slurm.py` to the first step of training, on the SLURM of three hosts that is up (clusters/devcluster up).

    python tests/benchmarks/slurm_start.py [FOLDER]

FOLDER is seen by all hosts (default: ~/pirl-start); what is written goes into a new one in it. Prints when each part
of the start was over, in seconds.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["--model.width=4", "--memory.init=random", "--evaluation.enabled=false", "--checkpoint.log-every-steps=1"]
LIMIT_S = 300


def main() -> None:
    """Submits one run on two hosts and watches its files."""
    parent = Path(sys.argv[1] if len(sys.argv) > 1 else "~/pirl-start").expanduser().resolve()
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="pirl-start-", dir=parent))
    profile = folder / "cluster.toml"
    profile.write_text(
        f'cluster = "slurm"\nnodes = 2\ncpus_per_node = 1\nmemory_gb_per_node = 2\ntime = 10\n'
        f'storage = "{folder}/runs"\njob_folder = "{folder}/jobs"\n'
    )
    began = time.monotonic()
    words = [f"--cluster={profile}", "--", "jobs/pretrain.py", "digits", *SETTINGS, "--optim.epochs=2"]
    subprocess.run([sys.executable, str(ROOT / "jobs/slurm.py"), *words], check=True, stdout=subprocess.DEVNULL)
    job = folder / "jobs/digits-1"
    (job_id,) = json.loads((job / "job.json").read_text())["arguments"]

    def state() -> dict[str, object]:
        file = job / f"{job_id}_state.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    marks: list[tuple[str, Callable[[], bool]]] = [
        ("jobs/slurm.py: checks, frozen code, sbatch", lambda: True),
        ("SLURM: the first task writes", lambda: (job / f"{job_id}_0_log.out").exists()),
        ("Python and submitit on the node", lambda: bool(state())),
        ("Ray's head listens", lambda: bool(state().get("head"))),
        ("Ray knows both nodes", lambda: state().get("phase") == "running"),
        (
            "the job file: checks, Ray Train, imports of the workers, step 1",
            (folder / "runs/digits/metrics.jsonl").exists,
        ),
    ]
    before = 0.0
    for what, is_over in marks:
        while not is_over():
            if time.monotonic() > began + LIMIT_S:
                sys.exit(f"not within {LIMIT_S} s: {what}")
            time.sleep(0.02)
        at = time.monotonic() - began
        print(f"{at - before:6.1f} s   {at:6.1f} s   {what}", flush=True)
        before = at
    while state().get("phase") != "done":
        time.sleep(0.1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
