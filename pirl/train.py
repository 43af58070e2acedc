"""Train PIRL: the step and the loop, in plain PyTorch.

Runs in one process, under torchrun, or in the workers of Ray Train; whatever started it, `report` is where the
numbers and the checkpoints go.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from pirl.config import Config, PretextName
from pirl.data.dataset import Dataset, open_data
from pirl.data.order import Order
from pirl.data.plan import check_data, data_order
from pirl.dist import all_reduce_sum, broadcast_from_zero, gather_parts, rank, world_size
from pirl.errors import TrainingStopped
from pirl.loading.color import color_and_normalize
from pirl.loading.loader import Batch, Loader
from pirl.loading.views import Views
from pirl.methods import nce
from pirl.methods.memory import MemoryBank
from pirl.methods.pirl import PIRL, head_weights, parameter_groups, pirl_losses
from pirl.runs import checkpoint
from pirl.runs.checkpoint import State
from pirl.runs.metrics import Meter, Metrics
from pirl.storage.folder import Folder

Report = Callable[[Metrics, Path | None], None]
"""Called by every rank equally often, with the numbers since the last call and a checkpoint folder or None."""

Measure = Callable[[PIRL], Metrics]
"""Called by every rank with the network; gives numbers that are reported beside those of training."""


def train(
    config: Config,
    *,
    report: Report,
    scratch: Path,
    resume: Folder | None = None,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
    measure: Measure | None = None,
) -> PIRL:
    """Trains until `config.optim.epochs` are done.

    Args:
        config: The run.
        report: Takes the metrics, and each checkpoint as it is written.
        scratch: Folder for checkpoints before `report` takes them; one for all ranks or one for each.
        resume: A checkpoint to go on from.
        device: Of the network and the bank; the CPU by default.
        say: Takes lines about what is done before the first step.
        stop: Asked after each step; where it is true on any rank, all save a checkpoint and stop.
        measure: Looks at the network each `evaluation.every_epochs`; at the last step only where
            `evaluation.enabled` is off, as what follows training measures it then.

    Returns:
        The trained network.

    Raises:
        TrainingStopped: `stop` was true before the last step; `report` has taken the checkpoint.
        ConfigError: The data set is too small for the batch or the negatives, or the batch for the workers.
        TrainingDiverged: The loss is not finite; names step, learning rate and images.
        CorruptImage: An image cannot be used and `data.on_error` is `raise`, or too many were skipped.
        StorageError: A store did not answer within `data.deadline_s`.
    """
    device = device or torch.device("cpu")
    dataset = open_data(config.data)
    check_data(config, dataset, world_size())
    order = data_order(config, dataset)
    last_step = config.optim.epochs * order.steps_per_epoch

    state = first_state(config, dataset.rows, device)
    network, optimizer, bank, log_z = state.network, state.optimizer, state.bank, state.log_z
    first_step = checkpoint.load(resume, state) if resume else 0
    filling = not resume and config.memory.init == "forward"

    model = distributed(torch.compile(network) if config.optim.compile else network)  # type: ignore[arg-type]
    estimate_log_z = config.loss.kind == "npid" and bool(log_z.isnan())
    weights = head_weights(config, device)
    meter = Meter(
        first_step, last_step, order.steps_per_epoch, config.data.max_skipped * dataset.rows, weights.tolist()
    )

    start = -order.steps_per_epoch if filling else first_step
    for batch in batches(config, dataset, order, start, last_step, pin_memory=device.type == "cuda"):
        ids = served_ids(config, batch, device)
        meter.add_reads(batch, ids)
        if batch.step < 0:
            fill(bank, network, batch, ids, bf16=config.optim.bf16)
            if (batch.step - start) % config.checkpoint.log_every_steps == 0:
                say(f"filling the memory bank: step {batch.step - start + 1:,}/{order.steps_per_epoch:,}")
            meter.restart()
            continue
        set_lr(optimizer, config, batch.step / order.steps_per_epoch)
        pending = bank.sample(batch.step, config.loss.num_negatives)  # on its way while the trunk works
        positives = bank.lookup(ids)[batch.mine]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.bf16):
            queries = model(*views_on_device(batch, device))
        negatives = pending.wait()
        own = bank.own(ids[batch.mine].to(device), negatives.ids)
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
        # The wish to stop goes with the losses: all ranks learn of it in the same step, and it costs no message.
        *sums, stops = all_reduce_sum(torch.cat([losses.detach().sum(dim=1), losses.new_tensor([stop()])])).tolist()
        terms = [total / len(batch.ids) for total in sums]
        meter.add(batch, terms, optimizer.param_groups[0]["lr"])
        optimizer.step()
        rows = gather_parts(queries[0].detach(), batch.shares)
        bank.update(*unless_skipped(batch, ids, rows))

        save_now = meter.done % (config.checkpoint.every_steps or order.steps_per_epoch) == 0
        save_now |= meter.done == last_step or stops > 0
        measure_now = measure is not None and is_measured(config, meter.done, order.steps_per_epoch)
        if save_now or measure_now or meter.done % config.checkpoint.log_every_steps == 0:
            metrics = meter.metrics(device)
            folder = scratch / f"checkpoint_{meter.done:09d}" if save_now else None
            if save_now or measure_now:
                broadcast_buffers(network)
            if measure and measure_now:
                metrics |= measure(network)
                meter.restart()
            if folder:
                checkpoint.save(folder, config, state, meter.done, dataset.fingerprint)
            report(metrics, folder)
        if stops and meter.done < last_step:
            raise TrainingStopped(meter.done)
    return network


def is_measured(config: Config, step: int, steps_per_epoch: int) -> bool:
    """Whether the network is looked at after so many steps."""
    every = config.evaluation.every_epochs
    if step == config.optim.epochs * steps_per_epoch:
        return every is not None and not config.evaluation.enabled
    return every is not None and step % (every * steps_per_epoch) == 0


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
        skip=config.data.on_error == "skip",
        ahead_bytes=config.data.read_ahead_mb * 1e6,
    )


def served_ids(config: Config, batch: Batch, device: torch.device) -> Tensor:
    """The ids of the images that make up the global batch: `batch.ids`, but for those that were skipped."""
    if config.data.on_error == "raise":
        return batch.ids
    return gather_parts(batch.served.to(device), batch.shares).cpu()


def unless_skipped(batch: Batch, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and rows of the global batch without the places of skipped images: each id is there once, as dealt."""
    kept = ids == batch.ids
    return batch.ids[kept], rows[kept.to(rows.device)]


def views_on_device(batch: Batch, device: torch.device) -> list[Tensor]:
    """Moves uint8 views to the device, and there changes colours and normalises."""
    # Joined there: what is joined here would be new memory, which is not pinned.
    kinds = zip(*([view.flatten(end_dim=-4) for view in part.views(device)] for part in batch.parts), strict=True)
    views = []
    for parts, colors in zip(kinds, batch.colors, strict=True):
        pixels = parts[0] if len(parts) == 1 else torch.cat(parts)
        changed = color_and_normalize(pixels, colors.flatten(end_dim=-2))
        views.append(changed.contiguous(memory_format=torch.channels_last))
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
def fill(bank: MemoryBank, network: PIRL, batch: Batch, ids: Tensor, *, bf16: bool) -> None:
    """Sets the rows of a batch to f(v_I) of the untrained network.

    The batch norms run on batch statistics, as they will in training, and get their first running statistics.
    """
    device = bank.local.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        queries = network(*views_on_device(batch, device))
    bank.fill(*unless_skipped(batch, ids, gather_parts(queries[0], batch.shares)))


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
