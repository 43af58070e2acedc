"""How fast a device trains, where a step's time goes, and how much of its ceiling that is."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.models import resnet18, resnet50

import pirl.train
from pirl.methods import nce
from pirl.methods.pirl import PIRL
from tests.gpu.findings import Findings
from tests.gpu.synthetic import Synthetic, synthetic

PIXELS = (224 * 224 + 9 * 64 * 64) / (224 * 224)
"""Of a sample's two views, for each of an image: what a supervised network sees is 1/1.73 of it."""


@dataclass(frozen=True)
class Speed:
    """Figures of one device, none of which is right or wrong.

    Args:
        folder: For checkpoints, of which there are none.
        tiny: Small images and a narrow network, so that it takes seconds on a CPU.
        rates: Samples/s by what was run; the ratios to the ceiling are made of them.
    """

    findings: Findings
    device: torch.device
    folder: Path
    tiny: bool
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def check(self) -> None:
        """The whole step at some batch sizes, compiled and not, and what makes the CPU wait."""
        for batch in [8] if self.tiny else [32, 64, 128, 256, 384]:
            self.loop("", batch)
        for batch in [] if self.tiny else [32, 256]:  # small batches wait for launches, large ones for memory
            self.loop("compiled", batch, {"optim.compile": True})
        if self.on_gpu:
            self.loop("compiled, CUDA graphs", 32, {"optim.compile": True, "optim.cuda_graphs": True})
        self.loop("in 2 pieces", 8 if self.tiny else 256, {"optim.accumulate": 2})
        if self.on_gpu:
            self.waits(64)

    def loop(self, what: str, batch: int, changes: Mapping[str, Any] | None = None) -> None:
        """Samples/s and peak memory of the project's own loop, `train`, with batches that cost nothing to read."""
        steps = 8 if self.tiny else 40
        run = synthetic(
            batch, self.device, {"checkpoint.log_every_steps": steps // 4, **(changes or {})}, tiny=self.tiny
        )
        name = f"batch {batch}{', ' if what else ''}{what}"
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            rates = trained(run, steps, self.device, self.folder)
        except torch.OutOfMemoryError:
            self.findings.say(f"{name}: out of memory")
            return
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else 0.0
        self.rates[name] = max(rates[1:])  # the first ones compile, search and warm up
        self.findings.say(f"{name}: {self.rates[name]:,.0f} samples/s, peak {peak:.1f} GB")

    def waits(self, batch: int) -> None:
        """Where the CPU waits for the GPU, for each step."""
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.loop("while waits are counted", batch)
        torch.cuda.set_sync_debug_mode("default")
        places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
        found = ", ".join(f"{place} ×{count / 40:.2g}" for place, count in places.items())
        self.findings.say(f"waits of the CPU for the GPU in a step: {found or 'none'}")

    def parts(self) -> None:
        """Where a step's time goes, each part by itself."""
        for batch in [8] if self.tiny else [32, 256]:
            took = self.times(synthetic(batch, self.device, {}, tiny=self.tiny))
            total = sum(took.values())
            line = ", ".join(f"{name} {ms:.2f} ms ({ms / total:.0%})" for name, ms in took.items())
            self.findings.say(f"batch {batch}: {line}; together {total:.1f} ms, {1e3 * batch / total:,.0f} samples/s")

    def times(self, run: Synthetic) -> dict[str, float]:
        """Milliseconds of each part of a step."""
        config, device = run.config, self.device
        state, item, k = pirl.train.first_state(config, run.dataset, device), run.batch(1), config.loss.num_negatives
        network, bank = state.network, state.bank
        assert isinstance(network, PIRL)
        assert bank is not None, "this method has a bank"
        image, patches = item.views(device)
        negatives = bank.sample(0, k)
        rows, positives = negatives.wait(), bank.lookup(item.ids)
        queries = F.normalize(torch.randn(2, len(item.ids), 128, device=device), dim=-1).requires_grad_()

        def through(x: Tensor, head: nn.Module) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                out = head(network.trunk(x))
            out.float().sum().backward()

        def loss() -> None:
            own = bank.own(item.ids.to(device), negatives.ids)
            nce.losses(config.loss.kind, queries, positives, rows, own, 0.07).sum().backward()

        return {
            "copy": self.clock(lambda: item.parts[0].views(device)),
            "copy and colour": self.clock(lambda: item.views(device)),
            "image through trunk and f, and back": self.clock(lambda: through(image, network.f)),
            "patches through trunk and g, and back": self.clock(lambda: through(patches, network.g or network.f)),
            "positives and negatives": self.clock(lambda: (bank.lookup(item.ids), bank.sample(1, k).wait())),
            "loss": self.clock(loss),
            "update of the bank": self.clock(lambda: bank.update(item.ids, queries[0].detach())),
            "optimiser": self.clock(state.optimizer.step),
            "ids of the batch, on the CPU": self.clock(lambda: run.batch(1)),
        }

    def ceiling(self) -> None:
        """A supervised ResNet-50 by torchvision: what this device does at best, and what of it the steps above have."""
        best = max(self.supervised(compiled=compiled) for compiled in ((False,) if self.tiny else (False, True)))
        for name, rate in self.rates.items():
            share = rate * PIXELS / best
            self.findings.say(f"{name}: {share:.2f} of the ceiling, {best / PIXELS:,.0f} samples/s")

    def supervised(self, *, compiled: bool) -> float:
        """Images/s of plain torch."""
        batch, size = (8, 64) if self.tiny else (256, 224)
        net = (resnet18(width_per_group=64) if self.tiny else resnet50()).to(
            self.device, memory_format=torch.channels_last
        )
        model = torch.compile(net) if compiled else net
        optimizer = SGD(net.parameters(), 0.01, momentum=0.9, fused=self.on_gpu)
        x = torch.randn(batch, 3, size, size, device=self.device).contiguous(memory_format=torch.channels_last)
        y = torch.randint(1000, (batch,), device=self.device)

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        rate = 1e3 * batch / self.clock(step)
        self.findings.say(f"supervised, batch {batch}, compiled {compiled}: {rate:,.0f} images/s")
        return rate

    def clock(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call, of the device or of the CPU that gives it work, whichever is more."""
        rounds = 2 if self.tiny else 15
        for count in (1 if self.tiny else 3, rounds):
            self.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                work()
            self.synchronize()
        return (time.perf_counter() - began) / rounds * 1e3

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def trained(run: Synthetic, steps: int, device: torch.device, folder: Path) -> list[float]:
    """Samples/s of each report of some steps of a run, from its second step on, as the first one is smaller."""
    rates: list[float] = []

    def batches(*_: Any, pin_memory: bool) -> Any:
        return map(run.batch, range(1, steps + 1))

    def report(metrics: dict[str, float], _: Path | None) -> None:
        rates.append(metrics["samples_per_s"])

    with patch.object(pirl.train, "batches", batches):
        pirl.train.train(run.config, run.dataset, report=report, scratch=folder, device=device)
    return rates
