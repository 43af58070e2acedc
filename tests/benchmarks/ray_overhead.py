"""What Ray costs in the training loop: steps/s of the same run under Ray Train and under torchrun.

python tests/benchmarks/ray_overhead.py --rounds 40

Both run at once, and in turn one is stopped while the other is timed: on a machine whose speed changes from minute to
minute, two runs one after the other differ by more than what is looked for.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ["jobs/pretrain.py", "digits", "--evaluation.enabled=false", "--memory.init=random", "--optim.epochs=1000000"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
SETTLES_S = 1.0
"""Until a run that was stopped is up to its speed again."""
LIMIT_S = 120.0
"""For its first epochs, and for the next line of its numbers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="pairs, two at least")
    parser.add_argument("--window-s", type=float, default=4.5, help="how long each is timed")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, for an error of the mean")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    pairs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [Pausable("Ray Train", [], folder / "ray"), Pausable("torchrun", TORCHRUN, folder / "torch")]
        for run in runs:
            stack.callback(run.end)
            run.start()
        for number in range(arguments.rounds):
            order = runs if number % 2 else runs[::-1]  # neither always goes first
            rates = {run.name: run.steps_per_s(arguments.window_s) for run in order}
            pairs.append(rates["Ray Train"] / rates["torchrun"])
            told = [f"{name} {rates[name]:.2f} steps/s" for name in sorted(rates)]
            print(f"{number + 1}/{arguments.rounds}: {', '.join(told)}, ratio {pairs[-1]:.3f}", flush=True)
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
    print(f"Ray Train / torchrun: mean {mean:.3f} ± {error:.3f} (standard error of {len(pairs)} pairs)")


class Pausable:
    """A training that is stopped whenever it is not timed.

    Args:
        name: Of what starts it.
        launcher: What stands between Python and the job.
        storage: Its folder.
    """

    def __init__(self, name: str, launcher: list[str], storage: Path) -> None:
        self.name, self.storage = name, storage
        self.command = [sys.executable, *launcher, *RUN, f"--storage={storage}"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is in its third epoch, and stopped."""
        self.storage.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env = clean | {"OMP_NUM_THREADS": "1"}
        with (self.storage / "output").open("wb") as output:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=output, stderr=output)
        deadline = time.monotonic() + LIMIT_S
        while self.newest().get("epoch", 0) < 2:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not begin: {(self.storage / 'output').read_text()}")
            self.sleep(0.2)
        self.signal(signal.SIGSTOP)

    def steps_per_s(self, window_s: float) -> float:
        """Lets it run, and times it from one line of its numbers to another."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLES_S)
        first = self.next_line(self.newest()["step"])
        last = first
        while last[0] - first[0] < window_s:
            last = self.next_line(last[1])
        self.signal(signal.SIGSTOP)
        return (last[1] - first[1]) / (last[0] - first[0])

    def next_line(self, step: float) -> tuple[float, float]:
        """When the next line comes after that of a step, and the step it is of."""
        deadline = time.monotonic() + LIMIT_S
        while (newest := self.newest()["step"]) == step:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not go on: {(self.storage / 'output').read_text()}")
            self.sleep(0.02)
        return time.monotonic(), newest

    def sleep(self, seconds: float) -> None:
        """Waits, while it runs."""
        if self.process is None or self.process.poll() is not None:
            raise SystemExit(f"{self.name} ended: {(self.storage / 'output').read_text()}")
        time.sleep(seconds)

    def newest(self) -> dict[str, float]:
        """The newest whole line of its numbers."""
        with suppress(FileNotFoundError), (self.storage / "digits" / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 5_000))
            whole = file.read().split(b"\n")[1:-1]
            return json.loads(whole[-1]) if whole else {}
        return {}

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to its process and all that come from it, also while it is sent."""
        assert self.process
        told: set[int] = set()
        while new := {self.process.pid, *descendants(self.process.pid)} - told:
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= new

    def end(self) -> None:
        """Ends it as Ctrl-C does, and what is left of it after a minute."""
        if not self.process:
            return
        self.signal(signal.SIGCONT)
        left = [self.process.pid, *descendants(self.process.pid)]
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that one has started, and those that they have, for as long as their parents live."""
    children = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # ended meanwhile
            children += [int(child) for child in tasks.read_text().split()]
    return [found for child in children for found in (child, *descendants(child))]


if __name__ == "__main__":
    main()
