"""Peak memory and speed of jobs/prepare.py, with few and with many images.

    python tests/benchmarks/prepare_memory.py --images ../shared/data/imagenet_sample/images.tar

The images are the real photographs of a tar file, repeated; a comment with the number of the repetition in each
JPEG makes them differ. Each source is written to disk first: class folders, one tar file, and one Parquet file of
one row group, which is the worst that a Parquet file can be.

- peak: the largest sum over all processes of the job, sampled each 20 ms, of the memory that is theirs alone
  (Private_Dirty: not libraries, not the page cache).
- largest: the largest peak of one process (VmHWM, with the libraries that it maps).
- first ms, others ms: processor time for an image, start included, of the thread that reads the source, shuffles and
  hands on, and of the processes that read and check. others / first is about how many cores the job can use.

Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import io
import os
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.photographs import from_tar, repeat

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TAR", help="JPEG files in a tar file")
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--sources", nargs="+", default=["folder", "tar", "parquet"])
    parser.add_argument("--folder", type=Path, help="where to write: 3 times the images of the largest count")
    args = parser.parse_args()
    photos = list(from_tar(args.images))
    mean = sum(map(len, photos)) / len(photos)
    print(f"mean {mean / 1000:,.0f} KB\n")
    print("| source | images | GB | peak MiB | largest MiB | images/s | first ms | others ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in args.sources:
        for count in args.counts:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                source = write(kind, Path(folder), photos, count)
                cost = measure(source, Path(folder, "out"), folder)
            first, others = (1000 * seconds / count for seconds in (cost.first_cpu_s, cost.others_cpu_s))
            print(
                f"| {kind} | {count:,} | {count * mean / 1e9:.1f} | {cost.peak_mib:,.0f} | {cost.largest_mib:,.0f} "
                f"| {count / cost.wall_s:,.0f} | {first:.2f} | {others:.2f} |",
                flush=True,
            )


def write(kind: str, folder: Path, photos: list[bytes], count: int) -> Path:
    images = repeat(photos, count)
    if kind == "parquet":
        path = folder / "in.parquet"
        chunks = [pa.array(chunk, pa.binary()) for chunk in iter(lambda: list(islice(images, 1000)), [])]
        table = pa.table({"image": pa.chunked_array(chunks)})
        pq.write_table(table, path, row_group_size=count, compression="none", use_dictionary=False)
        assert pq.read_metadata(path).num_row_groups == 1
        return path
    path = folder / ("in.tar" if kind == "tar" else "in")
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for number, image in enumerate(images):
                member = tarfile.TarInfo(f"{number % 100:03}/{number}.jpg")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
        return path
    for number, image in enumerate(images):
        (path / f"{number % 100:03}").mkdir(parents=True, exist_ok=True)
        (path / f"{number % 100:03}" / f"{number}.jpg").write_bytes(image)
    return path


@dataclass
class Cost:
    """What a job took."""

    peak_mib: float = 0
    largest_mib: float = 0
    wall_s: float = 0
    first_cpu_s: float = 0
    others_cpu_s: float = 0


def measure(source: Path, destination: Path, scratch: str) -> Cost:
    """Runs the job."""
    words = [str(ROOT / "jobs" / "prepare.py"), str(source), str(destination), "--scratch", scratch]
    cost, cpu = Cost(), {}
    began = time.monotonic()
    job = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while job.poll() is None:
        processes = family(job.pid)
        own, most = zip(*map(memory, processes), strict=True) if processes else ([0], [0])
        cost.peak_mib = max(cost.peak_mib, sum(own))
        cost.largest_mib = max(cost.largest_mib, *most)
        for process in processes:
            # Of the first process the main thread alone: its other threads write, beside it.
            stat = f"/proc/{process}/task/{process}/stat" if process == job.pid else f"/proc/{process}/stat"
            cpu[process] = max(cpu.get(process, 0), cpu_s(stat))
        time.sleep(0.02)
    if job.returncode:
        sys.exit(f"the job failed: {' '.join(words)}")
    cost.wall_s, cost.first_cpu_s = time.monotonic() - began, cpu.pop(job.pid)
    cost.others_cpu_s = sum(cpu.values())
    return cost


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    return [pid, *(below for child in text.split() for below in family(int(child)))]


def memory(pid: int) -> tuple[float, float]:
    """A process's own memory and the most that it had, in MiB."""
    try:
        own = Path(f"/proc/{pid}/smaps_rollup").read_text()
        most = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    return kibibytes(own, "Private_Dirty") / 1024, kibibytes(most, "VmHWM") / 1024


def cpu_s(stat: str) -> float:
    """Processor time of a process or thread so far."""
    try:
        words = Path(stat).read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def kibibytes(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main()
