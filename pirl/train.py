"""Train PIRL: the step and the loop, in plain PyTorch.

Runs in one process, under torchrun, or in the workers of Ray Train; whatever started it, `report` is where the
numbers and the checkpoints go.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from pirl import checkpoint, nce
from pirl.checkpoint import State
from pirl.color import color_and_normalize
from pirl.config import Config, PretextName
from pirl.dist import all_reduce_sum, broadcast_from_zero, gather_parts, rank, world_size
from pirl.loader import Batch, Loader
from pirl.memory import MemoryBank
from pirl.methods import PIRL, head_weights, parameter_groups, pirl_losses
from pirl.order import Order
from pirl.shards import Dataset, check_data, open_dataset
from pirl.transforms import Views

Metrics = dict[str, float]
Report = Callable[[Metrics, Path | None], None]
"""Called by every rank equally often, with the numbers since the last call and a checkpoint folder or None."""


class TrainingDiverged(RuntimeError):  # noqa: N818 - what is wrong says more than Error
    """The loss is no longer a number, from the weights that `step` steps have made."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def train(
    config: Config,
    *,
    report: Report,
    scratch: Path,
    resume: Path | None = None,
    device: torch.device | None = None,
) -> PIRL:
    """Trains until `config.optim.epochs` are done.

    Args:
        config: The run.
        report: Takes the metrics, and each checkpoint as it is written.
        scratch: Folder for checkpoints before `report` takes them; one for all ranks or one for each.
        resume: A checkpoint folder to go on from.
        device: Of the network and the bank; the CPU by default.

    Returns:
        The trained network.

    Raises:
        ConfigError: The data set is smaller than the batch or the negatives.
        TrainingDiverged: The loss is not finite; names step, learning rate and images.
    """
    device = device or torch.device("cpu")
    dataset = open_dataset(config.data.uri, config.data.storage_options)
    check_data(config, dataset)
    order = data_order(config, dataset)
    last_step = config.optim.epochs * order.steps_per_epoch

    state = first_state(config, dataset.rows, device)
    network, optimizer, bank, log_z = state.network, state.optimizer, state.bank, state.log_z
    first_step = checkpoint.load(resume, state) if resume else 0
    filling = not resume and config.memory.init == "forward"

    model = distributed(torch.compile(network) if config.optim.compile else network)  # type: ignore[arg-type]
    estimate_log_z = config.loss.kind == "npid" and bool(log_z.isnan())
    weights = head_weights(config, device)
    meter = Meter(first_step, last_step, order.steps_per_epoch)

    start = -order.steps_per_epoch if filling else first_step
    for batch in batches(config, dataset, order, start, last_step, pin_memory=device.type == "cuda"):
        if batch.step < 0:
            fill(bank, network, batch, bf16=config.optim.bf16)
            meter.restart()
            continue
        set_lr(optimizer, config, batch.step / order.steps_per_epoch)
        pending = bank.sample(batch.step, config.loss.num_negatives)  # on its way while the trunk works
        positives = bank.lookup(batch.ids)[batch.mine]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.bf16):
            queries = model(*views_on_device(batch, device))
        negatives = pending.wait()
        own = bank.own(batch.ids[batch.mine].to(device), negatives.ids)
        if estimate_log_z:
            estimate_log_z = False
            log_z.copy_(nce.estimate_log_z(queries, positives, negatives.rows, own, config.loss.temperature, bank.rows))
        losses = pirl_losses(config, queries, positives, negatives, own, log_z, bank.rows)

        # DDP averages over ranks: the factor makes that the mean over the global batch, however it is shared.
        loss = (weights @ losses).sum() * (world_size() / len(batch.ids))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_norm)
        terms = all_reduce_sum(losses.detach().sum(dim=1)) / len(batch.ids)
        meter.add(batch, (weights @ terms).item(), terms.tolist(), optimizer.param_groups[0]["lr"])
        optimizer.step()
        bank.update(batch.ids, gather_parts(queries[0].detach(), batch.shares))

        save_now = meter.done % (config.checkpoint.every_steps or order.steps_per_epoch) == 0
        save_now |= meter.done == last_step
        if save_now or meter.done % config.checkpoint.log_every_steps == 0:
            folder = scratch / f"checkpoint_{meter.done:09d}" if save_now else None
            if folder:
                broadcast_buffers(network)
                checkpoint.save(folder, config, state, meter.done, dataset.fingerprint)
            report(meter.metrics(), folder)
    return network


def data_order(config: Config, dataset: Dataset) -> Order:
    """The order of the data of this run."""
    data = config.data
    return Order(dataset.starts, config.seed, data.streams, data.batch_size, data.window_groups)


def pretext_name(config: Config) -> PretextName:
    """The second view that is made: none where λ = 0 gives it no weight."""
    return config.pretext.name if config.has_pretext else "none"


def first_state(config: Config, rows: int, device: torch.device) -> State:
    """The state before the first step: a function of the config's seed."""
    torch.manual_seed(config.seed)
    network = PIRL(config)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim, memory = config.optim, config.memory
    optimizer = SGD(parameter_groups(network, optim.weight_decay), lr=optim.lr, momentum=optim.momentum)
    wire_dtype = getattr(torch, memory.wire_dtype)
    bank = MemoryBank(rows, seed=config.seed, keep=memory.keep, wire_dtype=wire_dtype, device=device)
    return State(network, optimizer, bank, log_z=torch.full((), math.nan, device=device))


def batches(
    config: Config, dataset: Dataset, order: Order, first_step: int, last_step: int, *, pin_memory: bool
) -> Loader:
    """The batches of this rank from `first_step` to `last_step`."""
    return Loader(
        dataset,
        order,
        Views(config.data.image_size, config.augment, pretext_name(config), config.pretext.crop_min),
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        first_step=first_step,
        last_step=last_step,
        processes=config.cluster.loader_processes,
        pin_memory=pin_memory,
    )


def views_on_device(batch: Batch, device: torch.device) -> list[Tensor]:
    """Moves uint8 views to the device, and there changes colours and normalises."""
    views = []
    for pixels, colors in zip(batch.part[::2], batch.part[1::2], strict=True):
        pixels = pixels.to(device, non_blocking=True).flatten(end_dim=-4)
        colors = colors.flatten(end_dim=-2)
        views.append(color_and_normalize(pixels, colors).contiguous(memory_format=torch.channels_last))
    return views


def distributed(network: nn.Module) -> nn.Module:
    """Wraps the network in DDP where there are other ranks."""
    if world_size() == 1:
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def broadcast_buffers(network: nn.Module) -> None:
    """Gives every rank rank 0's batch norm statistics: training does not use them, what follows it does."""
    for buffer in network.buffers():
        broadcast_from_zero(buffer)


@torch.no_grad()
def fill(bank: MemoryBank, network: PIRL, batch: Batch, *, bf16: bool) -> None:
    """Sets the rows of a batch to f(v_I) of the untrained network.

    The batch norms run on batch statistics, as they will in training, and get their first running statistics.
    """
    device = bank.local.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        queries = network(*views_on_device(batch, device))
    bank.fill(batch.ids, gather_parts(queries[0], batch.shares))


def set_lr(optimizer: Optimizer, config: Config, epoch: float) -> None:
    """Linear warm-up, then half a cosine from `lr` to `final_lr`; `epoch` may be a fraction."""
    optim = config.optim
    if epoch < optim.warmup_epochs:
        lr = optim.lr * epoch / optim.warmup_epochs
    else:
        progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
        lr = optim.final_lr + (optim.lr - optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = lr


@dataclass
class Meter:
    """Numbers since the last report."""

    done: int
    last_step: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted."""
        self.began = time.perf_counter()
        self.steps = self.samples = 0
        self.wait_s = self.loss = 0.0
        self.terms: list[float] = []

    def add(self, batch: Batch, loss: float, terms: list[float], lr: float) -> None:
        """Counts one step.

        Raises:
            TrainingDiverged: The loss is not finite. The step has not changed the weights yet.
        """
        if not math.isfinite(loss):
            ids = ", ".join(map(str, batch.ids[:32].tolist())) + (", …" if len(batch.ids) > 32 else "")
            raise TrainingDiverged(
                f"the loss is {loss} at step {batch.step} (epoch {batch.step // self.steps_per_epoch}), learning "
                f"rate {lr:g}, {len(batch.ids)} images with ids {ids}. The last checkpoint is from before: go on "
                f"from it with a lower --optim.lr, or --optim.clip-norm 1, and --resume must",
                batch.step,
            )
        self.done = batch.step + 1
        self.steps += 1
        self.samples += len(batch.ids)
        self.wait_s += batch.wait_s
        self.loss += loss
        self.terms = [a + b for a, b in zip(self.terms or [0.0] * len(terms), terms, strict=True)]
        self.lr = lr

    def metrics(self) -> Metrics:
        """Means since the last call; what follows is counted anew."""
        seconds = time.perf_counter() - self.began
        names = ["loss_image", "loss_pretext"]
        metrics: Metrics = {
            "step": self.done,
            "last_step": self.last_step,
            "epoch": self.done / self.steps_per_epoch,
            "loss": self.loss / self.steps,
            **{name: term / self.steps for name, term in zip(names, self.terms, strict=False)},
            "lr": self.lr,
            "samples_per_s": self.samples / seconds,
            "data_wait_s": self.wait_s,
            "data_wait_share": self.wait_s / seconds,
            "time_left_s": (self.last_step - self.done) * seconds / self.steps,
        }
        self.restart()
        return metrics
