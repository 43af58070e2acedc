"""What `jobs/slurm.py doctor` runs once on each node: measures what goes wrong most, and writes down what it found.

`python -m clusters.node.probe FOLDER`, where FOLDER is seen by all nodes and has the request. Nothing of Ray is needed:
a node on which Ray does not start is to be found out about, too.
"""

import json
import os
import platform
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clusters.node.neighbours import Listener, clock_offset_s, free_port, send_rate
from pirl.storage.folder import Folder

PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "submitit")
"""Whose versions are compared."""

MEGABYTES = 32
"""That are written and read of each place, and sent to the next node."""

MEET_S = 60
"""How long nodes wait for each other."""

NEIGHBOURS = 16
"""Nodes whose ports each node tries, at most."""


class Probe:
    """The measurements of this node, by name; what fails is told in `problems`, and ends nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request: dict[str, Any] = json.loads((folder / "request.json").read_text())
        self.rank, self.nodes = (
            int(os.environ.get(f"SLURM_{name}", at)) for name, at in (("PROCID", 0), ("NTASKS", 1))
        )
        self.found: dict[str, Any] = {"host": os.environ.get("SLURMD_NODENAME", socket.gethostname()), "problems": []}

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Runs a measurement, and takes note of what goes wrong in it."""
        try:
            yield
        except Exception as error:  # whatever it is, it is what was looked for
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.found["problems"].append(f"{what}: {first[:200]}")

    def run(self) -> None:
        """Measures everything; the others wait for this node at most for a while."""
        with self.telling("torch"):
            import torch

            self.found["start_s"] = time.time() - (self.folder / "began").stat().st_mtime
        self.alone()
        with self.telling("network"):
            self.together()
        with self.telling("GPUs"):
            self.gpus(torch)
        write(self.folder / f"{self.rank}.json", self.found)

    def alone(self) -> None:
        """What needs no other node."""
        found, request = self.found, self.request
        found["python"] = platform.python_version()
        for package in PACKAGES:
            with self.telling(package):
                found.setdefault("versions", {})[package] = metadata.version(package)
        with self.telling("compute"):
            found["gflops"] = gflops()
        for key, place in (("temp_gb", request["temp_dir"]), ("shm_gb", "/dev/shm")):
            with self.telling(place):
                found[key] = shutil.disk_usage(place).free / 1e9
                check_writing(Path(place))
        with self.telling("storage"):
            storage = Folder(request["storage"])
            if storage.find(request["marker"]) is None:
                raise OSError(f"{storage} is not the folder that the login node sees under this name")
            found["write_mb_s"], found["read_mb_s"] = storage_rates(storage, f".doctor-{uuid.uuid4().hex}")
        if request["data"]:
            with self.telling("data"):
                found["data_mb_s"] = data_rate(request["data"], self.rank)

    def together(self) -> None:
        """What needs the others: ports, clocks, the network between two, and all of them at once."""
        from clusters.node.all_reduce import megabytes_per_s

        with Listener(self.request["job"], self.request["ports"]) as listener:
            own = {"host": self.found["host"], "ip": listener.ip, "port": listener.port, "free": free_port(listener.ip)}
            write(self.folder / f"hello_{self.rank}.json", own)
            others = self.meet()
            after = [rank for rank in sorted(others, key=lambda n: (n - self.rank) % self.nodes) if rank != self.rank]
            unreached = [others[rank]["host"] for rank in after[:NEIGHBOURS] if not self.reaches(others[rank])]
            self.found["unreached"] = unreached
            if after and 0 in others and self.rank:
                with self.telling("clock"):
                    self.found["clock_s"] = clock_offset_s(others[0])
            if after:
                with self.telling("sending"):
                    self.found |= {"to": others[after[0]]["host"], "send_mb_s": send_rate(others[after[0]])}
            places = sorted(others)
            workers = self.request["workers"]
            head = others[places[0]]
            url = f"tcp://{head['ip']}:{head['free']}"
            first, world = places.index(self.rank) * workers, workers * len(places)
            asked = [(url, first + local, world, self.request["gpus"], local) for local in range(workers)]
            with self.telling("all-reduce"):
                self.found["all_reduce_mb_s"] = megabytes_per_s(*asked[0]) if workers == 1 else in_processes(asked)
            self.part(len(others))

    def meet(self) -> dict[int, dict[str, Any]]:
        """The nodes that came, as the first of them sees it, by rank."""
        list_file, deadline = self.folder / "there.json", time.monotonic() + MEET_S
        while time.monotonic() < deadline and len(list(self.folder.glob("hello_*.json"))) < self.nodes:
            time.sleep(0.1)
        hellos = {int(path.stem.partition("_")[2]): path for path in self.folder.glob("hello_*.json")}
        if self.rank == min(hellos):
            write(list_file, sorted(hellos))
        while not list_file.exists():
            if time.monotonic() > deadline + MEET_S:
                raise OSError("the first node does not say who is there")
            time.sleep(0.1)
        return {rank: json.loads(hellos[rank].read_text()) for rank in json.loads(list_file.read_text())}

    def part(self, nodes: int) -> None:
        """Waits until all have what they wanted of this node."""
        write(self.folder / f"bye_{self.rank}.json", True)
        deadline = time.monotonic() + MEET_S
        while time.monotonic() < deadline and len(list(self.folder.glob("bye_*.json"))) < nodes:
            time.sleep(0.1)

    def reaches(self, other: dict[str, Any]) -> bool:
        """Whether a port of another node lets this one in."""
        try:
            socket.create_connection((other["ip"], other["port"]), timeout=5).close()
        except OSError:
            return False
        return True

    def gpus(self, torch: Any) -> None:
        """Whether the GPUs are there that the profile names, and calculate."""
        there = torch.cuda.device_count() if self.request["gpus"] else 0
        self.found["gpus"] = there
        for number in range(there):
            with self.telling(f"GPU {number}"):
                ones = torch.ones(512, 512, device=f"cuda:{number}")
                if not torch.equal((ones @ ones).cpu(), torch.full((512, 512), 512.0)):
                    raise OSError("it calculates wrongly")


def in_processes(asked: list[tuple[str, int, int, int, int]]) -> float:
    """The all-reduce of several workers on this node, each in a process of its own."""
    from clusters.node.all_reduce import megabytes_per_s

    with ProcessPoolExecutor(len(asked), get_context("spawn")) as pool:
        jobs = [pool.submit(megabytes_per_s, *arguments) for arguments in asked]
        return min(job.result(timeout=3 * MEET_S) for job in jobs)


def write(file: Path, content: Any) -> None:
    """Writes JSON that nobody reads half of."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)


def best(measure: Callable[[], float], times: int) -> float:
    """The highest of several rates: others that are busy on the node make it look slow for a moment only."""
    return max(measure() for _ in range(times))


def gflops() -> float:
    """Of one core, in products of matrices that take a tenth of a second or so."""
    import torch

    a = torch.rand(512, 512)

    def once() -> float:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 0.12:
            a @ a
            done += 1
        return done * 2 * 512**3 / (time.perf_counter() - began) / 1e9

    return best(once, 6)


def check_writing(folder: Path) -> None:
    """Raises OSError for a folder in which a megabyte cannot be written."""
    file = folder / f"pirl-doctor-{uuid.uuid4().hex}"
    try:
        file.write_bytes(bytes(10**6))
    finally:
        file.unlink(missing_ok=True)


def storage_rates(storage: Folder, name: str) -> tuple[float, float]:
    """MB/s of writing and reading a file, from the disk or the store and not from memory; the better of two."""
    content = os.urandom(10**6) * MEGABYTES
    rates = []
    try:
        for _ in range(2):
            began = time.perf_counter()
            storage.write(name, content)
            if storage.path:
                forget_in_memory(storage.path / name)
            written = time.perf_counter()
            if storage.read_bytes(name) != content:
                raise OSError(f"{storage}: what is read is not what was written")
            rates.append((MEGABYTES / (written - began), MEGABYTES / (time.perf_counter() - written)))
    finally:
        storage.remove(name)
    return max(rate for rate, _ in rates), max(rate for _, rate in rates)


def forget_in_memory(file: Path) -> None:
    """Has a file that was written be on the disk, and read from there the next time."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def data_rate(uri: str, rank: int) -> float:
    """MB/s of reading a part of a data set, another one for each node."""
    from pirl.data.dataset import open_dataset

    place = Folder(uri)
    dataset = open_dataset(place)
    shard = dataset.shards[rank % len(dataset.shards)]
    began = time.perf_counter()
    return len(place.read_bytes(shard, 0, MEGABYTES * 10**6)) / 1e6 / (time.perf_counter() - began)


if __name__ == "__main__":
    Probe(Path(sys.argv[1])).run()
