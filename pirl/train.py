"""The loop that trains PIRL and the methods that it is compared with, in plain PyTorch.

Runs in one process, under torchrun, or in the workers of Ray Train; whatever started it, `report` is where the
numbers and the checkpoints go.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.data.order import Order
from pirl.data.plan import check_data, data_order
from pirl.dist import all_reduce_sum, broadcast_from_zero, gather_parts, rank, world_size
from pirl.errors import TrainingStopped
from pirl.loading.device import fetched, sent
from pirl.loading.loader import Batch, Loader
from pirl.loading.targets import Labels
from pirl.loading.views import Views
from pirl.methods.choice import Network, classes, new_network, new_step
from pirl.methods.distill import Teacher
from pirl.methods.gradients import Pieces, as_called
from pirl.methods.memory import MemoryBank
from pirl.methods.pirl import parameter_groups
from pirl.permutations import Permutations, permutation_set
from pirl.runs import checkpoint
from pirl.runs.checkpoint import TrainingState
from pirl.runs.metrics import Meter, Metrics, health
from pirl.runs.progress_lines import filling_line, live_text
from pirl.runs.run_files import checkpoint_name
from pirl.runs.weights import Weights
from pirl.storage.folder import Folder

Report = Callable[[Metrics, Path | None], None]
"""Called by every rank equally often, with the numbers since the last call and a checkpoint folder or None."""

Measure = Callable[[Network], Metrics]
"""Called by every rank with the network; gives numbers that are reported beside those of training."""


def train(
    config: Config,
    dataset: Dataset,
    *,
    report: Report,
    scratch: Path,
    resume: Folder | None = None,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
    measure: Measure | None = None,
    weights: Weights | None = None,
    permutations: Permutations | None = None,
    teacher: Teacher | None = None,
) -> Network:
    """Trains until `config.optim.epochs` are done.

    Args:
        report: Takes the metrics, and each checkpoint as it is written.
        scratch: Folder for checkpoints before `report` takes them; one for all ranks or one for each.
        resume: A checkpoint to go on from.
        device: Of the network and the bank; the CPU by default.
        say: Takes lines about what is done before the first step, and about embeddings that collapse.
        stop: Asked after each step; where it is true on any rank, all save a checkpoint and stop.
        tell: Takes what goes on at the moment, for who watches; at each step.
        measure: Looks at the network each `evaluation.every_epochs`; at the last step only where
            `evaluation.enabled` is off, as what follows training measures it then.
        weights: Of the trunk before the first step; without them it begins with random ones.
        permutations: Those of `pretext.permutations`, as the run has stored them; made anew without.
        teacher: That of `method.teacher`.

    Returns:
        The trained network.

    Raises:
        TrainingStopped: `stop` was true before the last step; `report` has taken the checkpoint.
        ConfigError: The data set is too small for the batch or the negatives, the batch for the workers, or there are
            no labels to learn.
        TrainingDiverged: The loss is not finite; names step, learning rate and images.
        CorruptImage: An image cannot be used and `data.on_error` is `raise`, or too many were skipped.
        StorageError: A store did not answer within `data.deadline_s`.
    """
    # The data, and the order in which it is dealt.
    device = device or torch.device("cpu")
    check_data(config, dataset, world_size())
    order = data_order(config, dataset)
    last_step = config.optim.epochs * order.steps_per_epoch

    # What training changes, as it was saved or anew; a new bank may be filled by a pass over the data first.
    state = first_state(config, dataset, device, teacher)
    network, optimizer = state.network, state.optimizer
    if weights and not resume:
        network.trunk.load_state_dict(dict(weights.tensors), strict=False)  # a file may not count batches
    first_step = checkpoint.load(resume, state) if resume else 0
    fills = state.bank is not None and config.memory.init == "forward" and not resume
    start = -order.steps_per_epoch if fills else first_step

    method = new_step(config, network, as_called(network, config.optim), state.bank, state.log_z, teacher)
    most_skipped = config.data.max_skipped * dataset.rows
    meter = Meter(first_step, last_step, order.steps_per_epoch, most_skipped, method.weights.tolist(), method.names)
    save = Saving(config, state, dataset.fingerprint, scratch, report, measure, meter, say)
    views = views_of(config, permutations)
    tell("reading the first images")
    for batch in batches(config, dataset, order, views, start, last_step, pin_memory=device.type == "cuda"):
        ids = served_ids(config, batch, device)
        meter.add_reads(batch, ids)
        if batch.step < 0:
            method.fill(batch, ids)
            if (batch.step - start) % config.checkpoint.log_every_steps == 0:
                say(filling_line(batch.step - start + 1, order.steps_per_epoch))
            tell(filling_line(batch.step - start + 1, order.steps_per_epoch))
            meter.restart()
            continue

        if batch.step == first_step:
            tell("first step" + (": compiling the network, which takes minutes" if config.optim.compile else ""))

        set_lr(optimizer, config, batch.step / order.steps_per_epoch)
        optimizer.zero_grad()
        pieces = Pieces(config.optim, method, batch, ids)
        for loss in pieces:
            loss.backward()  # type: ignore[no-untyped-call]
        outputs, losses = pieces.results()

        # The wish to stop goes with the losses: all ranks learn of it in the same step, and it costs no message.
        sums = all_reduce_sum(torch.cat([losses.sum(dim=1), losses.new_full((1,), float(stop()))]))
        meter.expect(batch, optimizer.param_groups[0]["lr"], fetched(sums))
        optimizer.step()
        embeddings = method.update(batch, ids, outputs)

        # Losses are read a step late, so that a GPU has that step to work on; where something is due, at once, so that
        # no checkpoint is kept of a step whose loss is no number, or comes after one.
        due = save.is_due(batch.step + 1)
        stops = meter.read(but=0 if due else 1)
        if due or stops:
            stops |= meter.read()
            save.after_step(embeddings, stopping=stops)
        if now := meter.now():
            tell(live_text(now))
        if stops and meter.done < last_step:
            raise TrainingStopped(meter.done)
    return network


@dataclass
class Saving:
    """Reports numbers, and saves and measures the network, each as often as the config says; collective."""

    config: Config
    state: TrainingState
    data: int
    scratch: Path
    report: Report
    measure: Measure | None
    meter: Meter
    say: Callable[[str], None]

    def is_due(self, done: int) -> bool:
        """Whether something is to be done after so many steps."""
        is_logged = done % self.config.checkpoint.log_every_steps == 0
        return is_logged or self.is_saved(done) or self.is_measured(done) or self.is_looked_at(done)

    def is_saved(self, done: int) -> bool:
        """Whether a checkpoint is."""
        every = self.config.checkpoint.every_steps or self.meter.steps_per_epoch
        return done % every == 0 or done == self.meter.last_step

    def is_measured(self, done: int) -> bool:
        """Whether the network is measured."""
        return self.measure is not None and is_measured(self.config, done, self.meter.steps_per_epoch)

    def is_looked_at(self, done: int) -> bool:
        """Whether the spread of the bank is told."""
        return self.state.bank is not None and done % self.meter.steps_per_epoch == 0

    def after_step(self, embeddings: Tensor | None, *, stopping: bool) -> None:
        """Does what is due after the step that the meter has counted last, with its embeddings f(v_I) if it has any."""
        config, meter, network = self.config, self.meter, self.state.network
        save = self.is_saved(meter.done) or stopping
        measure = self.measure if self.is_measured(meter.done) else None
        look = self.is_looked_at(meter.done)
        metrics = meter.metrics(self.state.log_z.device)
        if look and self.state.bank and embeddings is not None:
            metrics |= health(self.state.bank, embeddings, self.say)
        if save or measure:
            for buffer in network.buffers():  # batch norm's statistics: training does not use them, what follows does
                broadcast_from_zero(buffer)
        if measure:
            metrics |= measure(network)
            meter.restart()
        folder = self.scratch / checkpoint_name(meter.done) if save else None
        if folder:
            checkpoint.save(folder, config, self.state, meter.done, self.data)
        self.report(metrics, folder)


def is_measured(config: Config, step: int, steps_per_epoch: int) -> bool:
    """Whether the network is looked at after so many steps."""
    every = config.evaluation.every_epochs
    if step == config.optim.epochs * steps_per_epoch:
        return every is not None and not config.evaluation.enabled
    return every is not None and step % (every * steps_per_epoch) == 0


def first_state(
    config: Config, dataset: Dataset, device: torch.device, teacher: Teacher | None = None
) -> TrainingState:
    """The state before the first step: a function of the config's seed."""
    torch.manual_seed(config.seed)
    network = new_network(config, dataset, teacher)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim, memory = config.optim, config.memory
    groups, on_gpu = parameter_groups(network, optim.weight_decay), device.type == "cuda"
    optimizer = SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=on_gpu or None)
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # the sizes of a run are few, and each is searched once
    bank = None
    if config.has_bank:
        wire_dtype = getattr(torch, memory.wire_dtype)
        bank = MemoryBank(dataset.rows, seed=config.seed, keep=memory.keep, wire_dtype=wire_dtype, device=device)
    return TrainingState(network, optimizer, bank, log_z=torch.full((), math.nan, device=device))


def views_of(config: Config, permutations: Permutations | None) -> Views:
    """What makes the views of the config's method."""
    if permutations is None and config.permutations is not None:
        permutations = permutation_set(config.seed, config.permutations)
    data, task = config.data, config.second_view
    return Views(
        data.image_size, config.augment, task, config.pretext.crop_min, permutations, with_image=config.has_image_view
    )


def batches(
    config: Config, dataset: Dataset, order: Order, views: Views, first_step: int, last_step: int, *, pin_memory: bool
) -> Loader:
    """The batches of this rank from `first_step` to `last_step`."""
    labels = Labels(classes(config, dataset), config.data.label_noise, config.seed) if config.learns_labels else None
    return Loader(
        dataset,
        order,
        views,
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        first_step=first_step,
        last_step=last_step,
        processes=config.cluster.loader_processes,
        pin_memory=pin_memory,
        skip=config.data.on_error == "skip",
        ahead_bytes=config.data.read_ahead_mb * 1e6,
        targets=labels,
    )


def served_ids(config: Config, batch: Batch, device: torch.device) -> Tensor:
    """The ids of the images that make up the global batch: `batch.ids`, but for those that were skipped."""
    if config.data.on_error == "raise":
        return batch.ids
    return gather_parts(sent(batch.served, device), batch.shares).cpu()  # a wait, for who skips images alone


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
