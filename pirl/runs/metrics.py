"""The numbers of a training between two reports, and what ends it early: no loss, too few images, the wish to stop."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pirl.dist import all_reduce_sum
from pirl.errors import CorruptImage, TrainingDiverged
from pirl.loading.loader import Batch
from pirl.methods.memory import MemoryBank
from pirl.methods.spread import has_collapsed, spread_of, spread_of_bank
from pirl.storage.retry import take_count

Metrics = dict[str, float]


@dataclass
class Meter:
    """Numbers since the last report.

    Attributes:
        most_skipped: Images that may be skipped in an epoch.
        weights: Of the terms of the loss.
        names: Of the terms, in reports.
        retries: Of this rank since the last report.
        skips: Images that were skipped since the last report, on all ranks.
        skipped: Ids of those of this epoch.
    """

    done: int
    last_step: int
    steps_per_epoch: int
    most_skipped: float
    weights: list[float]
    names: Sequence[str] = ()
    retries: int = 0
    skips: int = 0
    skipped: list[int] = field(default_factory=list)
    epoch: int | None = None

    def __post_init__(self) -> None:
        self.reported: Metrics = {}
        self._expected: deque[tuple[Batch, float, Callable[[], Tensor]]] = deque()
        self.step_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets losses and times; what storage did is kept until the next report."""
        self.began = time.perf_counter()
        self.steps = self.samples = 0
        self.wait_s = self.loss = 0.0
        self.terms: list[float] = []

    def add_reads(self, batch: Batch, served: Tensor) -> None:
        """Counts what reading a batch took; `served` are the ids of the images that came, for the global batch.

        Raises:
            CorruptImage: Too many images of this epoch were skipped. All ranks raise it at the same step.
        """
        self.retries += batch.retries
        epoch = batch.step // self.steps_per_epoch
        if epoch != self.epoch:
            self.epoch, self.skipped = epoch, []
        skipped = batch.ids[served != batch.ids].tolist()
        self.skipped += skipped
        self.skips += len(skipped)
        if len(self.skipped) > self.most_skipped:
            raise CorruptImage(
                f"{len(self.skipped)} images of epoch {epoch} cannot be used, and data.max_skipped allows "
                f"{self.most_skipped:.1f}; the first have the ids {', '.join(map(str, self.skipped[:20]))}. "
                "--data.on-error raise says what is wrong with one; repair the data set, or allow more with "
                "--data.max-skipped"
            )

    def expect(self, batch: Batch, lr: float, sums: Callable[[], Tensor]) -> None:
        """Takes a step that is on its way: `sums` gives those of its terms, and more than 0 if a rank is to stop."""
        self._expected.append((batch, lr, sums))

    def read(self, but: int = 0) -> bool:
        """Counts the steps that were expected, all but the newest `but`; whether a rank is to stop by one of them.

        The CPU waits for the numbers of those alone, and a GPU works on the others meanwhile.

        Raises:
            TrainingDiverged: A loss is not finite. Its step and those after it have changed the weights.
        """
        stops = False
        while len(self._expected) > but:
            batch, lr, sums = self._expected.popleft()
            *terms, stop = sums().tolist()
            self._add(batch, [term / len(batch.ids) for term in terms], lr)
            stops |= stop > 0
        return stops

    def _add(self, batch: Batch, terms: list[float], lr: float) -> None:
        loss = sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
        if not math.isfinite(loss):
            first = batch.ids[:32].tolist()
            raise TrainingDiverged(
                f"the loss is {loss} at step {batch.step} (epoch {batch.step // self.steps_per_epoch}), learning "
                f"rate {lr:g}, ids of the first {len(first)} of {len(batch.ids)} images {', '.join(map(str, first))}",
                batch.step,
            )
        self.done = batch.step + 1
        self.steps += 1
        self.samples += len(batch.ids)
        self.wait_s += batch.wait_s
        self.loss += loss
        self.terms = [a + b for a, b in zip(self.terms or [0.0] * len(terms), terms, strict=True)]
        self.lr = lr

    def metrics(self, device: torch.device) -> Metrics:
        """Means since the last call, and counts of all ranks, added on `device`; then begins anew. Collective."""
        own_retries = self.retries + take_count()
        metrics = self._means() | {
            "retries": int(all_reduce_sum(torch.tensor(own_retries, device=device))),
            "skipped": self.skips,
        }
        self.reported, self.step_s = dict(metrics), (time.perf_counter() - self.began) / self.steps
        self.retries = self.skips = 0
        self.restart()
        return metrics

    def now(self) -> Metrics | None:
        """For who watches: the steps that are done, and means of the last report; before the first, those so far.

        None where nothing is known yet.
        """
        if not self.reported:
            return self._means() if self.steps else None
        return self.reported | {
            "step": self.done,
            "epoch": self.done / self.steps_per_epoch,
            "time_left_s": (self.last_step - self.done) * self.step_s,
        }

    def _means(self) -> Metrics:
        """Since the last report, of this rank; there was a step since."""
        seconds = time.perf_counter() - self.began
        return {
            "step": self.done,
            "last_step": self.last_step,
            "epoch": self.done / self.steps_per_epoch,
            "loss": self.loss / self.steps,
            **{name: term / self.steps for name, term in zip(self.names, self.terms, strict=False)},
            "lr": self.lr,
            "samples_per_s": self.samples / seconds,
            "data_wait_s": self.wait_s,
            "data_wait_share": self.wait_s / seconds,
            "time_left_s": (self.last_step - self.done) * seconds / self.steps,
        }


def health(bank: MemoryBank, embeddings: Tensor, say: Callable[[str], None]) -> Metrics:
    """How the rows of the bank spread, and the embeddings of the newest batch; says it where these have collapsed.

    Collective.
    """
    rows, newest = spread_of_bank(bank), spread_of(embeddings)
    if has_collapsed(newest, len(embeddings)):
        say(
            f"the embeddings have collapsed: those of the last batch have an effective rank of "
            f"{newest.effective_rank:.1f}, and 1 means that all are the same. Begin again with a smaller --optim.lr, "
            "--optim.clip-norm 1 or --optim.warmup-epochs 1"
        )
    return {
        "bank_effective_rank": rows.effective_rank,
        "bank_uniformity": rows.uniformity,
        "bank_mean_norm": rows.mean_norm,
        "batch_effective_rank": newest.effective_rank,
    }
