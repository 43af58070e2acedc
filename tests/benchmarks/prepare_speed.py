"""Whether jobs/prepare.py uses all cores, on an idle machine and beside other work.

    python tests/benchmarks/prepare_speed.py --images ../shared/data/imagenet_sample/images.tar

The images are the real photographs of a tar file, repeated, in class folders on disk. Of each run, from the first
shard to the manifest:

- images/s.
- busy: processor time of all processes of the job for each second, in cores. With other work on the machine it is the
  share that the kernel gives.
- at work: of the moments at which it was looked (100 a second), those in which a checking process was running, ready
  to run or reading the disk; the mean of those processes. The rest is time in which one waited for the others: that
  is what this job could do better, and the load of others changes little of it.

`--load N` runs N loops beside it that do nothing but take processor time. Each row is one run, and the loads take
turns, so that the best of a few rounds can be taken. Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq

from tests.benchmarks.photographs import from_tar
from tests.benchmarks.prepare_memory import ROOT, cpu_s, family, write

LOOK_S = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TAR", help="JPEG files in a tar file")
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--load", type=int, nargs="+", default=[0, 4], metavar="N", help="loops beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write: twice the images")
    args = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores\n\n| beside it | images/s | busy | at work |")
    print("| ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = write("folder", Path(folder), list(from_tar(args.images)), args.count)
        for _ in range(args.rounds):
            for load in args.load:
                with loops(load):
                    rate, busy, share = measure(source, Path(folder, "out"))
                print(f"| {load} | {rate:,.0f} | {busy:.2f} | {share:.0%} |", flush=True)


@contextmanager
def loops(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(source: Path, destination: Path) -> tuple[float, float, float]:
    """Runs the job; images/s, cores that it kept busy, and the share of time that checking processes were at work."""
    shutil.rmtree(destination, ignore_errors=True)
    words = [str(ROOT / "jobs" / "prepare.py"), str(source), str(destination)]
    looks = []
    job = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while job.poll() is None:
        time.sleep(LOOK_S)
        if (destination / "shard-00000.parquet").exists() and not (destination / "manifest.json").exists():
            processes = [process for process in family(job.pid) if process != job.pid]
            cpu = {process: cpu_s(f"/proc/{process}/stat") for process in [job.pid, *processes]}
            looks.append((time.monotonic(), cpu, {process: at_work(process) for process in processes}))
    if job.returncode:
        sys.exit(f"the job failed: {' '.join(words)}")
    (began, before, _), (ended, after, _) = looks[0], looks[-2]  # at the last one, processes may be ending
    busy_s = {process: after[process] - before[process] for process in before.keys() & after.keys()}
    job_s = busy_s.pop(job.pid)
    checking = sorted(busy_s, key=lambda process: busy_s[process])[-len(os.sched_getaffinity(0)) :]  # not the servers
    shares = [sum(working.get(process, False) for _, _, working in looks) / len(looks) for process in checking]
    first = pq.read_metadata(destination / "shard-00000.parquet").num_rows
    rows = json.loads((destination / "manifest.json").read_text())["rows"] - first
    return rows / (ended - began), (job_s + sum(busy_s.values())) / (ended - began), sum(shares) / len(shares)


def at_work(pid: int) -> bool:
    """Whether a thread of a process runs, is ready to run (R), or waits for a disk (D)."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            if task.read_text().rpartition(")")[2].split()[0] in "RD":
                return True
        except OSError:
            continue
    return False


if __name__ == "__main__":
    main()
