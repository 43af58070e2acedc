"""Whether training on a GPU is right, and where its time goes: about six minutes on an H100, no network, no data.

    python tests/gpu/check.py [--part correct ranks parts speed ceiling] [--device cpu --tiny]

Digits come with scikit-learn, and the large images are random bytes. It needs torch 2.11, torchvision 0.26, numpy,
pyarrow, fsspec, scikit-learn, safetensors, rich and pydantic, and Python 3.11 or newer. Prints a line for each finding;
the exit code is 1 where something is not as on the CPU. `ranks` needs two GPUs or more, and is left out without.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.gpu import ranks
from tests.gpu.correct import Correct
from tests.gpu.findings import Findings
from tests.gpu.speed import Speed

PARTS = ("correct", "ranks", "parts", "speed", "ceiling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that are asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="few small images: seconds on a CPU, to test the check")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU: nvidia-smi says whether there is one; --device cpu --tiny tests the check")
        return 2
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    findings = Findings()
    findings.say(
        f"{name_of(device)}, torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory(prefix="pirl-gpu-check-") as folder:
        correct = Correct(findings, device, Path(folder), options.tiny)
        speed = Speed(findings, device, Path(folder), options.tiny)
        todo: dict[str, Callable[[], None]] = {
            "correct": correct.check,
            "ranks": lambda: ranks.check(correct),
            "parts": speed.parts,
            "speed": speed.check,
            "ceiling": speed.ceiling,
        }
        for part in options.part:
            if part == "ranks" and torch.cuda.device_count() < 2:
                findings.say("ranks: left out, as there are not two GPUs")
            else:
                findings.run(part, todo[part])
    print("\n".join(["FAILED:", *findings.failures]) if findings.failures else "all is as on the CPU")
    return bool(findings.failures)


def name_of(device: torch.device) -> str:
    """Of the card, with its memory."""
    if device.type == "cpu":
        return "CPU"
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / 1e9:.0f} GB, {card.multi_processor_count} multiprocessors"


if __name__ == "__main__":
    sys.exit(main())
