"""Whether training on a device is what it is on the CPU: losses, bank, weights, checkpoints, evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import pirl.train
from pirl.config import UNUSED, Config, override
from pirl.data.dataset import Dataset, open_data, open_dataset
from pirl.data.digits import write_digits
from pirl.data.plan import data_order
from pirl.data.writer import ShardWriter
from pirl.evaluate.evaluate import evaluate, evaluate_res5
from pirl.evaluate.subject import Subject
from pirl.methods.choice import Network
from pirl.methods.memory import MemoryBank
from pirl.methods.models import new_trunk
from pirl.recipes import digits
from pirl.runs.checkpoint import TrainingState
from pirl.runs.run_files import checkpoint_name
from pirl.storage.folder import Folder
from tests.gpu.findings import Findings

CPU = torch.device("cpu")

LAST = {"checkpoint.every_steps": 10**6}
"""No checkpoint but the last one."""
EXACT = {"model.norm": "frozen", "optim.bf16": False, "optim.lr": 0.001, "memory.init": "random"}
"""Float32 without batch statistics, at a rate at which a network without normalisation learns."""
AS_USED = {"optim.bf16": True, "optim.lr": 0.03}

BOUND = 5e-3
"""Of a loss, relative, of rows of the bank, and of weights as a share of the largest, after two epochs in float32: two
devices sum in another order, and every step carries that on. On CPUs with other sums 1e-5 is usual."""
BF16_BOUND = 0.05
"""Of the last loss, relative, where both have bf16 and batch norm: 8 bits of mantissa, over two epochs."""
REPEATED_BOUND = 0.2
"""Of a weight, where a run is repeated or resumed on one device: cuDNN may add in any order."""
EVALUATED_BOUND = 0.02
"""Of an accuracy: some images of a few hundred change sides where two scores are as good as equal."""

METHODS: dict[str, dict[str, Any]] = {
    "pirl, jigsaw, infonce": {},
    "pirl, rotation, npid": {"pretext.name": "rotation", "loss.kind": "npid"},
    "pirl, both, paper, bf16 wire": {
        "pretext.name": "both",
        "loss.kind": "paper",
        "memory.wire_dtype": "bfloat16",
    },
    "npid, blur, hue, forward": {
        "pretext.name": "none",
        "loss.pretext_weight": 0.0,
        "augment.blur": 0.5,
        "augment.hue": 0.2,
        "memory.init": "forward",
    },
    "covariant, jigsaw": {"method.name": "covariant", "pretext.permutations": 20},
    "covariant, rotation": {"method.name": "covariant", "pretext.name": "rotation"},
    "supervised": {"method.name": "supervised"},
}


@dataclass(frozen=True)
class Trained:
    """What a run gave: losses by step, the state at its end, and the folder of its checkpoints."""

    losses: dict[int, float]
    state: TrainingState
    folder: Path

    @property
    def network(self) -> Network:
        return self.state.network

    @property
    def bank(self) -> MemoryBank | None:
        return self.state.bank

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, on the CPU."""
        rows = {"bank": self.bank.local} if self.bank else {}
        return {name: value.cpu() for name, value in {**self.network.state_dict(), **rows}.items()}


@dataclass(frozen=True)
class Correct:
    """Runs on digits, on `device` and on the CPU.

    Args:
        folder: For data and checkpoints.
        tiny: A narrower network and fewer images, so that it takes seconds on a CPU.
    """

    findings: Findings
    device: torch.device
    folder: Path
    tiny: bool

    def check(self) -> None:
        """Everything that one device can show."""
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa
        for name, changes in METHODS.items():
            exact = EXACT | LAST | changes
            there, here = self.run(f"{name}, there", exact, self.device), self.run(f"{name}, here", exact, CPU)
            self.compare(name, there, here)
        torch.backends.cudnn.allow_tf32 = tf32
        whole = self.run("whole", AS_USED, self.device)
        self.resumed(whole)
        self.evaluated(whole)
        self.pinned()

    @property
    def steps(self) -> int:
        """Of two epochs."""
        return 8 if self.tiny else 24

    @property
    def half(self) -> int:
        """Steps of the checkpoint that is gone on from, in the second epoch."""
        return self.steps // 2 + 2

    def config(self, changes: Mapping[str, Any], device: torch.device) -> Config:
        """Two epochs of digits."""
        on_gpu = device.type == "cuda"
        settings = {
            "data.uri": str(images(self.folder, tiny=self.tiny)),
            "model.width": 8,
            "loss.num_negatives": 200,
            "optim.epochs": 2,
            "checkpoint.every_steps": self.half,
            "checkpoint.log_every_steps": 1,
            "cluster.workers": 1,
            "cluster.gpus_per_worker": int(on_gpu),
            "cluster.loader_processes": 2 if on_gpu else 0,
        }
        if self.tiny:
            settings |= {"data.batch_size": 24, "loss.num_negatives": 60, "model.width": 2}
        unused = UNUSED[changes.get("method.name", "pirl")]
        return override(digits(), {k: v for k, v in (settings | dict(changes)).items() if not k.startswith(unused)})

    def run(self, name: str, changes: Mapping[str, Any], device: torch.device, resume: Folder | None = None) -> Trained:
        """Trains, and keeps the state, which is caught as it is made."""
        return trained(self.config(changes, device), self.folder / name, device, resume)

    def compare(self, name: str, there: Trained, here: Trained) -> None:
        """Says how far two runs are from each other, in float32."""
        loss = max(abs(there.losses[step] / here.losses[step] - 1) for step in here.losses)
        bank = float((there.bank.local.cpu() - here.bank.local).abs().max()) if there.bank and here.bank else 0.0
        ours = here.network.state_dict()
        pairs = [(v.cpu(), ours[k]) for k, v in there.network.state_dict().items() if v.ndim > 1]
        weights = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        what = f"loss {loss:.1e} relative, bank {bank:.1e}, weights {weights:.1e} of the largest"
        good = max(loss, bank, weights) < BOUND and len(here.losses) == self.steps
        self.findings.say(f"{name}, {self.steps} steps, {self.device.type} against cpu: {what}", good)

    def resumed(self, whole: Trained) -> None:
        """Twice the same, resumed, and from this device to the CPU and back."""
        half = Folder(str(whole.folder / checkpoint_name(self.half)))
        again = self.run("again", AS_USED | LAST, self.device)
        on = self.run("on", AS_USED, self.device, resume=half)
        for what, other in (("run twice", again), ("resumed", on)):
            ours, its = whole.tensors(), other.tensors()
            gap = max(float((ours[name].float() - its[name].float()).abs().max()) for name in ours)
            equal = all(torch.equal(ours[name], its[name]) for name in ours)
            good = equal if self.device.type == "cpu" else gap < REPEATED_BOUND
            self.findings.say(f"bf16, batch norm, {what}: equal {equal}, largest difference {gap:.1e}", good)
        there = self.run("to the cpu", AS_USED, CPU, resume=half)
        last = self.run("on the cpu", AS_USED, CPU)
        early = Folder(str(last.folder / half.name))
        back = self.run("back", AS_USED, self.device, resume=early)
        for what, other in (("from the device to the cpu", there), ("from the cpu to the device", back)):
            mine, its = (run.losses[self.steps] for run in (whole, other))
            good = abs(mine / its - 1) < BF16_BOUND
            self.findings.say(f"bf16, batch norm, {what}: last loss {mine:.4f} and {its:.4f}", good)

    def evaluated(self, whole: Trained) -> None:
        """The table that a run ends with: the same twice, and as on the CPU."""
        config = self.config(AS_USED, self.device)
        known = open_data(config.data)
        found = []
        for device in (self.device, self.device, CPU):
            torch.manual_seed(0)
            untrained = new_trunk(config.model).to(device)
            trunk = whole.network.trunk.to(device)
            subject = Subject(trunk, untrained, known, known.held_out(), config.data.image_size, device)
            if self.tiny:
                found.append([*evaluate_res5(subject, config).values()])
                continue
            report = evaluate(subject, config)
            found.append([*report["linear"].values(), report["knn"]["accuracy"], *report["random"]["linear"].values()])
        gap = max(abs(a - b) for a, b in zip(found[0], found[2], strict=True))
        twice = found[0] == found[1]
        self.findings.say(f"evaluation: twice equal {twice}, within {gap:.4f} of the CPU's", gap < EVALUATED_BOUND)

    def pinned(self) -> None:
        """Batches come in memory that a GPU reads by itself."""
        config = self.config(AS_USED, self.device)
        data, on_gpu = open_data(config.data), self.device.type == "cuda"
        views = pirl.train.views_of(config, None)
        batches = pirl.train.batches(config, data, data_order(config, data), views, 0, 2, pin_memory=on_gpu)
        kinds = {part.pixels.is_pinned() for batch in batches for part in batch.parts}
        self.findings.say(f"batches arrive pinned: {kinds}", kinds == {on_gpu})


def trained(config: Config, folder: Path, device: torch.device, resume: Folder | None = None) -> Trained:
    """Trains on this rank, and keeps the state, which is caught as it is made."""
    losses: dict[int, float] = {}
    kept: list[TrainingState] = []
    original = pirl.train.first_state

    def first_state(*arguments: Any) -> TrainingState:
        kept.append(original(*arguments))
        return kept[0]

    def report(metrics: dict[str, float], _: Path | None) -> None:
        losses[int(metrics["step"])] = metrics["loss"]

    folder.mkdir(parents=True, exist_ok=True)
    with patch.object(pirl.train, "first_state", first_state):
        data = open_data(config.data)
        pirl.train.train(config, data, report=report, scratch=folder, device=device, resume=resume)
    return Trained(losses, kept[0], folder)


def images(folder: Path, *, tiny: bool) -> Path:
    """The digits, or some of them, with a test split; written once."""
    whole = folder / "digits"
    if not whole.exists():
        write_digits(str(whole))
    if not tiny:
        return whole
    few = folder / "few"
    if not few.exists():
        known = open_dataset(str(whole))
        test = known.held_out()
        assert test is not None, "the digits have a test split"
        some_of(test, few / "test", 60)
        some_of(known, few, 90)
    return few


def some_of(known: Dataset, folder: Path, rows: int) -> None:
    """The first images of a data set as another one."""
    groups = (known.read_group(number) for number in range(len(known.starts) - 1))
    pairs = (pair for group in groups for pair in zip(group.images, list(group.labels), strict=True))
    about: dict[str, Any] = {"classes": known.labels, "seed": 0, "source": known.uri}
    with ShardWriter(Folder(str(folder)), **about) as writer:
        for image, label in islice(pairs, rows):
            writer.add(bytes(image), int(label))
